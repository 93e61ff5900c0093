"""Destinations of messages: they take messages, and return receipts later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self

from publisher.messages import Outgoing


class PublishError(RuntimeError):
    """Messages could not be published; the text names the topic and says what to do.

    Attributes:
      fatal: another try would fail in the same way.
    """

    def __init__(self, text: str, fatal: bool) -> None:
        super().__init__(text)
        self.fatal = fatal


@dataclass(frozen=True)
class Receipt:
    """The outcome of sending some messages.

    Attributes:
      messages: those that were taken; with `error`, those that were not.
      error: why not; None where they arrived.
      left_out: how many messages beside these the destination cannot hold.
    """

    messages: Outgoing
    error: PublishError | None = None
    left_out: int = 0


class Sink(AbstractContextManager["Sink"], Protocol):
    """A destination. Every message sent comes back in exactly one receipt, in the order of sending."""

    destination: str
    """Name, for people."""

    def __enter__(self) -> Self: ...

    def send(self, messages: Outgoing) -> Sequence[Receipt]:
        """Take messages; may wait until there is room. Returns the receipts that are there by now."""

    def poll(self) -> Sequence[Receipt]:
        """The receipts that have come since, without waiting."""

    def flush(self) -> Sequence[Receipt]:
        """Wait for everything under way. Returns the receipts that were still missing."""

"""Ctrl-C and SIGTERM as a wish to end in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Sets `event` at the first Ctrl-C or SIGTERM; a second one ends the process at once.

    Attributes:
      event: set once a signal has come.
      number: the signal that came, None before.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number: int | None = None

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM, 0 where neither came."""
        return 0 if self.number is None else 128 + self.number

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Takes both signals while a `with` block runs, which the main thread enters."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.event.set()
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

"""Gathers single messages into lists: within a bundle, and for a while across bundles.

Beam's BatchElements does the first with a line in the log for each bundle, which is an entry of Cloud
Logging. For the second it counts messages whatever their size, and uses state for every message.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import apache_beam as beam
from apache_beam.coders import BytesCoder, PickleCoder, TupleCoder, VarIntCoder
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.util import WithSharedKey
from apache_beam.transforms.window import GlobalWindows

from common.limits import MAX_BATCH_BYTES

Message: TypeAlias = PubsubMessage | bytes

_LISTS: Final = PickleCoder()
_SAMPLED: Final = 32
"""Messages of a list that are looked at to estimate its size."""


class Messages(list[Any]):
    """The type by which Beam knows a list of messages, so that it takes `MessagesCoder`; any list will do.

    Beam estimates the size of the first ten elements of each bundle, all there are in a stream. By the coder
    of lists of anything that is to encode each message, and takes as long as to parse it.
    """


class MessagesCoder(beam.coders.Coder):
    """Encodes a list of messages, and estimates its size by a few of them."""

    def encode(self, value: Sequence[Message]) -> bytes:
        """The list, pickled."""
        return cast(bytes, _LISTS.encode(value))

    def decode(self, encoded: bytes) -> list[Message]:
        """The list that `encode` wrote."""
        return cast(list[Message], _LISTS.decode(encoded))

    def estimate_size(self, value: Sequence[Message]) -> int:
        """Bytes of the payloads and attributes, about."""
        some = value[:: len(value) // _SAMPLED + 1]
        return len(value) * sum(map(message_bytes, some)) // max(1, len(some))

    def to_type_hint(self) -> type:
        """The Python type this coder is for."""
        return Messages


beam.coders.registry.register_coder(Messages, MessagesCoder)


@dataclass
class BatchMessages(beam.PTransform):
    """Gathers messages into lists: the first step, so that all others work on columns.

    PubsubMessage | bytes, in the global window  ->  list of them

    Attributes:
      rows: the longest list.
      millis: how long a message may wait for others across bundles. 0 gathers within a bundle alone: the
        lowest latency, and the only choice on runners without real-time timers (FnApiRunner). Otherwise the
        lists of a bundle go through the state of a key for each worker process.
      max_bytes: the largest list; a longer message stands alone.
    """

    rows: int = 1024
    millis: int = 0
    max_bytes: int = MAX_BATCH_BYTES

    def expand(self, messages: beam.PCollection) -> beam.PCollection:
        """Messages to lists of messages."""
        if not messages.windowing.is_default():
            raise ValueError(
                f"BatchMessages: expected the global window, got {type(messages.windowing.windowfn).__name__}"
            )
        gather = beam.ParDo(_GatherFn(self.rows, self.max_bytes)).with_output_types(Messages)
        lists = messages | "Gather" >> gather
        if not self.millis:
            return lists
        pack = beam.ParDo(_PackFn()).with_output_types(tuple[str, tuple[int, bytes]])
        hold = beam.ParDo(_HoldFn(self.rows, self.max_bytes, self.millis)).with_output_types(Messages)
        return lists | "Pack" >> pack | "Hold" >> hold


def message_bytes(message: Message) -> int:
    """Returns the bytes of the payload and the characters of the attributes.

    >>> message_bytes(b"{}"), message_bytes(PubsubMessage(b"{}", {"key": "value"}))
    (2, 10)
    """
    if isinstance(message, bytes):
        return len(message)
    size = len(message.data)
    for name, value in (message.attributes or {}).items():
        size += len(name) + len(value)
    return size


class _GatherFn(beam.DoFn):
    """Messages of a bundle in, lists out."""

    def __init__(self, rows: int, max_bytes: int) -> None:
        self._rows = rows
        self._max_bytes = max_bytes

    def start_bundle(self) -> None:
        """Drops the messages of a failed bundle."""
        self._held: list[Message] = []
        self._bytes = 0

    def process(self, message: Message) -> Iterable[list[Message]]:
        """Adds a message, and lets the list go where the message does not fit."""
        size = message_bytes(message)
        full: list[list[Message]] = []
        if len(self._held) == self._rows or (self._held and self._bytes + size > self._max_bytes):
            full.append(self._held)
            self._held, self._bytes = [], 0
        self._held.append(message)
        self._bytes += size
        return full

    def finish_bundle(self) -> Iterable[Any]:
        """Lets the rest go."""
        if self._held:
            yield GlobalWindows.windowed_value_at_end_of_window(self._held)
        self._held = []


class _PackFn(WithSharedKey):
    """A list in; the key of this worker process, the length of the list, and the list as bytes out.

    State is read and written, and sent over the network, once a list.
    """

    def process(self, messages: Messages) -> Iterable[tuple[str, tuple[int, bytes]]]:
        """Encodes the list."""
        yield self.key, (len(messages), _LISTS.encode(messages))


_DUE: Final = TimerSpec("due", TimeDomain.REAL_TIME)
_END: Final = TimerSpec("end", TimeDomain.WATERMARK)
"""The end of the window: the job is drained."""
_HELD_PARAM: Final[Any] = beam.DoFn.StateParam(BagStateSpec("held", BytesCoder()))
_SIZE_PARAM: Final[Any] = beam.DoFn.StateParam(
    ReadModifyWriteStateSpec("size", TupleCoder([VarIntCoder(), VarIntCoder()]))
)
"""Messages and bytes that are held."""
_DUE_PARAM: Final[Any] = beam.DoFn.TimerParam(_DUE)
_END_PARAM: Final[Any] = beam.DoFn.TimerParam(_END)


class _HoldFn(beam.DoFn):
    """Packed lists of several bundles in, longer lists out."""

    def __init__(self, rows: int, max_bytes: int, millis: int) -> None:
        self._rows = rows
        self._max_bytes = max_bytes
        self._seconds = millis / 1000

    def process(
        self,
        element: tuple[str, tuple[int, bytes]],
        window: Any = beam.DoFn.WindowParam,
        held: Any = _HELD_PARAM,
        size: Any = _SIZE_PARAM,
        due: Any = _DUE_PARAM,
        end: Any = _END_PARAM,
    ) -> Iterable[list[Message]]:
        """Adds a list, and lets go what does not fit, or is full."""
        _, (count, packed) = element
        rows, held_bytes = size.read() or (0, 0)
        if rows and (rows + count > self._rows or held_bytes + len(packed) > self._max_bytes):
            yield from _flush(held, size)
            rows, held_bytes = 0, 0
        held.add(packed)
        if rows + count >= self._rows or held_bytes + len(packed) >= self._max_bytes:
            yield from _flush(held, size)
            return
        size.write((rows + count, held_bytes + len(packed)))
        if not rows:
            due.set(time.time() + self._seconds)
            end.set(window.end)

    @on_timer(_DUE)
    def on_due(
        self,
        held: Any = _HELD_PARAM,
        size: Any = _SIZE_PARAM,
    ) -> Iterable[list[Message]]:
        """Lets go what has waited; the timer of a list that was full finds what came after it."""
        return _flush(held, size)

    @on_timer(_END)
    def on_end(
        self,
        held: Any = _HELD_PARAM,
        size: Any = _SIZE_PARAM,
    ) -> Iterable[list[Message]]:
        """Lets the rest go."""
        return _flush(held, size)


def _flush(held: Any, size: Any) -> Iterator[list[Message]]:
    messages = [message for packed in held.read() for message in _LISTS.decode(packed)]
    held.clear()
    size.clear()
    if messages:
        yield messages

"""Decodes many messages at once, without a Python object for each number and each time.

The list of numbers is cut out of each message. msgspec decodes the rest, which leaves the time as a text.
simdjson then reads the lists of some messages in one go, and Arrow the times of all. They read the same JSON
and round alike. Where anything is unusual, nothing is read here, and `transforms.decode` decides what becomes
of the message.
"""

from __future__ import annotations

import datetime as dt
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simdjson

from features.arrow import EVENT_TIME
from features.roles import EPOCH, Roles
from transforms.decode import EventTime, RejectedError, Transaction, usual_decoder

LEAST_MESSAGES: Final = 32
"""Fewer messages are decoded one by one: the calls for all of them would cost more."""
AT_ONCE: Final = 128
"""Messages that are decoded in one go; where one of them is unusual, each half for itself."""

LEAST_TEXTS: Final = 512
"""Fewer times are decoded one by one."""

_CUT: Final = b"[]"
"""Stands where a list was cut out."""
BETWEEN: Final = b",1e99,"
"""Stands between lists."""
_BOUND: Final = 1e99
"""Follows each list. No list that is read here has it: it is no float32."""
_LEAST_LENGTH: Final = 20
"""Characters of a time with seconds and a zone."""
_SECONDS_COLON: Final = 16
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_LOCAL: Final = threading.local()


class Block(NamedTuple):
    """Some messages: the rows without their numbers, and the numbers, float32 [rows, width]."""

    rows: list[Transaction]
    numbers: npt.NDArray[np.float32]


BlockDecoder = Callable[[Sequence[bytes]], Block | None]
"""Decodes messages; None where one of them is unusual."""


@functools.lru_cache(maxsize=64)
def block_decoder(names: Roles, max_bytes: int, width: int, has_texts: bool = False) -> BlockDecoder:
    """Makes the function that decodes messages with lists of numbers.

    >>> decode = block_decoder(Roles(), 65_536, 2)
    >>> decode([b'{"account_id": "a", "features": [12.5, 1]}']).numbers.tolist()
    [[12.5, 1.0]]
    >>> decode([b'{"account_id": 7, "features": [12.5, 1]}']) is None
    True

    Args:
      names: the keys of id, account and time.
      max_bytes: the longest payload that is decoded.
      width: numbers of a list.
      has_texts: leaves times as texts, for `read_times`.
    """
    time = str if has_texts else EventTime
    rest_decoder = usual_decoder(tuple[()], names, time)
    whole_decoder = usual_decoder(msgspec.Raw, names, time)

    def decode(payloads: Sequence[bytes]) -> Block | None:
        if max(map(len, payloads)) > max_bytes:
            return None
        cut = _cut(payloads)
        if not b"".join(cut.rests if cut else payloads).isascii():
            return None
        try:
            if cut:
                rows = [rest_decoder(rest) for rest in cut.rests]
            else:  # the list of numbers is one of several
                rows = [whole_decoder(payload) for payload in payloads]
                cut = _cut([bytes(row.features) for row in rows])
                if not cut or set(cut.rests) != {_CUT}:
                    return None
        except (msgspec.MsgspecError, RecursionError):
            return None
        # At once, while the lists are in the cache.
        wide = read_lists(cut.lists, len(rows), width)
        if wide is None:
            return None
        with np.errstate(over="ignore"):
            numbers = wide.astype(np.float32)
        return Block(rows, numbers) if np.isfinite(numbers).all() else None

    return decode


class _Cut(NamedTuple):
    """Texts with an empty list in the place of their list, and what was in the lists, with bounds between."""

    rests: list[bytes]
    lists: bytes


def _cut(texts: Sequence[bytes]) -> _Cut | None:
    """Cuts the list out of each text; None where one of them has a second opening bracket.

    An empty list in a rest is the one put there, then. A rest that is JSON with it, and numbers that are JSON
    within brackets, make JSON together.
    """
    rests, lists, ends = [], [], []
    for text in texts:
        head, _, tail = text.partition(b"[")
        numbers, _, end = tail.partition(b"]")
        rests.append(head + _CUT + end)
        lists.append(numbers)
        ends.append(end)
    within = BETWEEN.join(lists)
    return None if b"[" in within or b"[" in b"".join(ends) else _Cut(rests, within)


def read_lists(lists: bytes, n: int, width: int) -> npt.NDArray[np.float64] | None:
    """Reads lists of numbers; None where one of them is anything but `width` numbers.

    >>> read_lists(b"1, 2.5,1e99,3,4", 2, 2).tolist()
    [[1.0, 2.5], [3.0, 4.0]]
    >>> read_lists(b"1, 2, 3,1e99,4", 2, 2) is None
    True

    Args:
      lists: JSON between the brackets of lists, no bracket in it, joined by BETWEEN.
      n: how many they are, at least one.
      width: numbers of a list.
    """
    try:
        array: Any = _parser().parse(b"[%b,1e99]" % lists)
        numbers = np.frombuffer(array.as_buffer(of_type="d"))
    except (ValueError, TypeError, RuntimeError):  # no JSON, no number, a number of too many digits
        return None
    # All values are numbers, side by side. The bounds are where lists of `width` end, and nowhere else.
    if len(numbers) != n * (width + 1):
        return None
    is_bound = (numbers == _BOUND).reshape(n, width + 1)
    if np.count_nonzero(is_bound) != n or not is_bound[:, width].all():
        return None
    return numbers.reshape(n, width + 1)[:, :width]


def _parser() -> simdjson.Parser:
    """The parser of this thread, which keeps its memory."""
    if not hasattr(_LOCAL, "parser"):
        _LOCAL.parser = simdjson.Parser()
    parser: simdjson.Parser = _LOCAL.parser
    return parser


def read_times(texts: Sequence[Any]) -> pa.Array | None:
    """Reads event times, most of them texts; None where one of them is unusual or no time.

    >>> read_times(["2026-03-01T11:00:00.25Z"])[0].value, read_times(["yesterday at eleven or so"])
    (1772362800250000, None)
    """
    try:
        column = pa.array(texts, pa.string())
    except pa.ArrowTypeError:  # moments of messages that were decoded one by one
        if list(map(type, texts)).count(str) < len(texts) // 2:
            return None
        forms = [each.isoformat() if isinstance(each, dt.datetime) else each for each in texts]
        column = pa.array(forms, pa.string())
    if column.null_count or not texts:
        return None
    _, places, data = column.buffers()
    offsets = np.frombuffer(places, np.int32, len(texts) + 1)
    characters = np.frombuffer(data, np.uint8)
    if np.diff(offsets).min() < _LEAST_LENGTH:
        return None
    # All that Arrow reads otherwise and the rules do not: times without seconds, and the year 0.
    starts = offsets[:-1]
    if (characters[starts + _SECONDS_COLON] != ord(":")).any() or (characters[starts] < ord("1")).any():
        return None
    try:
        return column.cast(EVENT_TIME)
    except pa.ArrowInvalid:  # another form, or no day of the calendar
        return None


def moments_of(
    rows: list[Transaction], again: Callable[[int], Transaction], unread: dict[int, str]
) -> list[dt.datetime | None]:
    """Reads event times that `read_times` does not, those of each row for itself.

    Args:
      rows: the decoded messages; where the text of a time is unusual, another one takes the place of a row.
      again: decodes the message of a row by itself.
      unread: takes the reasons of rows whose messages cannot be decoded after all.
    """
    for k, row in enumerate(rows):
        if type(row.event_time) is str:
            try:
                row.event_time = msgspec.convert(row.event_time, EventTime)
            except msgspec.ValidationError:
                try:
                    rows[k] = again(k)
                except RejectedError as error:
                    row.event_time, unread[k] = None, str(error)
    moments: list[Any] = [row.event_time for row in rows]
    return moments


def since_epoch(moments: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Returns the microseconds of moments since 1970; one without a time zone is in UTC."""
    try:  # Arrow takes longer for its call, and as long for each moment
        return np.array([(moment - EPOCH) // _MICROSECOND for moment in moments], np.int64)
    except TypeError:  # one has no time zone
        micros: npt.NDArray[np.int64] = pa.array(moments, EVENT_TIME).view(pa.int64()).to_numpy()
        return micros

"""Event times as microseconds since the epoch, and what a clock and a calendar show then."""

from __future__ import annotations

import datetime as dt
import functools
import math
import re
from typing import TYPE_CHECKING, Any

from features.roles import EPOCH, event_time
from features.values import BLANKS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SECOND = 1_000_000
DAY = 86_400 * SECOND
_BLOCK = 900 * SECOND
"""The clocks of a zone change between two blocks, never within one, since 1973."""
MOST_SECONDS = 253_402_300_799
"""The end of the year 9999."""
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def is_pattern(form: str) -> bool:
    """Tells whether the form of a time is a pattern of its own, such as "%d.%m.%Y %H:%M"."""
    return "%" in form


def is_usable(pattern: str) -> bool:
    """Tells whether a pattern is one of `datetime.strptime`, and holds day, month and year."""
    moment = dt.datetime(2026, 12, 31, 14, 5, 59)
    try:
        return dt.datetime.strptime(moment.strftime(pattern), pattern).date() == moment.date()
    except ValueError:
        return False


def time_text(form: str) -> str:
    """Returns what an event time is expected to be."""
    if is_pattern(form):
        return f"a time such as {dt.datetime(2026, 12, 31, 14, 5, 59).strftime(form)} ({form})"
    texts = {
        "any": "a time as RFC 3339 or a number since 1970",
        "rfc3339": "a time as RFC 3339 with an offset",
    }
    return texts.get(form, f"a number of {form} since 1970")


def parse_time(value: Any, form: str) -> int:
    """Reads an event time as a message has it, to microseconds since the epoch.

    >>> parse_time("1970-01-01T01:00:01.5+01:00", "rfc3339"), parse_time(1.5, "seconds")
    (1500000, 1500000)

    Args:
      value: a text or a number; or a datetime, UTC where it has no zone.
      form: one of `features.declaration.TIME_FORMATS`, or a pattern. Where it is a pattern, a text with RFC
        3339 and an offset is read as well: dead letters have it.

    Raises:
      ValueError: it is no time; the text says what was expected.
    """
    problem = ValueError(f"expected {time_text(form)}")
    if isinstance(value, dt.datetime):
        value = value if value.tzinfo else value.replace(tzinfo=EPOCH.tzinfo)
        return (value - EPOCH) // dt.timedelta(microseconds=1)
    if is_pattern(form) and isinstance(value, str) and not _RFC3339.fullmatch(value):
        try:
            return _by_pattern(value.strip(BLANKS), form)
        except (ValueError, OverflowError):
            raise problem from None
    if form in ("any", "rfc3339") or is_pattern(form):
        if form != "any" and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
            raise problem
        try:
            moment = event_time(value)
        except ValueError:
            raise problem from None
        if moment is None:
            raise problem
        return (moment - EPOCH) // dt.timedelta(microseconds=1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise problem
    unit = SECOND if form == "seconds" else SECOND // 1000
    if not abs(value) <= MOST_SECONDS * SECOND // unit:
        raise problem
    return value * unit if isinstance(value, int) else round(value * unit)


@functools.lru_cache(maxsize=1 << 16)
def _by_pattern(text: str, pattern: str) -> int:
    if not text.isascii():  # such as digits of other scripts
        raise ValueError(text)
    moment = dt.datetime.strptime(text, pattern)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=EPOCH.tzinfo)
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


@functools.lru_cache(maxsize=1 << 16)
def _offset(block: int, timezone: str) -> int:
    """Microseconds by which the clocks of a zone are ahead of UTC in a block."""
    from zoneinfo import ZoneInfo

    try:
        moment = (EPOCH + dt.timedelta(microseconds=block * _BLOCK)).astimezone(ZoneInfo(timezone))
    except OverflowError:  # at the ends of the calendar
        return 0
    return (moment.utcoffset() or dt.timedelta()) // dt.timedelta(microseconds=1)


def time_of_day(micros: int, timezone: str) -> tuple[float, float]:
    """Returns sine and cosine of the time of day in a zone: midnight and 23:59 are neighbours.

    >>> [round(x, 3) for x in time_of_day(6 * 3600 * SECOND, "UTC")]
    [1.0, 0.0]
    """
    angle = 2 * math.pi * ((micros + _offset(micros // _BLOCK, timezone)) % DAY / DAY)
    return math.sin(angle), math.cos(angle)


def day_of_week(micros: int, timezone: str) -> tuple[float, float]:
    """Returns sine and cosine of the day of the week in a zone; Monday is (0, 1)."""
    angle = 2 * math.pi * (((micros + _offset(micros // _BLOCK, timezone)) // DAY + 3) % 7 / 7)
    return math.sin(angle), math.cos(angle)


def around(
    kind: str, micros: npt.NDArray[np.int64], timezone: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Does the same as the function that `kind` names, for many times at once."""
    import numpy as np

    blocks, inverse = np.unique(micros // _BLOCK, return_inverse=True)
    offsets = np.array([_offset(block, timezone) for block in blocks.tolist()], np.int64)
    local = micros + offsets[inverse]
    turn = local % DAY / DAY if kind == "time_of_day" else (local // DAY + 3) % 7 / 7
    return np.sin(2 * math.pi * turn), np.cos(2 * math.pi * turn)


AROUND = {"time_of_day": time_of_day, "day_of_week": day_of_week}
"""By the kind of a feature."""

"""Readers of single values on the command line: whole numbers, shares, durations, points in time."""

from __future__ import annotations

import argparse
import datetime as dt
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS: Final = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Number:
    """Reads a number between two bounds, both of which belong to it.

    Attributes:
      least: the smallest number, if any.
      most: the largest number, if any.
      whole: whether it has no fraction.
    """

    least: float | None = None
    most: float | None = None
    whole: bool = True

    def __call__(self, text: str) -> float:
        """The number.

        Raises:
          argparse.ArgumentTypeError: the text is no such number.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = float("nan")
        if value != value or not self._is_within(value):
            raise argparse.ArgumentTypeError(f"expected {self}, got {text!r}")
        return value

    def _is_within(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.least is not None and self.most is not None:
            return f"{kind} from {self.least} to {self.most}"
        if self.least is not None:
            return f"{kind} of at least {self.least}"
        return kind if self.most is None else f"{kind} of at most {self.most}"


def at_least(least: int, most: int | None = None) -> Number:
    """Reads a whole number from `least` on, to `most` where there is one."""
    return Number(least, most)


SHARE: Final = Number(0, 1, whole=False)
"""Reads a share: a number from 0 to 1."""


def duration(text: str) -> dt.timedelta:
    """Reads "250ms", "30s", "90m", "24h" or "7d".

    Raises:
      argparse.ArgumentTypeError: the text is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    try:
        if match:
            return dt.timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        pass
    raise argparse.ArgumentTypeError(f"expected a duration such as 250ms, 30s, 90m, 24h or 7d, got {text!r}")


PAUSE_REGEX: Final = "[0-9]*[1-9][0-9]*(ms|s|m|h|d)"
"""The usual form of what `pause` reads, for the forms of templates."""


def pause(text: str) -> str:
    """Reads a duration above 0, and keeps its text: a job's record has its options as they were passed.

    Raises:
      argparse.ArgumentTypeError: the text is no duration, or none above 0.
    """
    if not duration(text):
        raise argparse.ArgumentTypeError(f"expected a duration above 0, got {text!r}")
    return text


def moment(text: str, now: dt.datetime | None = None) -> dt.datetime:
    """Reads a point in time: a duration before now, or RFC 3339, in UTC where it has no offset.

    Raises:
      argparse.ArgumentTypeError: the text is neither, or outside the years 1 to 9999.
    """
    try:
        if _DURATION.fullmatch(text.strip()):
            return (now or dt.datetime.now(dt.UTC)) - duration(text)
        value = dt.datetime.fromisoformat(text)
        return value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC)
    except OverflowError:
        expected = "a time in the years 1 to 9999 of UTC"
    except ValueError:
        expected = "an age such as 90m, 24h or 7d, or a time such as 2026-03-01T12:00:00Z"
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


def location(text: str) -> str:
    """Reads the place of a file or directory: a path, gs://..., or file:///..., which becomes a path.

    >>> location("file:///data/a%20b.csv"), location("gs://b/c")
    ('/data/a b.csv', 'gs://b/c')

    Raises:
      argparse.ArgumentTypeError: file:// names another machine.
    """
    if not text.startswith("file:"):
        return text
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise argparse.ArgumentTypeError(f"expected a path, gs://... or file:///PATH, got {text!r}")
    return unquote(text.removeprefix("file:").removeprefix("//").removeprefix("localhost"))

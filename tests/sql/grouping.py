"""The parts that answers in plain Python share: copies of a row, the latest of them, percentiles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Any, Final

import pytest

from tests.sql import rows

Row = dict[str, Any]
Rows = list[Row]

SCORED: Final = ("scored_at", "event_time")
"""A transaction with a time of its own has one event time; of derived times the later counts."""


def groups_of(found: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Rows]:
    """Rows by a key."""
    groups: dict[Any, Rows] = defaultdict(list)
    for row in found:
        groups[key(row)].append(row)
    return groups


def copies_of(found: Rows, table: str = "scores") -> Collection[Rows]:
    """The copies of each row of a table."""
    return groups_of(found, lambda row: rows.key_of(row, table)).values()


def latest_of(found: Rows, table: str = "scores", *order: str) -> Rows:
    """The latest copy of each row, by these columns."""
    return [max(copies, key=itemgetter(*(order or SCORED))) for copies in copies_of(found, table)]


def about(value: float | None, digits: int) -> Any:
    """A number that the query rounds. Rounding itself is the business of the engine."""
    return None if value is None else pytest.approx(value, rel=1e-9, abs=0.5000001 * 10**-digits)


def percentile(values: Iterable[Any], percent: int) -> Any:
    """The value at a rank, which the local stack and the reference give."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


def last_of(shown: Rows, limit: int, *columns: str) -> Rows:
    """The last rows of a course, in its order."""
    shown.sort(key=lambda row: [row[column] for column in columns])
    return shown[max(0, len(shown) - limit) :]

"""Generated rows for the tables: duplicates, re-scored rows, equal times, ties, NULLs, hostile text."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from model.thresholds import SEVERITIES
from transforms import tables

NOON: Final = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)

TEXTS: Final = (
    "",
    "nul\0nul",
    " ",
    "a",
    "A",
    "é",  # one code point,
    "e\N{COMBINING ACUTE ACCENT}",  # and two, which are not equal
    "ß",
    "😀",
    "NULL",
    "0",
    "it's",
    '"; DROP TABLE scores; --',
    "`x`.`y`",
    "back\\slash \\n",
    "two\nlines\r\n\ttab",
    "100% _ LIKE",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\N{REPLACEMENT CHARACTER}",
    "{[(<&>)]}",
    "x" * 300,
)
REASONS: Final = (
    "payload: not JSON (Input data was truncated)",
    "payload: not JSON (JSON is malformed: invalid character (byte 17))",
    "payload: 70000 bytes, over the limit of 65536",
    "payload: 80000 bytes, over the limit of 65536",
    "features: 29 values instead of 30",
    "features[3]: 1e+99, which is not finite",
    "event_time: 2026-03-08T12:00:00Z is more than --max_event_lead_seconds=86400 after its publication",
    "amount: expected a number, got 17",
    "anomaly_score: the model gave nan",
    *TEXTS,
)
PAYLOADS: Final = (b"", b"{}", b"\x00\xff\xfe", "é\n\"'".encode(), b"a" * 100)
NUMBERS: Final = (
    -0.0,
    0.0,
    0.125,
    0.5,
    1.0,
    2.25,
    -3.75,
    12.3456,
    12.3471,
    12.3529,
    99.999,
    1e-9,
    123456.789,
    1e300,
)
TIMES: Final = (
    NOON,
    NOON + dt.timedelta(microseconds=1),
    NOON - dt.timedelta(microseconds=1),
    NOON + dt.timedelta(minutes=59, seconds=59, microseconds=999_999),
    NOON + dt.timedelta(hours=1),
    NOON + dt.timedelta(days=1),
    NOON + dt.timedelta(days=40),
    dt.datetime(2020, 1, 1, tzinfo=dt.UTC),  # the queries' own first moment
    dt.datetime(2019, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
    dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
    dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
)


MOMENT: Final = pa.timestamp("us", tz="UTC")
VALUES: Final[dict[pa.DataType, Sequence[Any]]] = {
    pa.string(): TEXTS,
    pa.binary(): PAYLOADS,
    pa.bool_(): (False, True),
    pa.int64(): range(4),
    pa.float64(): NUMBERS,
    MOMENT: TIMES,
}
POOLS: Final[dict[str, Sequence[Any]]] = {
    "account_id": TEXTS[:8],
    "errorMessage": REASONS,
    "feature": ("V1", "V14", "Amount"),
    "model_version": ("v1", "v2", "it's v3"),
    "run_id": ("first", "second"),
    "severity": SEVERITIES,
    "shadow_severity": SEVERITIES,
    "shadow_version": ("v1", "v2"),
    "stage": ("parse", "score", "sink"),
}
"""Columns with few values; others take any of their type."""
_WINDOW: Final = ("window_start", "window_seconds", "model_version", "run_id")
_PROFILE: Final = ("profile_id", "model_version", "feature")
_LETTER: Final = ("stage", "errorMessage", "attempt", "payloadBytes")


class Rows:
    """Rows of the tables, the same for the same seed.

    Args:
      seed: of the generator.
      ambiguous: whether rows that differ may share key and time, so that either may be the latest.
      tied: whether all numbers are equal, and there are two times.
    """

    def __init__(self, seed: int, ambiguous: bool = False, tied: bool = False) -> None:
        self._random = random.Random(seed)
        self._ambiguous = ambiguous
        self._values = VALUES | ({pa.float64(): NUMBERS[-1:], MOMENT: TIMES[:2]} if tied else {})

    def table(self, spec: tables.TableSpec, count: int) -> list[dict[str, Any]]:
        """Rows: two thirds new, some of them again as they are, some again scored anew, at another time."""
        made = [self._record(spec.schema) for _ in range(2 * count // 3)]
        copies = [dict(row) for row in self._random.choices(made, k=len(made) // 2)] if made else []
        for row in copies[: len(copies) // 2]:
            row |= {
                name: value
                for name, value in self._record(spec.schema).items()
                if name not in _kept(row, spec.name)
            }
            if "attributes" in row:  # in the order of another process
                row["attributes"] = self._random.sample(row["attributes"], len(row["attributes"]))
        stored = [*made, *copies]
        self._random.shuffle(stored)
        return stored if self._ambiguous else _same_where_equal(stored, spec)

    def notes(self, letters: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table of what was sent, for these letters."""
        return [self._record(tables.REPLAYED_RECORDS) | {"letter": letter} for letter in letters]

    def _record(self, fields: Iterable[pa.Field]) -> dict[str, Any]:
        return {field.name: self._value(field) for field in fields}

    def _value(self, field: pa.Field) -> Any:
        kind = field.type
        if pa.types.is_list(kind):  # never null in BigQuery, nor has it elements that are
            items = range(self._random.choice((0, 1, 3)))
            return [self._value(kind.value_field.with_nullable(False)) for _ in items]
        if field.nullable and self._random.random() < 0.2:
            return None
        if pa.types.is_struct(kind):
            return self._record(kind)
        return self._random.choice(POOLS.get(field.name) or self._values[kind])


def key_of(row: Mapping[str, Any], table: str) -> tuple[Any, ...]:
    """The columns that copies of a row share: written again, not taken from the declaration."""
    match table:
        case tables.SCORES_TABLE | tables.ALERTS_TABLE:
            return row["transaction_id"], None if row["event_time_derived"] else row["event_time"]
        case tables.ERRORS_TABLE:
            pairs = sorted((repr(pair["key"]), repr(pair["value"])) for pair in row["attributes"])
            return *(row[name] for name in _LETTER), tuple(pairs)
        case tables.REPLAYED_TABLE:
            return (row["letter"],)
        case tables.WINDOWS_TABLE:
            return tuple(row[name] for name in _WINDOW)
        case tables.PROFILES_TABLE:
            return tuple(row[name] for name in _PROFILE)
    raise LookupError(f"{table}: what tells its rows apart?")


def identity(row: Mapping[str, Any], spec: tables.TableSpec) -> str:
    """The columns that two rows share of which the view may show either: key and time."""
    return repr([key_of(row, spec.name), *(row[column] for column in spec.latest)])


def _kept(row: Mapping[str, Any], table: str) -> set[str]:
    """The columns that a copy has in common with a row."""
    match table:
        case tables.SCORES_TABLE | tables.ALERTS_TABLE:
            names = {"transaction_id", "event_time_derived"}
            return names if row["event_time_derived"] else {*names, "event_time"}
        case tables.ERRORS_TABLE:
            return {*_LETTER, "attributes"}
        case tables.WINDOWS_TABLE:
            return {*_WINDOW}
        case tables.PROFILES_TABLE:
            return {*_PROFILE}
    return {"letter"}


def _same_where_equal(rows: list[dict[str, Any]], spec: tables.TableSpec) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    return [first.setdefault(identity(row, spec), row) for row in rows]


def batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows in Arrow, as the pipelines store them."""
    return pa.RecordBatch.from_pylist(rows, schema)

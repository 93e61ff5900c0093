"""Generated rows for the tables: duplicates, re-scored rows, equal times, ties, NULLs, hostile text."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from model.thresholds import SEVERITIES
from transforms import tables

NOON: Final = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)

TEXTS: Final = (
    "",
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
    "event_time: 2026-03-08T12:00:00+00:00, which is in_the_future",
    "anomaly_score: the model gave nan",
    *TEXTS,
)
PAYLOADS: Final = (None, b"", b"{}", b"\x00\xff\xfe", "é\n\"'".encode(), b"a" * 100)
NUMBERS: Final = (0.0, 0.5, 1.0, 2.25, -3.75, 12.3456, 99.999, 1e-9, 123456.789, 1e300)
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


class Rows:
    """Rows of the tables, the same for the same seed.

    Args:
      seed: of the generator.
      ambiguous: whether rows that differ may share key and time, so that either may be the latest.
    """

    def __init__(self, seed: int, ambiguous: bool = False) -> None:
        self._random = random.Random(seed)
        self._ambiguous = ambiguous

    def tables(self, count: int) -> dict[str, list[dict[str, Any]]]:
        """About `count` rows of each table, by its name."""
        scores = self._stored([self._score() for _ in range(count // 2)], tables.scores_table())
        alerts = [
            {name: row[name] for name in tables.alerts_table().schema.names if name != "threshold"}
            | {"threshold": row["anomaly_score"]}
            for row in scores
            if row["severity"] != SEVERITIES[0]
        ]
        letters = [self._letter() for _ in range(count // 2)]
        notes = [self._note() for _ in range(count // 2)]
        return {
            tables.SCORES_TABLE: scores,
            tables.ALERTS_TABLE: alerts,
            tables.ERRORS_TABLE: self._stored(letters, tables.error_records_table()),
            tables.REPLAYED_TABLE: self._stored(notes, tables.replayed_records_table()),
        }

    def _stored(self, rows: list[dict[str, Any]], spec: tables.TableSpec) -> list[dict[str, Any]]:
        """Rows, some of them twice as they are, some again with another score and time, in any order."""
        copies = [dict(row) for row in self._random.choices(rows, k=len(rows) // 2)] if rows else []
        for row in copies[: len(copies) // 2]:
            row[spec.latest] = self._time()
            if "anomaly_score" in row:
                row["anomaly_score"] = self._random.choice(NUMBERS)
        found = [*rows, *copies]
        self._random.shuffle(found)
        return found if self._ambiguous else _same_where_equal(found, spec)

    def _time(self) -> dt.datetime:
        return self._random.choice(TIMES)

    def _maybe(self, values: tuple[Any, ...]) -> Any:
        return None if self._random.random() < 0.2 else self._random.choice(values)

    def _score(self) -> dict[str, Any]:
        moment = self._time()
        return {
            "transaction_id": self._random.choice(TEXTS),
            "account_id": self._maybe(TEXTS[:8]),
            "event_time": moment,
            "anomaly_score": self._random.choice(NUMBERS),
            "severity": self._random.choice(SEVERITIES),
            "encoded": [self._random.choice(NUMBERS) for _ in range(self._random.choice((0, 4)))],
            "top_features": [
                {"feature": self._maybe(("V1", "V14", "Amount")), "contribution": self._maybe(NUMBERS)}
                for _ in range(self._random.choice((0, 1, 3)))
            ],
            "model_version": self._random.choice(("v1", "v2", *TEXTS[10:12])),
            "scored_at": self._random.choice((moment, self._time())),
        }

    def _letter(self) -> dict[str, Any]:
        return {
            "timestamp": self._time(),
            "payloadString": self._maybe(TEXTS),
            "payloadBytes": self._random.choice(PAYLOADS),
            "attributes": [
                {"key": self._random.choice(TEXTS), "value": self._maybe(TEXTS)}
                for _ in range(self._random.choice((0, 1, 2)))
            ],
            "errorMessage": self._random.choice(REASONS),
            "stacktrace": self._maybe(TEXTS),
            "stage": self._random.choice(("parse", "score", "sink")),
            "attempt": self._random.randrange(3),
        }

    def _note(self) -> dict[str, Any]:
        return {
            "letter": self._random.choice(TEXTS),
            "attempt": self._random.randrange(1, 4),
            "topic": self._random.choice(TEXTS),
            "replayed_at": self._time(),
        }


def identity(row: Mapping[str, Any], spec: tables.TableSpec) -> str:
    """Of two copies of a row that the view cannot tell apart: its key and its time."""
    # A part of the key is a column, or TO_JSON_STRING(column).
    columns = [re.sub(r"\w+\((\w+)\)", r"\1", part) for part in (*spec.key, spec.latest)]
    return repr([row[column] for column in columns])


def _same_where_equal(rows: list[dict[str, Any]], spec: tables.TableSpec) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    return [first.setdefault(identity(row, spec), row) for row in rows]


def batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows in Arrow, as the pipelines store them."""
    return pa.RecordBatch.from_pylist(rows, schema)

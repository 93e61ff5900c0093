"""Observations of scored rows and dead letters as Beam metrics: how late, how high, which kinds.

The names are few, whatever comes: none has a text of a message in it. docs/runbook.md says what each means.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import pyarrow as pa

from transforms import metrics
from transforms.schema import KEY_FIELDS

ROWS: Final = 8
"""Rows of a batch at most whose latency and score are taken: one more costs half a microsecond."""
OTHER: Final = "other"
FIELDS: Final = frozenset(
    ("payload", "features", "anomaly_score", *(f.name for f in KEY_FIELDS if f.name != "event_time_derived"))
)
"""Fields that have a counter of their own; those of a feature spec are OTHER."""
_MOST: Final = 2.0**53
_MILLI: Final = 1000
_MICROS: Final = pa.int64()


def observed(scores: pa.RecordBatch) -> dict[str, list[int]]:
    """Takes the observations of a SCORES batch, by the name of their distribution.

    Some rows stand for all of them, but the newest event is looked for among all.
    """
    if not scores.num_rows:
        return {}
    events, scored = (scores[name].view(_MICROS).to_numpy() for name in ("event_time", "scored_at"))
    millis = np.maximum((scored - events) // _MILLI, 0)
    some = slice(None, None, -(-scores.num_rows // ROWS))
    heights = np.clip(scores["anomaly_score"].to_numpy()[some] * _MILLI, 0, _MOST)
    return {
        metrics.EVENT_TO_SCORED: millis[some].tolist(),
        metrics.FRESHNESS: [int(millis.min())],
        metrics.SCORE_MILLI: heights.astype(np.int64).tolist(),
    }


class Observer:
    """Feeds the distributions of scored rows; for one DoFn."""

    def __init__(self) -> None:
        names = (metrics.EVENT_TO_SCORED, metrics.FRESHNESS, metrics.SCORE_MILLI)
        self._distributions = {name: metrics.distribution(name) for name in names}

    def add(self, scores: pa.RecordBatch) -> None:
        """Adds the observations of a SCORES batch."""
        for name, values in observed(scores).items():
            update = self._distributions[name].update
            for value in values:
                update(value)


def letter_counters(letters: pa.RecordBatch) -> Counter[str]:
    """Counts an ERROR_RECORDS batch by stage and by the field that the reason begins with.

    >>> from transforms.dead_letter import dead_letters
    >>> reasons = ["payload: not JSON", "event_time: absent", "merchant.country: expected text", "a b"]
    >>> dict(letter_counters(dead_letters([b""] * 4, reasons, "parse"))) == {
    ...     "dead_letters.parse.payload": 1,
    ...     "dead_letters.parse.event_time": 1,
    ...     "dead_letters.parse.other": 2,
    ... }
    True
    """
    reasons, stages = (letters[name].to_pylist() for name in ("errorMessage", "stage"))
    counts: Counter[str] = Counter()
    for reason, stage in zip(reasons, stages, strict=True):
        field = reason.partition(":")[0]
        counts[f"{metrics.DEAD_LETTERS}.{stage}.{field if field in FIELDS else OTHER}"] += 1
    return counts


def alert_counters(alerts: pa.RecordBatch) -> dict[str, int]:
    """Counts an ALERTS batch by severity: "alerts_medium", "alerts_high"."""
    counts = Counter(alerts["severity"].to_pylist())
    return {f"{metrics.ALERTS}_{severity}": count for severity, count in counts.items()}

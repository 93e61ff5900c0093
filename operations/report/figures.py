"""The figures of the page, read from BigQuery. No drawing here."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from google.cloud import bigquery

from common.command import CommandError
from operations import query
from operations.report import queries

STEPS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400, 604_800)
"""Seconds that a step of a time axis can have: each a part of a day, or whole days."""
MOST_STEPS: Final = 120
LAST_ALERTS: Final = 20
REASONS: Final = 1000
"""Enough that their sum is the number of all dead letters."""
FEATURES: Final = 200
"""Rows of the drift, one a feature and model."""
SHADOWS: Final = 60
"""Rows of the shadow agreement, one a day and pair of versions."""
_AT_ONCE: Final = 4
"""Queries that run at the same time."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Figures:
    """The state of a dataset at one moment.

    Attributes:
      dataset: "PROJECT.DATASET".
      since: the earliest event time.
      made_at: when it was read.
      scanned_bytes: of all queries together, by their dry runs.
      scored_step: seconds of a step of the axis of scored_at.
      event_step: the same of event_time.
      extent: first and last times; all None without scores.
      rows: of each statement, by its name.
    """

    dataset: str
    since: dt.datetime
    made_at: dt.datetime
    scanned_bytes: int
    scored_step: int
    event_step: int
    extent: dict[str, dt.datetime | None]
    rows: dict[str, Rows]


def statements(dataset: str, since: dt.datetime, scored_step: int, event_step: int) -> dict[str, str]:
    """Makes the statements of the page, by name."""
    return {
        "pace": queries.pace(dataset, since, scored_step),
        "score_distribution": queries.score_distribution(dataset, since),
        "alerts_over_time": queries.alerts_over_time(dataset, since, event_step),
        "last_alerts": queries.last_alerts(dataset, since, LAST_ALERTS),
        "thresholds": queries.thresholds(dataset, since),
        "dead_letters": query.sql("dead_letters", dataset, since, REASONS),
        "feature_drift": query.sql("feature_drift", dataset, since, FEATURES),
        "model_versions": queries.model_versions(dataset, since),
        "versions_over_time": queries.versions_over_time(dataset, since, scored_step),
        "shadow_agreement": query.sql("shadow_agreement", dataset, since, SHADOWS),
    }


def step(first: dt.datetime | None, last: dt.datetime | None) -> int:
    """Chooses the seconds of a step, so that the axis has at most MOST_STEPS, or weeks.

    >>> step(dt.datetime(2026, 3, 1), dt.datetime(2026, 3, 2))
    1800
    """
    seconds = (last - first).total_seconds() if first and last else 0.0
    return next((each for each in STEPS if seconds / each <= MOST_STEPS), STEPS[-1])


def read(client: bigquery.Client, dataset: str, since: dt.datetime, max_bytes: int) -> Figures:
    """Reads the figures, unless all queries together would scan more than `max_bytes`; 0 is no limit.

    Raises:
      CommandError: they would.
    """
    made_at = dt.datetime.now(dt.UTC)
    extent_sql = queries.extent(dataset, since)
    # The bytes do not depend on the steps, so that the limit is checked before anything runs.
    scans = sum(
        query.scanned_bytes(client, each)
        for each in (extent_sql, *statements(dataset, since, STEPS[0], STEPS[0]).values())
    )
    if max_bytes and scans > max_bytes:
        raise CommandError(
            f"the page would scan {scans:,} bytes, over --max_bytes={max_bytes}: "
            "pass a later --since, or more --max_bytes"
        )
    (extent,) = query.run(client, extent_sql, max_bytes or None)
    scored_step = step(extent["first_scored"], extent["last_scored"])
    event_step = step(extent["first_event"], extent["last_event"])
    texts = statements(dataset, since, scored_step, event_step)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        results = threads.map(lambda text: query.run(client, text, max_bytes or None), texts.values())
        rows = dict(zip(texts, results, strict=True))
    return Figures(dataset, since, made_at, scans, scored_step, event_step, extent, rows)

"""Names of the Beam counters that let a test, or an operator, check that no row was lost.

For a finished job: ROWS_IN = ROWS_SCORED + DEAD_LETTERS. Rows that a sink refuses have their own counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult

NAMESPACE: Final = "anomaly"
ROWS_IN: Final = "rows_in"
ROWS_SCORED: Final = "rows_scored"
DEAD_LETTERS: Final = "dead_letters"
ALERTS: Final = "alerts"
ALERTS_SUPPRESSED: Final = "alerts_suppressed"
"""Alerts that the table has and the topic got no message of; see `transforms.cooldown`."""
IDS_DERIVED: Final = "ids_derived"
"""Transactions that had no id, and got one from their content."""
TIMES_DEFAULTED: Final = "times_defaulted"
"""Transactions that had no time, and got that of their publication or of the job's launch."""
UNSTORED: Final = "dead_letters_unstored"
"""Counts dead letters that BigQuery itself refused; the log names each, and its message is lost."""
VALUES_OUT_OF_RANGE: Final = "values_out_of_range"
"""Values of features that lie outside the range of the training; see `features.ranges`."""

MODEL_REFRESHES: Final = "model_refreshes"
"""New models that a worker process took over (--model_refresh_seconds)."""
MODEL_REFUSALS: Final = "model_refusals"
"""Artifacts that a worker process did not take over: damaged, for other features, or out of reach."""

SHADOW_UNSCORED: Final = "shadow_rows_unscored"
"""Rows that have no score of --shadow_model, because it could not be loaded or failed."""

EVENT_TO_SCORED: Final = "event_to_scored_ms"
"""Distribution of the time from an event to its score; see `transforms.observations`."""
FRESHNESS: Final = "freshness_ms"
"""Distribution of the age of the newest event of each batch when it was scored."""
SCORE_MILLI: Final = "anomaly_score_milli"
"""Distribution of the anomaly score in thousandths: Beam's distributions are of whole numbers."""
MODEL_AGE: Final = "model_age_seconds"
"""Distribution of the time for which a worker process has had its model, at each batch."""


def counter(name: str) -> Metrics.DelegatingCounter:
    """Makes the counter of this name in the project's namespace."""
    return Metrics.counter(NAMESPACE, name)


def distribution(name: str) -> Metrics.DelegatingDistribution:
    """Makes the distribution of this name in the project's namespace."""
    return Metrics.distribution(NAMESPACE, name)


def add(amounts: Mapping[str, float]) -> None:
    """Adds to the counters of these names, in whole numbers; a counter that does not move is not reported."""
    for name, amount in amounts.items():
        if whole := round(amount):
            counter(name).inc(whole)


def totals(result: PipelineResult) -> dict[str, int]:
    """Sums the project's counters over the steps.

    They are of committed bundles, each once, where the runner reports these, and otherwise of all attempts.
    """
    sums: dict[str, int] = {}
    for metric in result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]:
        name = metric.key.metric.name
        sums[name] = sums.get(name, 0) + (metric.result or 0)
    return sums

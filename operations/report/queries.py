"""The SQL of the page: one function a statement, bounded by event time, for which BigQuery prunes days."""

from __future__ import annotations

import datetime as dt
from typing import Final

from operations import query
from transforms import tables

BINS_PER_DECADE: Final = 10
"""Bins of the score distribution between a power of ten and the next."""
LEAST_SCORE: Final = 0.001
"""Lower scores, and those that have no logarithm, fall into the first bin."""

_COPIES: Final = f"PARTITION BY {', '.join(tables.TRANSACTION_KEY)}"
_LATEST: Final = f"QUALIFY ROW_NUMBER() OVER ({_COPIES} ORDER BY scored_at DESC, event_time DESC) = 1"
_FIRST: Final = f"QUALIFY ROW_NUMBER() OVER ({_COPIES} ORDER BY scored_at, event_time) = 1"
_LATEST_BY_MODEL: Final = (
    f"QUALIFY ROW_NUMBER() OVER ({_COPIES}, model_version ORDER BY scored_at DESC, event_time DESC) = 1"
)
"""Conditions that keep one of the copies of a transaction, as the named queries do."""


def extent(dataset: str, since: dt.datetime) -> str:
    """Makes the query of the first and the last time in the scores, which bound the axes."""
    return f"""\
SELECT
  MIN(scored_at) AS first_scored, MAX(scored_at) AS last_scored,
  MIN(event_time) AS first_event, MAX(event_time) AS last_event
FROM `{dataset}.scores`
WHERE event_time >= {_moment(since)}"""  # noqa: S608 - the form of the dataset is checked


def pace(dataset: str, since: dt.datetime, step: int) -> str:
    """Makes the query of throughput and latency by time of the first score.

    Args:
      dataset: "PROJECT.DATASET".
      since: the earliest event time.
      step: seconds.
    """
    latency = "TIMESTAMP_DIFF(scored_at, event_time, MILLISECOND)"
    return f"""\
WITH first_scores AS (
  SELECT event_time, scored_at
  FROM `{dataset}.scores`
  WHERE event_time >= {_moment(since)}
  {_FIRST}
)
SELECT
  {_start("scored_at", step)} AS time,
  COUNT(*) AS transactions,
  COUNT(*) / {step:d} AS per_second,
  APPROX_QUANTILES({latency}, 100)[OFFSET(50)] AS p50_ms,
  APPROX_QUANTILES({latency}, 100)[OFFSET(99)] AS p99_ms
FROM first_scores
GROUP BY time
ORDER BY time"""  # noqa: S608


def score_distribution(dataset: str, since: dt.datetime) -> str:
    """Makes the query of the number of transactions by severity and bin of the score.

    Bin n is from 10 ** (n / 10) on.
    """
    logarithm = f"LOG10(GREATEST(anomaly_score, {LEAST_SCORE}))"
    return f"""\
WITH latest AS (
  SELECT anomaly_score, severity
  FROM `{dataset}.scores`
  WHERE event_time >= {_moment(since)}
  {_LATEST}
)
SELECT
  CAST(FLOOR({BINS_PER_DECADE} * {logarithm}) AS INT64) AS bin,
  severity,
  COUNT(*) AS transactions
FROM latest
GROUP BY bin, severity
ORDER BY bin, severity"""  # noqa: S608


def alerts_over_time(dataset: str, since: dt.datetime, step: int) -> str:
    """Makes the query of transactions and alerts by event time, by the latest scores; `step` is seconds."""
    return f"""\
WITH latest AS (
  SELECT event_time, severity
  FROM `{dataset}.scores`
  WHERE event_time >= {_moment(since)}
  {_LATEST}
)
SELECT
  {_start("event_time", step)} AS time,
  COUNT(*) AS transactions,
  COUNTIF(severity = 'medium') AS medium,
  COUNTIF(severity = 'high') AS high
FROM latest
GROUP BY time
ORDER BY time"""  # noqa: S608


def last_alerts(dataset: str, since: dt.datetime, limit: int) -> str:
    """Makes the query of the last alerts as they were raised, the newest first.

    `top_features` comes whole, so that it brings the values of the features where the table has them.
    """
    return f"""\
SELECT
  transaction_id, account_id, event_time, amount, anomaly_score, severity, threshold, top_features,
  model_version
FROM `{dataset}.alerts`
WHERE event_time >= {_moment(since)}
{_LATEST}
ORDER BY event_time DESC, anomaly_score DESC, transaction_id, event_time_derived
LIMIT {limit:d}"""  # noqa: S608


def thresholds(dataset: str, since: dt.datetime) -> str:
    """Makes the query of the thresholds that the alerts have reached, by model version."""
    return f"""\
SELECT model_version, severity, MAX(threshold) AS threshold, MAX(scored_at) AS last_alert
FROM `{dataset}.alerts`
WHERE event_time >= {_moment(since)}
GROUP BY model_version, severity
ORDER BY last_alert, model_version, severity"""  # noqa: S608


def model_versions(dataset: str, since: dt.datetime) -> str:
    """Makes the query of the model versions: what each has scored, and how high."""
    return f"""\
WITH latest AS (
  SELECT model_version, anomaly_score, severity, scored_at
  FROM `{dataset}.scores`
  WHERE event_time >= {_moment(since)}
  {_LATEST_BY_MODEL}
)
SELECT
  model_version,
  COUNT(*) AS transactions,
  COUNTIF(severity IN ('medium', 'high')) AS alerts,
  ROUND(100 * COUNTIF(severity IN ('medium', 'high')) / COUNT(*), 3) AS alert_percent,
  ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(50)], 3) AS score_p50,
  ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(99)], 3) AS score_p99,
  MIN(scored_at) AS first_scored,
  MAX(scored_at) AS last_scored
FROM latest
GROUP BY model_version
ORDER BY last_scored DESC, model_version"""  # noqa: S608


def versions_over_time(dataset: str, since: dt.datetime, step: int) -> str:
    """Makes the query of transactions by model version and time of the score; `step` is seconds."""
    return f"""\
WITH latest AS (
  SELECT model_version, scored_at
  FROM `{dataset}.scores`
  WHERE event_time >= {_moment(since)}
  {_LATEST_BY_MODEL}
)
SELECT
  {_start("scored_at", step)} AS time,
  model_version,
  COUNT(*) AS transactions
FROM latest
GROUP BY time, model_version
ORDER BY time, model_version"""  # noqa: S608


def _moment(since: dt.datetime) -> str:
    return f"TIMESTAMP '{query.timestamp(since)}'"


def _start(column: str, step: int) -> str:
    """The start of the step of the time axis that a moment falls into."""
    # Truncated first: the local stack rounds a moment to its nearest second, BigQuery takes the one before.
    seconds = f"UNIX_SECONDS(TIMESTAMP_TRUNC({column}, SECOND))"
    return f"TIMESTAMP_SECONDS({seconds} - MOD({seconds}, {step:d}))"

-- Alert rate and score quantiles by day and model version: does the score drift, did a new model change it?
WITH latest AS (  -- by every model, so that two models are compared on the same transactions and days
  SELECT
    model_version, anomaly_score, severity,
    MIN(event_time) OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time)
    ) AS first_time
  FROM
    `anomaly.scores`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time), model_version
      ORDER BY scored_at DESC, event_time DESC
    ) = 1
)
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    TIMESTAMP_TRUNC(first_time, DAY) AS day,
    model_version,
    COUNT(*) AS transactions,
    ROUND(100 * COUNTIF(severity IN ('medium', 'high')) / COUNT(*), 3) AS alert_percent,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(50)], 3) AS score_p50,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(99)], 3) AS score_p99
  FROM
    latest
  GROUP BY
    day, model_version
  ORDER BY
    day DESC, model_version DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  day, model_version

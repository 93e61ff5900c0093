-- Quantiles of the score by hour and model version: have the scores moved, and when?
WITH latest AS (  -- by every model, so that two models are compared on the same transactions
  SELECT
    event_time, model_version, anomaly_score
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
    TIMESTAMP_TRUNC(event_time, HOUR) AS hour,
    model_version,
    COUNT(*) AS transactions,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(5)], 3) AS score_p5,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(50)], 3) AS score_p50,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(95)], 3) AS score_p95,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(99)], 3) AS score_p99,
    ROUND(MAX(anomaly_score), 3) AS score_max
  FROM
    latest
  GROUP BY
    hour, model_version
  ORDER BY
    hour DESC, model_version DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  hour, model_version

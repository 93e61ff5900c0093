-- Alert rate and score quantiles by day and model version: does the score drift, did a new model change it?
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    TIMESTAMP_TRUNC(event_time, DAY) AS day,
    model_version,
    COUNT(*) AS transactions,
    ROUND(100 * COUNTIF(severity IN ('medium', 'high')) / COUNT(*), 3) AS alert_percent,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(50)], 3) AS score_p50,
    ROUND(APPROX_QUANTILES(anomaly_score, 100)[OFFSET(99)], 3) AS score_p99
  FROM
    `anomaly.scores_latest`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  GROUP BY
    day, model_version
  ORDER BY
    day DESC, model_version DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  day, model_version

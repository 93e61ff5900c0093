-- Alerts and transactions by hour of event time, by the latest scores.
WITH latest AS (
  SELECT
    event_time, severity
  FROM
    `anomaly.scores`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time)
      ORDER BY scored_at DESC, event_time DESC
    ) = 1
)
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    TIMESTAMP_TRUNC(event_time, HOUR) AS hour,
    COUNT(*) AS transactions,
    COUNTIF(severity = 'medium') AS medium,
    COUNTIF(severity = 'high') AS high,
    ROUND(100 * COUNTIF(severity IN ('medium', 'high')) / COUNT(*), 3) AS alert_percent
  FROM
    latest
  GROUP BY
    hour
  ORDER BY
    hour DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  hour

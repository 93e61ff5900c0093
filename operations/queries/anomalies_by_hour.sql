-- Alerts and transactions by hour of event time.
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
    `anomaly.scores_latest`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  GROUP BY
    hour
  ORDER BY
    hour DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  hour

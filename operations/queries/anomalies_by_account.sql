-- The accounts with the most alerts.
SELECT
  account_id,
  COUNT(*) AS alerts,
  COUNTIF(severity = 'high') AS high,
  ROUND(MAX(anomaly_score), 2) AS max_score,
  MIN(event_time) AS first_alert,
  MAX(event_time) AS last_alert
FROM
  `anomaly.alerts_latest`
WHERE
  event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
GROUP BY
  account_id
ORDER BY
  alerts DESC, max_score DESC, account_id
LIMIT
  20 /* limit */

-- Which feature explains the alerts: how often each one contributes most.
SELECT
  top_features[SAFE_OFFSET(0)].feature AS feature,
  COUNT(*) AS alerts,
  COUNTIF(severity = 'high') AS high,
  ROUND(AVG(top_features[SAFE_OFFSET(0)].contribution), 2) AS mean_contribution
FROM
  `anomaly.alerts_latest`
WHERE
  event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
GROUP BY
  feature
ORDER BY
  alerts DESC, feature
LIMIT
  30 /* limit */

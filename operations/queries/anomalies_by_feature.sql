-- Which feature explains the alerts by the latest scores: how often each one contributes most.
WITH latest AS (
  SELECT
    severity, top_features[SAFE_OFFSET(0)] AS top
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
  top.feature AS feature,
  COUNT(*) AS alerts,
  COUNTIF(severity = 'high') AS high,
  ROUND(AVG(top.contribution), 2) AS mean_contribution
FROM
  latest
WHERE
  severity IN ('medium', 'high') AND top.feature IS NOT NULL
GROUP BY
  feature
ORDER BY
  alerts DESC, feature
LIMIT
  30 /* limit */

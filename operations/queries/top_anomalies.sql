-- The transactions with the highest anomaly_score, and the features that explain them.
SELECT
  transaction_id,
  account_id,
  event_time,
  ROUND(anomaly_score, 2) AS anomaly_score,
  severity,
  top_features[SAFE_OFFSET(0)].feature AS feature_1,
  ROUND(top_features[SAFE_OFFSET(0)].contribution, 2) AS contribution_1,
  top_features[SAFE_OFFSET(1)].feature AS feature_2,
  ROUND(top_features[SAFE_OFFSET(1)].contribution, 2) AS contribution_2
FROM
  `anomaly.scores_latest`
WHERE
  event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
ORDER BY
  anomaly_score DESC, transaction_id, event_time
LIMIT
  20 /* limit */

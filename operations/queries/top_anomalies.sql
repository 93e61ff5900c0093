-- The transactions with the highest anomaly_score, and the features that explain them, by the latest scores.
WITH latest AS (
  SELECT
    transaction_id, account_id, event_time, event_time_derived, amount, anomaly_score, severity,
    top_features
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
  transaction_id,
  account_id,
  event_time,
  amount,
  ROUND(anomaly_score, 2) AS anomaly_score,
  severity,
  top_features[SAFE_OFFSET(0)].feature AS feature_1,
  top_features[SAFE_OFFSET(0)].value AS value_1,
  ROUND(top_features[SAFE_OFFSET(0)].contribution, 2) AS contribution_1,
  top_features[SAFE_OFFSET(1)].feature AS feature_2,
  top_features[SAFE_OFFSET(1)].value AS value_2,
  ROUND(top_features[SAFE_OFFSET(1)].contribution, 2) AS contribution_2
FROM
  latest
ORDER BY  -- by the score as it is, not as it is shown
  latest.anomaly_score DESC, transaction_id, event_time, event_time_derived
LIMIT
  20 /* limit */

-- The accounts with the most alerts by the latest scores; transactions without an account are left out.
WITH latest AS (
  SELECT
    account_id, event_time, amount, anomaly_score, severity
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
  account_id,
  COUNT(*) AS alerts,
  COUNTIF(severity = 'high') AS high,
  ROUND(MAX(anomaly_score), 2) AS max_score,
  MAX(amount) AS max_amount,
  MIN(event_time) AS first_alert,
  MAX(event_time) AS last_alert
FROM
  latest
WHERE
  severity IN ('medium', 'high') AND account_id IS NOT NULL
GROUP BY
  account_id
ORDER BY
  alerts DESC, MAX(anomaly_score) DESC, account_id
LIMIT
  20 /* limit */

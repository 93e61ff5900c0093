-- The share of alerts against the budget that the thresholds were calibrated for, by model version and severity.
WITH latest AS (
  SELECT
    model_version, severity
  FROM
    `anomaly.scores`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time), model_version
      ORDER BY scored_at DESC, event_time DESC
    ) = 1
),
reached AS (
  SELECT
    model_version,
    COUNT(*) AS transactions,
    COUNTIF(severity IN ('medium', 'high')) AS medium,
    COUNTIF(severity = 'high') AS high
  FROM
    latest
  GROUP BY
    model_version
),
shares AS (  -- a severity and those above it; the budgets are those of anomaly train
  SELECT
    model_version, 'medium' AS severity, transactions, medium AS alerts, 0.005 AS budget
  FROM
    reached
  UNION ALL
  SELECT
    model_version, 'high' AS severity, transactions, high AS alerts, 0.001 AS budget
  FROM
    reached
)
SELECT
  model_version,
  severity,
  transactions,
  alerts,
  ROUND(100 * alerts / transactions, 3) AS alert_percent,
  ROUND(100 * budget, 3) AS budget_percent,
  ROUND(alerts / transactions / budget, 3) AS times_budget
FROM
  shares
ORDER BY
  model_version, budget DESC
LIMIT
  100 /* limit */

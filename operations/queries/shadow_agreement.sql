-- Would --shadow_model raise the same alerts? Alerts gained and lost, by day and by both versions.
WITH latest AS (  -- a transaction that was delivered or scored twice counts once
  SELECT
    event_time, model_version, severity, shadow_version, shadow_score, shadow_severity
  FROM
    `anomaly.scores`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time)
      ORDER BY scored_at DESC, event_time DESC
    ) = 1
),
compared AS (
  SELECT
    TIMESTAMP_TRUNC(event_time, DAY) AS day,
    model_version,
    shadow_version,
    severity IN ('medium', 'high') AS is_alert,
    COALESCE(shadow_severity IN ('medium', 'high'), FALSE) AS is_shadow_alert
  FROM
    latest
  WHERE
    shadow_version IS NOT NULL AND shadow_score IS NOT NULL
)
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    day,
    model_version,
    shadow_version,
    COUNT(*) AS transactions,
    COUNTIF(is_alert) AS alerts,
    COUNTIF(is_shadow_alert) AS shadow_alerts,
    COUNTIF(is_shadow_alert AND NOT is_alert) AS gained,
    COUNTIF(is_alert AND NOT is_shadow_alert) AS lost,
    ROUND(
      100 * COUNTIF(is_alert AND is_shadow_alert) / NULLIF(COUNTIF(is_alert OR is_shadow_alert), 0), 1
    ) AS agreement_percent
  FROM
    compared
  GROUP BY
    day, model_version, shadow_version
  ORDER BY
    day DESC, model_version DESC, shadow_version DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  day, model_version, shadow_version

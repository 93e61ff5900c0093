-- Latency from the event to its first score, in milliseconds, by minute; the write and the alert follow after it.
WITH first_scores AS (
  SELECT
    event_time, scored_at
  FROM
    `anomaly.scores`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time)
      ORDER BY scored_at, event_time
    ) = 1
)
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    TIMESTAMP_TRUNC(scored_at, MINUTE) AS minute,
    COUNT(*) AS transactions,
    APPROX_QUANTILES(TIMESTAMP_DIFF(scored_at, event_time, MILLISECOND), 100)[OFFSET(50)] AS p50_ms,
    APPROX_QUANTILES(TIMESTAMP_DIFF(scored_at, event_time, MILLISECOND), 100)[OFFSET(99)] AS p99_ms,
    MAX(TIMESTAMP_DIFF(scored_at, event_time, MILLISECOND)) AS max_ms
  FROM
    first_scores
  GROUP BY
    minute
  ORDER BY
    minute DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  minute

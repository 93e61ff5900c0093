-- Latency from the event to its score, in milliseconds, by minute; the write and the alert follow after it.
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
    `anomaly.scores_latest`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  GROUP BY
    minute
  ORDER BY
    minute DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  minute

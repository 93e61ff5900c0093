-- Latency to the first score in milliseconds, by minute: from the event, and step by step from publication to the table.
WITH first_scores AS (
  SELECT
    event_time, scored_at, publish_time, read_at, stored_at
  FROM
    `anomaly.scores`
  WHERE
    event_time >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY transaction_id, IF(event_time_derived, NULL, event_time)
      ORDER BY scored_at, event_time
    ) = 1
),
steps AS (  -- null where a time is not known: without --trace_messages, and in rows of an earlier version
  SELECT
    scored_at,
    TIMESTAMP_DIFF(scored_at, event_time, MILLISECOND) AS event_ms,
    TIMESTAMP_DIFF(read_at, publish_time, MILLISECOND) AS read_ms,
    TIMESTAMP_DIFF(scored_at, read_at, MILLISECOND) AS score_ms,
    TIMESTAMP_DIFF(stored_at, scored_at, MILLISECOND) AS store_ms
  FROM
    first_scores
)
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    TIMESTAMP_TRUNC(scored_at, MINUTE) AS minute,
    COUNT(*) AS transactions,
    APPROX_QUANTILES(event_ms, 100)[OFFSET(50)] AS p50_ms,
    APPROX_QUANTILES(event_ms, 100)[OFFSET(99)] AS p99_ms,
    MAX(event_ms) AS max_ms,
    APPROX_QUANTILES(read_ms, 100)[OFFSET(50)] AS publish_to_read_p50_ms,
    APPROX_QUANTILES(read_ms, 100)[OFFSET(99)] AS publish_to_read_p99_ms,
    APPROX_QUANTILES(score_ms, 100)[OFFSET(50)] AS read_to_scored_p50_ms,
    APPROX_QUANTILES(score_ms, 100)[OFFSET(99)] AS read_to_scored_p99_ms,
    APPROX_QUANTILES(store_ms, 100)[OFFSET(50)] AS scored_to_stored_p50_ms,
    APPROX_QUANTILES(store_ms, 100)[OFFSET(99)] AS scored_to_stored_p99_ms
  FROM
    steps
  GROUP BY
    minute
  ORDER BY
    minute DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  minute

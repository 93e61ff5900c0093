-- Scores summed up while they are written, by window of event time: alerts, score and latency (--window_seconds).
WITH latest AS (  -- the last state of each window; each run counted for itself
  SELECT
    window_start, window_seconds, model_version, transactions, medium, high, score_mean, score_bins, latency_bins
  FROM
    `anomaly.score_windows`
  WHERE
    window_start >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY window_start, window_seconds, model_version, run_id
      ORDER BY pane DESC, computed_at DESC
    ) = 1
),
bins AS (
  SELECT
    window_start, window_seconds, model_version, 'score' AS measure, bin.value, bin.transactions
  FROM
    latest, UNNEST(score_bins) AS bin
  WHERE
    latest.transactions > 0
  UNION ALL
  SELECT
    window_start, window_seconds, model_version, 'latency' AS measure, bin.value, bin.transactions
  FROM
    latest, UNNEST(latency_bins) AS bin
  WHERE
    latest.transactions > 0
),
merged AS (
  SELECT
    window_start, window_seconds, model_version, measure, value, SUM(transactions) AS held
  FROM
    bins
  GROUP BY
    window_start, window_seconds, model_version, measure, value
),
ranked AS (
  SELECT
    window_start, window_seconds, model_version, measure, value, held,
    SUM(held) OVER (PARTITION BY window_start, window_seconds, model_version, measure ORDER BY value) AS reached,
    SUM(held) OVER (PARTITION BY window_start, window_seconds, model_version, measure) AS every
  FROM
    merged
),
quantiles AS (
  SELECT
    window_start, window_seconds, model_version,
    MIN(IF(measure = 'score' AND held > 0 AND 100 * reached >= 50 * every, value, NULL)) AS score_p50,
    MIN(IF(measure = 'score' AND held > 0 AND 100 * reached >= 99 * every, value, NULL)) AS score_p99,
    MIN(IF(measure = 'latency' AND held > 0 AND 100 * reached >= 50 * every, value, NULL)) AS latency_p50_ms,
    MIN(IF(measure = 'latency' AND held > 0 AND 100 * reached >= 99 * every, value, NULL)) AS latency_p99_ms
  FROM
    ranked
  GROUP BY
    window_start, window_seconds, model_version
),
totals AS (
  SELECT
    window_start, window_seconds, model_version,
    SUM(transactions) AS transactions,
    SUM(medium) AS medium,
    SUM(high) AS high,
    SUM(score_mean * transactions) / SUM(transactions) AS score_mean
  FROM
    latest
  WHERE
    transactions > 0
  GROUP BY
    window_start, window_seconds, model_version
)
SELECT
  *
FROM (  -- the latest, oldest first
  SELECT
    window_start,
    window_seconds,
    model_version,
    transactions,
    medium,
    high,
    ROUND(score_mean, 6) AS score_mean,
    ROUND(score_p50, 3) AS score_p50,
    ROUND(score_p99, 3) AS score_p99,
    ROUND(latency_p50_ms, 1) AS latency_p50_ms,
    ROUND(latency_p99_ms, 1) AS latency_p99_ms
  FROM
    totals
  LEFT JOIN
    quantiles
  USING
    (window_start, window_seconds, model_version)
  ORDER BY
    window_start DESC, window_seconds DESC, model_version DESC
  LIMIT
    1000 /* limit */
)
ORDER BY
  window_start, window_seconds, model_version

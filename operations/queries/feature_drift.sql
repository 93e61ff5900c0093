-- Drift by feature since the training: PSI, values outside its range, missing values; the largest PSI first.
WITH latest AS (  -- each count once
  SELECT
    model_version, feature, transactions, outside, missing, missing_share, bins
  FROM
    `anomaly.feature_profiles`
  WHERE
    profiled_at >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  QUALIFY
    ROW_NUMBER() OVER (PARTITION BY profile_id, model_version, feature ORDER BY profiled_at DESC) = 1
),
counted AS (
  SELECT
    model_version, feature, bin.place, bin.transactions AS rows_in_bin, bin.share
  FROM
    latest, UNNEST(bins) AS bin
),
merged AS (
  SELECT
    model_version, feature, place, SUM(rows_in_bin) AS held, MAX(share) AS share
  FROM
    counted
  GROUP BY
    model_version, feature, place
),
shares AS (  -- no share is 0, so that each has a logarithm
  SELECT
    model_version, feature,
    GREATEST(held / GREATEST(SUM(held) OVER (PARTITION BY model_version, feature), 1), 0.001) AS seen,
    GREATEST(share, 0.001) AS trained
  FROM
    merged
),
indexes AS (
  SELECT
    model_version, feature, SUM((seen - trained) * LN(seen / trained)) AS psi
  FROM
    shares
  GROUP BY
    model_version, feature
),
totals AS (
  SELECT
    model_version, feature,
    SUM(transactions) AS transactions,
    SUM(outside) AS outside,
    SUM(missing) AS missing,
    MAX(missing_share) AS missing_share
  FROM
    latest
  GROUP BY
    model_version, feature
)
SELECT
  feature,
  model_version,
  transactions,
  ROUND(psi, 4) AS psi,
  ROUND(100 * outside / transactions, 3) AS outside_percent,
  ROUND(100 * missing / transactions, 3) AS missing_percent,
  ROUND(100 * missing_share, 3) AS trained_missing_percent
FROM
  totals
JOIN
  indexes
USING
  (model_version, feature)
WHERE
  transactions > 0
ORDER BY
  psi DESC, feature, model_version
LIMIT
  200 /* limit */

-- Dead letters by stage and reason; values and positions are folded to N, so that like reasons count together.
WITH letters AS (  -- a message that is delivered again is rejected again
  SELECT
    stage, errorMessage, MIN(timestamp) AS first_seen, MAX(timestamp) AS last_seen
  FROM
    `anomaly.error_records`
  WHERE
    timestamp >= TIMESTAMP '2020-01-01 00:00:00+00' /* since */
  GROUP BY
    stage, errorMessage, attempt, payloadBytes,
    TO_JSON_STRING(ARRAY(SELECT pair FROM UNNEST(attributes) AS pair ORDER BY pair.key, pair.value))
)
SELECT
  stage,
  REGEXP_REPLACE(
    REGEXP_REPLACE(REGEXP_REPLACE(errorMessage, r' [(].*[)]', ''), r', which is \w+', ''),
    r'(: |\[|\b(?:got|least|row|value) )-?[0-9][-0-9:.+eTZ]*', r'\1N'
  ) AS reason,
  COUNT(*) AS messages,
  MIN(first_seen) AS first_seen,
  MAX(last_seen) AS last_seen
FROM
  letters
GROUP BY
  stage, reason
ORDER BY
  messages DESC, reason, stage
LIMIT
  50 /* limit */

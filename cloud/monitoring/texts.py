"""The texts of the alert policies, for somebody who was woken: what it means, where to look, what to do.

Words in braces are filled in by `text`. tests/cloud/test_monitoring_policies.py looks at every command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


def text(policy: str, words: Mapping[str, object]) -> str:
    """Makes the text of a policy, by its id, in Markdown."""
    return TEXTS[policy].format_map(words).strip()


TEXTS: Final[Mapping[str, str]] = {
    "backlog_age": """
**Meaning.** The oldest message of `{subscription}` waits for more than {backlog} minutes. Transactions are
scored late; none is lost: the subscription keeps them for 7 days.

**Look.** Dashboard, panels "BigQuery appends", "Worker memory" and "Throughput".

1. Errors or waits of appends rise: BigQuery refuses or its quota is used up. Rows wait and are stored
   later. "Connections to BigQuery" near its line: fewer workers help, more do not.
2. No rows are scored, memory is near 1: workers are killed. Launch with a larger `--machine_type`.
3. Rows are scored, and more are published: the job is at its most workers.
4. Nothing moves: see the job's messages.

**Do.**

```
anomaly launch list --active {place}
anomaly launch status {job} {place}
anomaly launch streaming {place} {installation} --job_name={job} --update --max_num_workers=8
```
""",
    "freshness": """
**Meaning.** What is older than {age} minutes is not all processed: something was read and stays in the job.

**Look.** Dashboard, panels "Freshness", "Latency by stage" and "BigQuery appends". The stage with the
largest latency holds the rows. With appends that fail, BigQuery is the cause. Otherwise the job's messages
name the error that a bundle repeats. "expected the model that was there at launch" in it: somebody
replaced the files of the running job's model. Put them back, or launch again.

**Do.**

```
anomaly launch status {job} {place}
anomaly query latency --dataset {dataset} --since 1h
anomaly launch streaming {place} {installation} --job_name={job} --update
```
""",
    "dead_letter_share": """
**Meaning.** More than {letters} of the rows of the last 15 minutes became dead letters, at least 10. Each
is a row of `error_records` with its payload and the reason; the others are scored.

**Look.** The first command shows reasons and counts. Stage `parse`: the publisher changed its messages, and
the reason names the field. Stage `score`: the model or the server refuses. Stage `sink`: a table refuses,
as after a change of its schema.

**Do.** Fix the cause; then send the letters again.

```
anomaly query dead_letters --dataset {dataset} --since 1h
anomaly replay --dataset {dataset} --topic {topic} --since 1h --dry_run
anomaly replay --dataset {dataset} --topic {topic} --since 1h
```
""",
    "unstored_letters": """
**Meaning.** BigQuery refused rows of `error_records` themselves. These messages are acknowledged and stored
nowhere: this is loss of data. Each is in the log of the workers with its reason and message id, without its
payload.

**Look.** In the job's logs, search for "BigQuery refused a dead letter".

**Do.** The first command shows whether the table is as declared, the second repairs it. Then read the lost
messages again from the topic, which keeps a day of them: seek the subscription to a time before the first
loss. That scores all messages since then again; the views show each transaction once, and consumers of
alerts get alerts again.

```
anomaly resources status {place} {installation}
anomaly resources create {place} {installation}
gcloud pubsub subscriptions seek {subscription} --project={project} --time=TIME
```
""",
    "alert_share": """
**Meaning.** The alerts of the last hour are more than three times the budget of {budget}, or less than a
third of it. Scores and thresholds no longer fit, or there is an attack.

**Look.** The first command shows when it began and which severity. The second compares scores by day and
model. Many alerts with the same features in `top_features` and drift: the feed changed. Many alerts of few
accounts or merchants: an attack; tell the fraud team. Few alerts: a feature is constant or missing, or
another model was launched.

**Do.** Do not change thresholds at night. Where the reviewers drown, raise the severity that is sent:

```
anomaly query anomalies_by_hour --dataset {dataset} --since 24h
anomaly query score_drift --dataset {dataset} --since 7d
anomaly query top_anomalies --dataset {dataset} --since 1h
anomaly launch streaming {place} {installation} --job_name={job} --update --min_severity=high
```
""",
    "drift": """
**Meaning.** Each transaction of the last hour has on average more than {range} values outside the range of
the training. The model was not trained for them, and its scores mean little.

**Look.** `anomaly watch` names the features, also those that moved within their range. The log of the
workers names them once, with their range and median of the training: search for "do not look like those".
A feature in other units (cents for euros), with another sign or already standardised comes from the
publisher. Without that, the world has changed: train anew.

**Do.** Tell whoever owns the feed. In the morning, train on recent transactions and roll the model out as
docs/runbook.md says.

```
anomaly watch --dataset {dataset} --since 6h
anomaly query feature_drift --dataset {dataset} --since 6h
```
""",
    "no_data": """
**Meaning.** No transaction came out of `{subscription}` for {silence} minutes.

**Look.** Dashboard, panel "Throughput". Messages are published: the job does not run, or does not read.
Nothing is published: the fault is before the topic; tell whoever runs the publisher. A feed that rests at
night: see below.

**Do.** The first command shows whether the job runs. The second starts it; the subscription has kept the
messages for 7 days. For a feed that is silent for hours by nature, pass a longer `--no_data_after` to
`anomaly resources create --monitoring`.

```
anomaly launch list --active {place}
anomaly launch streaming {place} {installation} --job_name={job}
gcloud pubsub subscriptions describe {subscription} --project={project}
```
""",
}
"""The text of each policy, by its id."""

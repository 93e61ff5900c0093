"""Queries of one streaming job's metrics in PromQL, in the form that Cloud Monitoring takes.

Dataflow reports Beam's counters every minute as `dataflow.googleapis.com/job/user_counter`: a gauge with the
total since the job began, for each counter and step, visible up to four minutes later. Names and labels are
those of docs.cloud.google.com/monitoring/api/metrics_gcp_d_h and ..._p_z.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from transforms import metrics
from transforms.bigquery import counters

DEAD_LETTERS: Final = f"{metrics.DEAD_LETTERS}|(scores|alerts)[.]{counters.ROWS_REFUSED}"
"""A regular expression for the counters of dead letters, and of rows that a table refuses."""
APPEND_ERRORS: Final = f".+[.]{counters.APPEND_ERRORS}"
APPEND_WAITED: Final = f".+[.]{counters.APPEND_WAITED}"

LOOKBACK: Final = "10m"
"""A value counts as the present one for this long: it comes up to five minutes late, which is all the time
that PromQL looks back by itself."""


def selector(metric: str, suffix: str = "", **labels: str) -> str:
    """Makes the selector of a metric's time series.

    Args:
      metric: "DOMAIN/PATH", as Google's list of metrics has it.
      suffix: "_count" or another part of a distribution.
      labels: with their values; one that ends with "_like" is a regular expression.

    >>> selector("pubsub.googleapis.com/topic/message_sizes", "_count", topic_id="t")
    'pubsub_googleapis_com:topic_message_sizes_count{topic_id="t"}'
    """
    domain, _, path = metric.partition("/")
    name = ":".join(re.sub("[^A-Za-z0-9]", "_", part) for part in (domain, path))
    matchers = [
        f"{label.removesuffix('_like')}{'=~' if label.endswith('_like') else '='}{json.dumps(value)}"
        for label, value in labels.items()
    ]
    return f"{name}{suffix}{{{','.join(matchers)}}}"


@dataclass(frozen=True)
class Scope:
    """The job, and the topic and subscription that it reads.

    Attributes:
      project: id.
      region: of the job.
      job: name of the job.
      topic: id.
      subscription: id.
    """

    project: str
    region: str
    job: str
    topic: str
    subscription: str

    def job_metric(self, path: str, **labels: str) -> str:
        """Selects a metric of the job by its path behind dataflow.googleapis.com/."""
        resource = "dataflow_worker" if path.startswith("worker/") else "dataflow_job"
        return selector(
            f"dataflow.googleapis.com/{path}",
            monitored_resource=resource,
            project_id=self.project,
            region=self.region,
            job_name=self.job,
            **labels,
        )

    def subscription_metric(self, path: str) -> str:
        """Selects a metric of the subscription by its path behind pubsub.googleapis.com/subscription/."""
        return selector(
            f"pubsub.googleapis.com/subscription/{path}",
            monitored_resource="pubsub_subscription",
            project_id=self.project,
            subscription_id=self.subscription,
        )

    def present(self, series: str, by: str = "") -> str:
        """Takes the largest of the present values, for each value of the label `by` where one is named."""
        return f"max {f'by ({by}) ' if by else ''}(last_over_time({series}[{LOOKBACK}]))"

    def published(self) -> str:
        """Messages a second that publishers send to the topic."""
        sizes = selector(
            "pubsub.googleapis.com/topic/message_sizes",
            "_count",
            monitored_resource="pubsub_topic",
            project_id=self.project,
            topic_id=self.topic,
        )
        return f"sum(rate({sizes}[{LOOKBACK}]))"

    def grown(self, counter: str, window: str, by: str = "") -> str:
        """Computes by how much the counters that match a regular expression grew in a window.

        A counter is reported once it has moved, so that a series without a past began at 0 within the window.
        A job that was updated or launched again has series of its own.
        """
        series = self.job_metric("job/user_counter", metric_name_like=counter)
        now = f"last_over_time({series}[{LOOKBACK}])"
        past = f"last_over_time({series}[{LOOKBACK}] offset {window})"
        return f"sum {f'by ({by}) ' if by else ''}(({now} - {past}) or {now})"

    def grown_or_zero(self, counter: str, window: str) -> str:
        """The same, 0 where no such counter is reported."""
        return f"({self.grown(counter, window)} or vector(0))"

    def share(self, counter: str, whole: str, window: str) -> str:
        """Computes the share of one counter in another over a window; nothing where the other stood still."""
        return f"{self.grown_or_zero(counter, window)} / ({self.grown(whole, window)} > 0)"

    def memory_share(self) -> str:
        """The share of its memory that the fullest worker uses."""
        used = (
            f"sum by (worker_id) (last_over_time({self.job_metric('worker/memory/bytes_used')}[{LOOKBACK}]))"
        )
        limit = self.present(self.job_metric("worker/memory/total_limit"), by="worker_id")
        return f"max({used} / {limit})"

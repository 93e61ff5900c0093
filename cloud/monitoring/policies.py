"""The alert policies: from which value on somebody is told. Their texts are beside this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from cloud.monitoring import texts
from cloud.monitoring.options import MonitoringOptions
from cloud.monitoring.queries import DEAD_LETTERS, Scope
from transforms import metrics

ALERT_FACTOR: Final = 3
"""Alerts are off budget above the budget times this, and below the budget divided by it."""
LEAST_LETTERS: Final = 10
"""Fewer dead letters than this wake nobody, whatever their share."""
LEAST_ALERTS: Final = 20
"""Alerts that an hour has, or should have, before its share is judged: fewer are off by chance."""
LEAST_ROWS: Final = 1000
"""Rows that an hour has before drift is judged."""

Severity = Literal["CRITICAL", "ERROR", "WARNING"]


@dataclass(frozen=True)
class Policy:
    """One alert policy with one condition.

    Attributes:
      id: in the labels of the policy.
      title: name for people; the heading in docs/runbook.md.
      severity: of the incident.
      query: in PromQL; somebody is told while it has a result.
      minutes: for how long it must have one.
      text: Markdown: what it means, where to look, what to do.
    """

    id: str
    title: str
    severity: Severity
    query: str
    minutes: int
    text: str

    def body(self, prefix: str) -> dict[str, Any]:
        """Makes the policy as the API takes it, without labels and channels.

        Args:
          prefix: of the installation's names.
        """
        condition = {
            "query": self.query,
            "duration": f"{60 * self.minutes}s",
            "evaluationInterval": "60s",
            # The API refuses a metric that no job has reported yet.
            "disableMetricValidation": True,
        }
        return {
            "displayName": f"{prefix}anomaly: {self.title}",
            "severity": self.severity,
            "combiner": "OR",
            "enabled": True,
            "conditions": [{"displayName": self.title, "conditionPrometheusQueryLanguage": condition}],
            "alertStrategy": {"autoClose": "1800s"},
            "documentation": {"content": self.text, "mimeType": "text/markdown"},
        }


def policies(scope: Scope, limits: MonitoringOptions, dataset: str, prefix: str) -> tuple[Policy, ...]:
    """Declares the policies of an installation.

    Args:
      scope: the job that is watched.
      limits: from which value on somebody is told.
      dataset: PROJECT.DATASET.
      prefix: of the installation's names.
    """
    words = {
        "job": scope.job,
        "subscription": scope.subscription,
        "topic": f"projects/{scope.project}/topics/{scope.topic}",
        "place": f"--project={scope.project} --region={scope.region}",
        "project": scope.project,
        "dataset": dataset,
        "installation": f"--dataset={dataset.rpartition('.')[2]}" + (f" --prefix={prefix}" if prefix else ""),
        "backlog": f"{limits.max_backlog_age.total_seconds() / 60:g}",
        "age": f"{limits.max_data_age.total_seconds() / 60:g}",
        "silence": f"{limits.no_data_after.total_seconds() / 60:g}",
        "letters": f"{limits.max_dead_letter_share:g}",
        "budget": f"{limits.alert_budget:g}",
        "range": f"{limits.max_out_of_range:g}",
    }

    def policy(name: str, title: str, severity: Severity, query: str, minutes: int = 0) -> Policy:
        return Policy(name, title, severity, query, minutes, texts.text(name, words))

    backlog_age = scope.present(scope.subscription_metric("oldest_unacked_message_age"))
    data_age = scope.present(scope.job_metric("job/data_watermark_age"))
    letters = scope.share(DEAD_LETTERS, metrics.ROWS_IN, "15m")
    alerts = scope.share(metrics.ALERTS, metrics.ROWS_SCORED, "1h")
    scored = scope.grown(metrics.ROWS_SCORED, "1h")
    outside = scope.share(metrics.VALUES_OUT_OF_RANGE, metrics.ROWS_SCORED, "1h")
    silence = f"{limits.no_data_after.total_seconds():.0f}s"
    budget = limits.alert_budget
    many = f"{alerts} > {ALERT_FACTOR * budget:.6g} and {scope.grown(metrics.ALERTS, '1h')} >= {LEAST_ALERTS}"
    few = f"{alerts} < {budget / ALERT_FACTOR:.6g} and {scored} >= {LEAST_ALERTS / budget:.0f}"
    return (
        policy(
            "backlog_age",
            "backlog is old",
            "CRITICAL",
            f"{backlog_age} > {limits.max_backlog_age.total_seconds():.0f}",
            minutes=5,
        ),
        policy(
            "freshness",
            "results are late",
            "CRITICAL",
            f"{data_age} > {limits.max_data_age.total_seconds():.0f}",
            minutes=5,
        ),
        policy(
            "dead_letter_share",
            "many dead letters",
            "ERROR",
            f"{letters} > {limits.max_dead_letter_share:g} "
            f"and {scope.grown(DEAD_LETTERS, '15m')} >= {LEAST_LETTERS}",
        ),
        policy(
            "unstored_letters",
            "dead letters are lost",
            "CRITICAL",
            f"{scope.grown(metrics.UNSTORED, '15m')} > 0",
        ),
        policy("alert_share", "alert share is off budget", "WARNING", f"({many}) or ({few})"),
        policy(
            "drift",
            "transactions are not like those of the training",
            "WARNING",
            f"{outside} > {limits.max_out_of_range:g} and {scored} >= {LEAST_ROWS}",
        ),
        policy(
            "no_data",
            "no transactions",
            "CRITICAL",
            f"{scope.grown_or_zero(metrics.ROWS_IN, silence)} == 0",
            minutes=5,
        ),
    )

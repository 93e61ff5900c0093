"""The dashboard of a streaming job, as the API takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cloud.monitoring.options import MonitoringOptions
from cloud.monitoring.policies import ALERT_FACTOR
from cloud.monitoring.queries import (
    APPEND_ERRORS,
    APPEND_WAITED,
    DEAD_LETTERS,
    Scope,
)
from transforms import metrics

COLUMNS: Final = 48
"""Of the grid; Google allows 48 at most."""
CONNECTIONS: Final = {"region": 1_000, "multi-region": 10_000}
"""Connections of a project that append to BigQuery: cloud.google.com/bigquery/quotas#write-api-limits."""
_WINDOW: Final = "5m"
_WINDOW_SECONDS: Final = 300


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: in the legend; `${LABEL}` stands for the value of a label.
      query: in PromQL; otherwise a monitoring filter.
      aligner: of a filter: how the points of a minute become one.
    """

    name: str
    query: str
    aligner: str = ""
    group_by: str = ""

    def data_set(self) -> dict[str, Any]:
        """Makes the line as the API takes it."""
        source: dict[str, Any] = {"prometheusQuery": self.query}
        if self.aligner:
            aggregation: dict[str, Any] = {
                "alignmentPeriod": "60s",
                "perSeriesAligner": self.aligner,
                "crossSeriesReducer": "REDUCE_MAX" if self.group_by else "REDUCE_SUM",
            }
            if self.group_by:
                aggregation["groupByFields"] = [self.group_by]
            source = {"timeSeriesFilter": {"filter": self.query, "aggregation": aggregation}}
        return {
            "timeSeriesQuery": source,
            "plotType": "LINE",
            "legendTemplate": self.name,
            "minAlignmentPeriod": "60s",
        }


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
      title: name for people, which docs/runbook.md uses.
      unit: of the axis.
      lines: that it draws.
      limits: horizontal lines, by their names.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    limits: tuple[tuple[str, float], ...] = ()

    def widget(self) -> dict[str, Any]:
        """Makes the chart as the API takes it."""
        chart: dict[str, Any] = {
            "dataSets": [line.data_set() for line in self.lines],
            "yAxis": {"label": self.unit, "scale": "LINEAR"},
        }
        if self.limits:
            chart["thresholds"] = [{"label": name, "value": value} for name, value in self.limits]
        return {"title": self.title, "xyChart": chart}


def panels(scope: Scope, limits: MonitoringOptions, dataset_location: str) -> tuple[Panel, ...]:
    """Declares the charts, the first ones on top.

    Args:
      scope: the job that is watched.
      limits: the alert policies', drawn as lines.
      dataset_location: a region or a multi-region, which decides on the quota of connections.
    """

    def rate(counter: str, by: str = "") -> str:
        return f"{scope.grown(counter, _WINDOW, by)} / {_WINDOW_SECONDS}"

    latencies = (
        'metric.type="dataflow.googleapis.com/job/streaming_engine/stage_end_to_end_latencies" '
        f'resource.type="dataflow_job" resource.label.job_name="{scope.job}" '
        f'resource.label.region="{scope.region}"'
    )
    connections = 'metric.type="bigquerystorage.googleapis.com/write/concurrent_connections"'
    quota = CONNECTIONS["region" if "-" in dataset_location else "multi-region"]
    budget, age = limits.alert_budget, limits.max_data_age.total_seconds()
    return (
        Panel(
            "Freshness",
            "seconds",
            (
                Line("age of the watermark", scope.present(scope.job_metric("job/data_watermark_age"))),
                Line("system lag", scope.present(scope.job_metric("job/system_lag"))),
            ),
            (("policy: results are late", age),),
        ),
        Panel(
            "Oldest unacknowledged message",
            "seconds",
            (Line("age", scope.present(scope.subscription_metric("oldest_unacked_message_age"))),),
            (("policy: backlog is old", limits.max_backlog_age.total_seconds()),),
        ),
        Panel(
            "Throughput",
            "a second",
            (
                Line("published", scope.published()),
                Line("read", rate(metrics.ROWS_IN)),
                Line("scored", rate(metrics.ROWS_SCORED)),
            ),
        ),
        Panel(
            "Latency by stage",
            "milliseconds",
            (Line("p99 ${metric.labels.stage}", latencies, "ALIGN_PERCENTILE_99", "metric.label.stage"),),
        ),
        Panel(
            "Alert share",
            "share of the rows scored in an hour",
            (Line("alerts", scope.share(metrics.ALERTS, metrics.ROWS_SCORED, "1h")),),
            (
                ("budget", budget),
                ("policy: too many", ALERT_FACTOR * budget),
                ("policy: too few", budget / ALERT_FACTOR),
            ),
        ),
        Panel(
            "Dead letters",
            "a second",
            (
                Line("${metric_name} of ${ptransform}", rate(DEAD_LETTERS, "metric_name, ptransform")),
                Line("lost", rate(metrics.UNSTORED)),
            ),
        ),
        Panel(
            "BigQuery appends",
            "a second",
            (
                Line("errors: ${metric_name}", rate(APPEND_ERRORS, "metric_name")),
                Line("milliseconds of waiting: ${metric_name}", rate(APPEND_WAITED, "metric_name")),
            ),
        ),
        Panel(
            "Connections to BigQuery",
            "connections of the project",
            (Line("connections", connections, "ALIGN_MAX"),),
            ((f"quota unless it was raised: {quota:,}", quota),),
        ),
        Panel("Worker memory", "share of the fullest worker", (Line("used", scope.memory_share()),)),
        Panel(
            "Values out of range",
            "a transaction",
            (Line("values", scope.share(metrics.VALUES_OUT_OF_RANGE, metrics.ROWS_SCORED, "1h")),),
            (("policy: drift", limits.max_out_of_range),),
        ),
    )


def dashboard(scope: Scope, limits: MonitoringOptions, dataset_location: str, prefix: str) -> dict[str, Any]:
    """Makes the dashboard as the API takes it, without labels: two charts in a row."""
    width, height = COLUMNS // 2, 16
    tiles = [
        {
            "xPos": width * (i % 2),
            "yPos": height * (i // 2),
            "width": width,
            "height": height,
            "widget": panel.widget(),
        }
        for i, panel in enumerate(panels(scope, limits, dataset_location))
    ]
    return {
        "displayName": f"{prefix}anomaly: {scope.job}",
        "mosaicLayout": {"columns": COLUMNS, "tiles": tiles},
    }

"""The report of the demo: its figures, and how they are printed for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.output import print_rows
from transforms import tables


@dataclass
class DemoReport:
    """The figures of one demo.

    Attributes:
      mode: "emulators" or "files".
      left_out: the parts that were not run, each with its reason.
      published: messages.
      rows: of each table, each counted once.
      counters: of the pipeline; a message that was delivered twice counts twice.
      alert_messages: different alerts on the topic.
      comparison: of the scores of stream and batch.
      throughput: transactions a second; with the emulators, no more than are published.
      latency_ms: quantiles, by name of the latency.
      alerts_by_kind: by planted kind.
      dead_letters: by reason.
      top_anomalies: the highest scores.
      picture: file.
      seconds: that the demo took.
    """

    mode: str
    left_out: list[str]
    published: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    alert_messages: int | None = None
    comparison: dict[str, Any] | None = None
    throughput: float | None = None
    latency_ms: dict[str, dict[str, int]] = field(default_factory=dict)
    alerts_by_kind: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: list[dict[str, Any]] = field(default_factory=list)
    top_anomalies: list[dict[str, Any]] = field(default_factory=list)
    picture: str = ""
    seconds: float = 0.0


def print_report(report: DemoReport) -> None:
    """Prints the report for people."""
    print("\nTop anomalies, and the features that explain them")
    print_rows(report.top_anomalies)
    print("\nAlerts by planted kind")
    print_rows(report.alerts_by_kind)
    print("\nDead letters by reason")
    print_rows(report.dead_letters)
    rows = report.rows
    print(
        f"\nConservation   {report.published:,} messages = {rows[tables.SCORES_TABLE]:,} scores"
        f" + {rows[tables.ERRORS_TABLE]:,} dead letters stored"
    )
    alerts = f"Alerts         {rows[tables.ALERTS_TABLE]:,} stored"
    if report.alert_messages is not None:
        alerts += ", the same on the alert topic"
    print(alerts)
    if report.comparison:
        print(f"Same scores    batch and streaming agree on {report.comparison['rows']:,} transactions")
    if report.throughput:
        bound = ", bounded by the publisher's --rate" if report.mode == "emulators" else ""
        print(f"Throughput     {report.throughput:,.0f} transactions/s{bound}")
    for number, (name, waited) in enumerate(report.latency_ms.items()):
        print(f"{'' if number else 'Latency':<15}{name}: p50 {waited['p50']} ms, p99 {waited['p99']} ms")
    print(f"Picture        {report.picture}")
    for text in report.left_out:
        print(f"Left out       {text}")
    print(f"Took           {report.seconds:.0f} s")

"""The report of the demo: its figures, and how they are printed for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.output import print_rows
from model.thresholds import SEVERITIES
from transforms import tables

NORMAL_KIND: Final = "(normal)"


@dataclass(frozen=True)
class Pace:
    """The messages of a job from end to end, and the seconds that it took for them."""

    messages: int
    seconds: float

    def __str__(self) -> str:
        rate = self.messages / self.seconds
        return f"{self.messages:,} messages in {self.seconds:.1f} s, {rate:,.0f} a second"


@dataclass
class DemoReport:
    """The figures of one demo.

    Attributes:
      pubsub: the server of Pub/Sub, "embedded" or "gcloud".
      published: messages.
      rate: messages a second that the publisher was to send.
      rows: of each table, each counted once.
      counters: of the streaming pipeline; a message that was delivered twice counts twice.
      alert_messages: different alerts on the topic.
      stream: from the first message read to the last row stored.
      batch: from the start of the job to the commit of the tables.
      alert_latency_ms: quantiles of the time from the event to its alert on the topic.
      alerts_by_kind: by planted kind.
      queries: the rows of the named queries.
      picture: file.
      page: file.
      seconds: that the demo took.
    """

    pubsub: str | None = None
    published: int = 0
    rate: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    alert_messages: int = 0
    stream: Pace | None = None
    batch: Pace | None = None
    alert_latency_ms: dict[str, int] = field(default_factory=dict)
    alerts_by_kind: list[dict[str, Any]] = field(default_factory=list)
    queries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    picture: str = ""
    page: str = ""
    seconds: float = 0.0


def alert_latency(alerts: Sequence[tuple[str, dt.datetime, dt.datetime]]) -> dict[str, int]:
    """Computes the quantiles of the milliseconds from the event to its alert; the first copy counts.

    Args:
      alerts: transaction_id, event time and publish time of each alert message, one at least.
    """
    first: dict[str, float] = {}
    for name, event, published in alerts:
        waited = (published - event) / dt.timedelta(milliseconds=1)
        first[name] = min(waited, first.get(name, waited))
    p50, p99 = np.quantile(list(first.values()), [0.5, 0.99])
    return {"p50": round(p50), "p99": round(p99)}


def alerts_by_kind(scores: pa.Table) -> list[dict[str, Any]]:
    """Counts the transactions of each planted kind that raised an alert.

    Args:
      scores: columns severity and planted_kind (null for a normal transaction).
    """
    kinds = pc.fill_null(scores.column("planted_kind"), NORMAL_KIND)
    rows = []
    for kind in sorted(pc.unique(kinds).to_pylist(), key=lambda name: (name == NORMAL_KIND, name)):
        severity = scores.column("severity").filter(pc.equal(kinds, kind))
        counts = {name: pc.sum(pc.equal(severity, name)).as_py() or 0 for name in SEVERITIES[1:]}
        share = 100 * sum(counts.values()) / len(severity)
        rows.append(
            {
                "planted_kind": kind,
                "transactions": len(severity),
                **counts,
                "alerted_percent": round(share, 2),
            }
        )
    return rows


def print_report(report: DemoReport) -> None:
    """Prints the report for people."""
    print("\nTop anomalies, and the features that explain them")
    print_rows(report.queries["top_anomalies"])
    print("\nLatency from the event to its score, by minute")
    print_rows(report.queries["latency"])
    print("\nDead letters by reason")
    print_rows(report.queries["dead_letters"])
    print("\nAlerts by planted kind")
    print_rows(report.alerts_by_kind)
    print(
        "A kind with few alerts looks ordinary by itself: each transaction is scored alone, without the "
        "history of its account."
    )
    rows = report.rows
    print(
        f"\nConservation   {report.published:,} messages = {rows[tables.SCORES_TABLE]:,} scores"
        f" + {rows[tables.ERRORS_TABLE]:,} dead letters stored"
    )
    print(f"Alerts         {rows[tables.ALERTS_TABLE]:,} stored, the same on the alert topic")
    print(f"Same scores    batch and streaming agree on {rows[tables.SCORES_TABLE]:,} transactions")
    print(f"Stream         {report.stream}, first read to last row stored; published at --rate={report.rate}")
    print(f"Batch          {report.batch}, start of the job to commit")
    if waited := report.alert_latency_ms:
        print(f"Latency        event to alert message: p50 {waited['p50']} ms, p99 {waited['p99']} ms")
    print(f"Pub/Sub        {report.pubsub}")
    print(f"Picture        {report.picture}")
    print(f"Page           {report.page}: open it in a browser")
    print(f"Took           {report.seconds:.0f} s")

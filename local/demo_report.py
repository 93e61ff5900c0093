"""The report of the demo: its figures, and how they are printed for people."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.output import print_rows
from local.demo_operate import OperatedReport, print_operated
from model.thresholds import SEVERITIES
from operations.reasons import reasons
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
class FeedReport:
    """The figures of one kind of transactions.

    Attributes:
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
      url: of the page while it is served.
    """

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
    url: str = ""


@dataclass
class DemoReport:
    """The figures of one demo.

    Attributes:
      pubsub: the server of Pub/Sub, "embedded" or "gcloud".
      ulb: of the transactions with the 30 numbers of the ULB table.
      cards: of the raw card payments.
      operated: of the stream whose model was replaced.
      seconds: that the demo took.
    """

    pubsub: str
    ulb: FeedReport
    cards: FeedReport
    operated: OperatedReport
    seconds: float


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
    """Counts the transactions of each planted kind that raised an alert, and shows its highest one.

    Args:
      scores: columns anomaly_score, severity, amount, top_features and planted_kind (null for a normal
        transaction).
    """
    scores = scores.set_column(
        scores.schema.get_field_index("planted_kind"),
        "planted_kind",
        pc.fill_null(scores.column("planted_kind"), NORMAL_KIND),
    )
    names = pc.unique(scores.column("planted_kind")).to_pylist()
    rows = []
    for kind in sorted(names, key=lambda name: (name == NORMAL_KIND, name)):
        some = scores.filter(pc.field("planted_kind") == kind)
        alerts = some.filter(pc.field("severity") != SEVERITIES[0]).sort_by([("anomaly_score", "descending")])
        counts = Counter(alerts.column("severity").to_pylist())
        highest = alerts.slice(0, 1).to_pylist()
        rows.append(
            {
                "planted_kind": kind,
                "transactions": len(some),
                **{name: counts[name] for name in SEVERITIES[1:]},
                "alerted_percent": round(100 * len(alerts) / len(some), 2),
                "amount_of_the_highest": highest[0]["amount"] if highest else None,
                "reasons_of_the_highest": reasons(highest[0]["top_features"]) if highest else None,
            }
        )
    return rows


def print_report(report: DemoReport) -> None:
    """Prints the report for people."""
    ulb, cards = report.ulb, report.cards
    print("\nThe 30 numbers of the ULB table: top anomalies, and the features that explain them")
    print_rows(ulb.queries["top_anomalies"])
    print("\nLatency from the event to its score, by minute")
    print_rows(ulb.queries["latency"])
    print("\nDead letters by reason")
    print_rows(ulb.queries["dead_letters"])
    print("\nAlerts by planted kind")
    print_rows(ulb.alerts_by_kind)
    _print_figures(ulb)
    if waited := ulb.alert_latency_ms:
        print(f"Latency        event to alert message: p50 {waited['p50']} ms, p99 {waited['p99']} ms")
    print("\nCard payments, by the feature spec of examples/cards: alerts by planted kind")
    print_rows(cards.alerts_by_kind)
    print(
        "amount_level, payments_burst and new_country compare a payment with the past of its account. "
        "A kind with few alerts looks usual all the same."
    )
    _print_figures(cards)
    print_operated(report.operated)
    print(f"\nPub/Sub        {report.pubsub}")
    print(f"Took           {report.seconds:.0f} s")


def _print_figures(feed: FeedReport) -> None:
    rows = feed.rows
    print(
        f"\nConservation   {feed.published:,} messages = {rows[tables.SCORES_TABLE]:,} scores"
        f" + {rows[tables.ERRORS_TABLE]:,} dead letters stored"
    )
    print(f"Alerts         {rows[tables.ALERTS_TABLE]:,} stored, the same on the alert topic")
    print(f"Same scores    batch and streaming agree on {rows[tables.SCORES_TABLE]:,} transactions")
    print(f"Stream         {feed.stream}, first read to last row stored; published at --rate={feed.rate}")
    print(f"Batch          {feed.batch}, start of the job to commit")
    print(f"Picture        {feed.picture}")
    print(f"Page           {feed.page}: open it in a browser")

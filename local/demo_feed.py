"""One kind of transactions on its way through the product: published, streamed, scored in batch, checked."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.cloud import bigquery
from google.cloud.pubsub_v1.types import ReceivedMessage

from common.clients import BigQueryEndpoints
from common.output import progress
from common.values import moment
from common.writing import writing
from local import topics
from local.demo_commands import DemoError, output, ran, say, started
from local.demo_picture import draw
from local.demo_report import FeedReport, Pace, alert_latency, alerts_by_kind
from local.demo_tables import STORED, kept, read_view
from local.endpoints import Endpoints
from local.runner import LocalResult, LocalStreamingRunner, run_until_drained
from model.manifest import Manifest
from operations import query
from operations.report import page
from operations.report.__main__ import ReportOptions, figures
from operations.report.server import Latest, Server
from pipelines import batch, streaming
from transforms import metrics, tables
from transforms.bigquery.counters import ROWS_WRITTEN
from transforms.files import BLANK_LINES
from transforms.history import LATE

MALFORMED_SHARE: Final = 0.02
PATIENCE_SECONDS: Final = 240
"""Time for the messages of a stream beside that in which they are published."""
SAME: Final = 1e-5
"""Equal scores differ at most by this share, wherever they are computed."""
SAME_WITH_HISTORY: Final = 1e-4
"""The same where a model has history features, whose values are equal to 1e-6."""
REFRESH_SECONDS: Final = 5
"""Between two loads of a page that is served."""


@dataclass(frozen=True)
class Feed:
    """One kind of transactions, and the names and files that it has in the demo.

    Attributes:
      kind: of the transactions, as `anomaly publish --spec` knows it.
      model: path of the artifact.
      manifest: of the model.
      output: directory of the files.
      topic: its name; those of subscription and alert topic begin with it.
      dataset: its name; that of the batch job begins with it.
      count: messages.
      rate: messages a second.
      seed: of the transactions.
      fraud_share: share of planted frauds among them.
      start: of simulated time; None where an event happens when its message is published.
      skip: transactions of the stream before the first that is published.
      past: a file of these, for a model with history features: the jobs begin with its histories.
    """

    kind: str
    model: Path
    manifest: Manifest
    output: Path
    topic: str
    dataset: str
    count: int
    rate: int
    seed: int
    fraud_share: float
    start: dt.datetime | None = None
    skip: int = 0
    past: Path | None = None

    @property
    def lines(self) -> Path:
        """The file of the published messages, as JSON lines."""
        return self.output / "published.jsonl"

    @property
    def labels(self) -> Path:
        """The file of the planted kinds: transaction_id, planted_kind, malformed_kind."""
        return self.output / "labels.parquet"

    @property
    def picture(self) -> Path:
        """The picture of scores and alerts."""
        return self.output / "anomalies.png"

    @property
    def page(self) -> Path:
        """The page of `anomaly report` about the streamed tables."""
        return self.output / "report.html"

    @property
    def history(self) -> Path:
        """The directory of the histories."""
        return self.output / "history"

    @property
    def job_argv(self) -> list[str]:
        """The flags by which both pipelines score the transactions."""
        return [f"--model={self.model}", *([f"--history={self.history}"] if self.past else [])]

    def clear(self) -> None:
        """Makes the directory, or removes the files of an earlier demo from it, and nothing else."""
        self.output.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.history, ignore_errors=True)
        for path in (self.lines, self.labels, self.picture, self.page):
            path.unlink(missing_ok=True)

    def publish(self, topic: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Starts to publish the transactions; `confirmed` waits for the end."""
        sink = ("--topic", topic, "--tee", str(self.lines), "--rate", str(self.rate))
        which = ("--spec", self.kind, "--count", str(self.count), "--seed", str(self.seed))
        skip = ("--skip", str(self.skip)) if self.skip else ()
        times = ("--start_time", self.start.isoformat()) if self.start else ()
        shares = ("--fraud_share", str(self.fraud_share), "--malformed_share", str(MALFORMED_SHARE))
        form = ("--labels", str(self.labels), "--format", "json")
        return started("publish", *sink, *which, *skip, *times, *shares, *form)

    def report_options(self, dataset: str) -> ReportOptions:
        """The options of the page about the streamed tables."""
        since = functools.partial(moment, self.start.isoformat() if self.start else "24h")
        return ReportOptions(dataset=dataset, since=since, max_bytes=0)


@dataclass(frozen=True)
class FeedRun:
    """One run of a feed against the local stack.

    Attributes:
      feed: the transactions.
      endpoints: of the stack.
      is_served: the page is served while the messages stream, and until `pages` is closed.
      pages: closes what was started for the page.
    """

    feed: Feed
    endpoints: Endpoints
    is_served: bool
    pages: contextlib.ExitStack

    @property
    def dataset(self) -> str:
        """The dataset of the stream."""
        return f"{self.endpoints.project}.{self.feed.dataset}"

    def run(self, queries: dict[str, int | None]) -> FeedReport:
        """Publishes to Pub/Sub, streams to BigQuery and the alert topic, scores in batch, compares, queries.

        Args:
          queries: the named queries of the report, and the most rows of each.
        """
        feed, summary = self.feed, FeedReport(rate=self.feed.rate)
        project = self.endpoints.project
        client = BigQueryEndpoints(self.endpoints.bigquery, self.endpoints.bigquery_storage).client(project)
        if feed.past:
            say("Histories of the accounts, from their past payments")
            flags = ("--data", str(feed.past), "--model", str(feed.model), "--output", str(feed.history))
            print(ran("history", "build", *flags), file=sys.stderr)
        say(f"Stream {feed.kind}: Pub/Sub -> parse -> score -> alert -> BigQuery, alert topic")
        topic = topics.create_topic(project, feed.topic)
        subscription = topics.create_subscription(project, f"{feed.topic}-pipeline", topic)
        alert_topic = topics.create_topic(project, f"{feed.topic}-alerts")
        alert_subscription = topics.create_subscription(project, f"{feed.topic}-alerts-demo", alert_topic)
        self.stream(summary, client, topic, subscription, alert_topic)
        stored = {name: read_view(client, self.dataset, name) for name in STORED}
        summary.rows = {name: table.num_rows for name, table in stored.items()}
        scores = stored[tables.SCORES_TABLE]
        check_stored(summary)
        check_alerts(summary, stored[tables.ALERTS_TABLE], alert_subscription)
        say("Batch: the same transactions from a file, committed to BigQuery at once")
        batched = f"{self.dataset}_batch"
        summary.batch = self.batch(batched)
        late = summary.counters.get(LATE, 0)
        within = SAME_WITH_HISTORY if feed.manifest.spec.history else SAME
        check_same(scores, read_view(client, batched, tables.SCORES_TABLE), late, within)
        say("Query the tables")
        for name, limit in queries.items():
            summary.queries[name] = query.run(client, query.sql(name, self.dataset, limit=limit))
        self.look_for_planted(summary, scores)
        say("Report: the state of the streamed tables as a page")
        body = page.render(figures(feed.report_options(self.dataset), client))
        with writing(feed.page, "--output"):
            feed.page.write_bytes(body)
        summary.page = str(feed.page)
        return summary

    def batch(self, dataset: str) -> Pace:
        """Scores the published lines with the batch pipeline."""
        argv = [f"--input={self.feed.lines}", *self.feed.job_argv, f"--output_dataset={dataset}"]
        argv += self.endpoints.pipeline_args()
        print(f"$ anomaly batch {' '.join(argv)}", file=sys.stderr, flush=True)
        before = time.monotonic()
        result = batch.run(argv)
        result.wait_until_finish()
        totals = metrics.totals(result)
        # A message of white space alone is a blank line of the file.
        messages = totals[metrics.ROWS_IN] + totals.get(BLANK_LINES, 0)
        return Pace(messages, time.monotonic() - before)

    def look_for_planted(self, summary: FeedReport, scores: pa.Table) -> None:
        """Counts and draws the alerts among what was planted."""
        labels = pq.read_table(self.feed.labels).select(["transaction_id", "planted_kind"])
        kinds = dict(zip(*(column.to_pylist() for column in labels.columns), strict=True))
        # Arrow joins no lists, which the reasons are.
        planted = pa.array(
            [kinds.get(name) for name in scores.column("transaction_id").to_pylist()], pa.string()
        )
        joined = scores.append_column("planted_kind", planted)
        summary.alerts_by_kind = alerts_by_kind(joined)
        version = self.feed.manifest.model_version
        draw(
            joined,
            self.feed.manifest.thresholds,
            self.feed.picture,
            f"{len(joined):,} transactions, model {version}",
        )
        summary.picture = str(self.feed.picture)

    def stream(
        self, summary: FeedReport, client: bigquery.Client, topic: str, subscription: str, alert_topic: str
    ) -> None:
        """Runs the streaming pipeline while messages are published, until every one is stored."""
        feed = self.feed
        argv = [
            f"--subscription={subscription}",
            *feed.job_argv,
            f"--output_dataset={self.dataset}",
            f"--alert_topic={alert_topic}",
            *self.endpoints.pipeline_args(),
        ]
        print(f"$ anomaly streaming {' '.join(argv)} &", file=sys.stderr, flush=True)
        result = streaming.run(argv, runner=LocalStreamingRunner())
        assert isinstance(result, LocalResult)
        if self.is_served:
            summary.url = self.pages.enter_context(served(feed.report_options(self.dataset), client))
            print(f"The page of these tables: {summary.url}", file=sys.stderr, flush=True)
        with (
            feed.publish(topic) as publisher,
            progress(feed.count, "messages through the stream") as advance,
        ):
            shown = 0
            seconds = 0.0

            def is_done() -> bool:
                nonlocal shown, seconds
                totals = metrics.totals(result)
                written = sum(
                    totals.get(f"{name}.{ROWS_WRITTEN}", 0)
                    for name in (tables.SCORES_TABLE, tables.ERRORS_TABLE)
                )
                if written > shown:
                    advance(written - shown)
                    shown, seconds = written, result.busy_seconds
                if publisher.poll() is None:
                    return False
                summary.published = summary.published or confirmed(publisher)
                # The counters count a message twice that was delivered twice; the views do not.
                return written >= summary.published and kept(client, self.dataset) >= summary.published

            run_until_drained(result, is_done, timeout=feed.count / feed.rate + PATIENCE_SECONDS)
        summary.counters = metrics.totals(result)
        summary.stream = Pace(summary.published, seconds)


@contextlib.contextmanager
def served(options: ReportOptions, client: bigquery.Client) -> Iterator[str]:
    """Serves the page of `anomaly report` on a free port of this machine; yields its address."""
    latest = Latest(lambda: figures(options, client), REFRESH_SECONDS)
    with Server(0, latest, REFRESH_SECONDS) as server:
        thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def confirmed(publisher: subprocess.Popen[str]) -> int:
    """Waits for the end of a publisher, and returns the number of messages that have arrived.

    Raises:
      DemoError: it failed.
    """
    return int(json.loads(output(publisher))["confirmed"])


def check_stored(summary: FeedReport) -> None:
    """Checks by the stored rows that no message was lost.

    Raises:
      DemoError: the rows are not as many as the messages.
    """
    stored = summary.rows[tables.SCORES_TABLE], summary.rows[tables.ERRORS_TABLE]
    if summary.published != sum(stored):
        raise DemoError(
            f"{summary.published} messages were published, {stored[0]} scores and "
            f"{stored[1]} dead letters were stored"
        )


def check_same(streamed: pa.Table, batched: pa.Table, late: int = 0, within: float = SAME) -> None:
    """Compares the scores of stream and batch, transaction by transaction.

    The last bits of a score depend on how many rows are scored at once, by less than SAME. Those of a history
    also depend on how many are counted at once, since sums are rounded in another order.

    Args:
      streamed: the rows of the stream.
      batched: those of the batch job, which takes them in the order of their times.
      late: rows that came to the stream out of this order. The histories of so many accounts may differ.
      within: scores may differ by this share.

    Raises:
      DemoError: they differ, or there are none.
    """
    first, second = (table.sort_by("transaction_id") for table in (streamed, batched))
    are_same = bool(first.num_rows) and first["transaction_id"].equals(second["transaction_id"])
    if are_same:
        one, other = (table["anomaly_score"].to_numpy() for table in (first, second))
        differs = ~np.isclose(one, other, rtol=within, atol=0)
        are_same = not differs.any()
        if not are_same and late:
            are_same = len(pc.unique(first.column("account_id").filter(pa.array(differs)))) <= late
    if not are_same:
        raise DemoError(
            f"batch and streaming disagree: {first.num_rows} and {second.num_rows} scores of transactions"
        )


def check_alerts(summary: FeedReport, alerts: pa.Table, subscription: str) -> None:
    """Takes the alerts from their subscription: each row of the table must be there, and nothing else.

    Raises:
      DemoError: table and topic differ.
    """
    stored = set(alerts.column("transaction_id").to_pylist())

    def alert(received: ReceivedMessage) -> tuple[str, dt.datetime, dt.datetime]:
        body = json.loads(received.message.data)
        return (
            body["transaction_id"],
            dt.datetime.fromisoformat(body["event_time"]),
            received.message.publish_time,
        )

    def all_in(messages: list[ReceivedMessage]) -> bool:
        return stored <= {alert(received)[0] for received in messages}

    messages = [alert(received) for received in topics.take(subscription, all_in)]
    sent = {name for name, _, _ in messages}
    if sent != stored:
        raise DemoError(
            f"{len(stored - sent)} alerts of the table are not on the topic, "
            f"{len(sent - stored)} of the topic are not in the table"
        )
    summary.alert_messages = len(sent)
    if messages:
        summary.alert_latency_ms = alert_latency(messages)

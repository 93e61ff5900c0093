"""Runs the whole product on this machine: train, publish, stream, batch, alert, store, query.

Everything but the endpoints is what runs on Google Cloud. Python is all it needs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud.pubsub_v1.types import ReceivedMessage

from common.clients import BigQueryEndpoints
from common.command import CommandError, Parser, command
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_record, progress
from common.values import at_least, moment
from common.writing import writing
from local import topics
from local.demo_picture import draw
from local.demo_report import DemoReport, Pace, alert_latency, alerts_by_kind, print_report
from local.demo_tables import STORED, kept, read_view
from local.endpoints import Endpoints
from local.process import LocalStackError
from local.pubsub import PubSubKind
from local.runner import LocalResult, LocalStreamingRunner, run_until_drained
from local.stack import LocalStack
from model import artifact
from operations import query
from operations.report import page
from operations.report.figures import read
from pipelines import batch, streaming
from transforms import metrics, tables
from transforms.bigquery.counters import ROWS_WRITTEN
from transforms.files import BLANK_LINES

EXAMPLES: Final = """\
  anomaly demo
  anomaly demo --count 50000 --rate 2000 --output out/big"""

STREAM_DATASET: Final = "anomaly"
BATCH_DATASET: Final = "anomaly_batch"
FRAUD_SHARE: Final = 0.02
MALFORMED_SHARE: Final = 0.02
QUERIES: Final = {"top_anomalies": 8, "latency": None, "dead_letters": None}
"""The named queries of the report, and the most rows of each."""


class DemoError(RuntimeError):
    """A check of the demo has failed; the text names it."""


STOP_SECONDS: Final = 20.0
"""Time for a command of the demo to end."""


@dataclass(frozen=True)
class DemoOptions:
    """The options of the demo.

    Raises:
      OptionError: a directory is a file.
    """

    count: int = option(12_000, type=at_least(1), metavar="N", help="messages (default: %(default)s)")
    rate: int = option(800, type=at_least(1), metavar="N", help="messages a second (default: %(default)s)")
    seed: int = option(11, type=at_least(0), metavar="N", help="of the transactions (default: %(default)s)")
    model: Path = option(Path("out/model"), type=Path, metavar="DIR", help="artifact (default: %(default)s)")
    output: Path = option(Path("out/demo"), type=Path, metavar="DIR", help="default: %(default)s")
    pubsub: PubSubKind | None = option(
        None, help="server of Pub/Sub (default: gcloud's where gcloud and Java are there)"
    )

    def __post_init__(self) -> None:
        for flag, path in (("--model", self.model), ("--output", self.output)):
            nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
            if not nearest.is_dir():
                raise OptionError(f"{flag}: expected a directory, got {path}, where {nearest} is a file")


def say(text: str) -> None:
    """Prints a heading on stderr, so that stdout holds the report alone."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a command of this project as a user would, shows it, and ends it with the block."""
    print(f"$ anomaly {' '.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "common.anomaly", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # it waits for an emulator that is gone
                process.kill()


def output(process: subprocess.Popen[str]) -> str:
    """Waits for a command that was `started`, and returns its standard output.

    Raises:
      DemoError: the command failed.
    """
    text, _ = process.communicate()
    if process.returncode:
        raise DemoError(f"the command ended with {process.returncode}; it and its messages are above")
    return text


def ensure_model(path: Path) -> artifact.Manifest:
    """Reads the model at a path; trains it on synthetic data first where there is none."""
    if not (path / artifact.MANIFEST_FILE).is_file():
        say("Train a model on synthetic transactions")
        with started("train", "--output", str(path)) as training:
            print(output(training), file=sys.stderr)
    manifest = artifact.verify(path)
    steps = ", ".join(f"{name} from {value:.2f}" for name, value in manifest.thresholds.items())
    say(f"Model {manifest.model_version}: {steps}")
    return manifest


@dataclass
class Demo:
    """One run.

    Attributes:
      options: of the command.
      manifest: of the model.
    """

    options: DemoOptions
    manifest: artifact.Manifest

    @property
    def lines(self) -> Path:
        """The file of the published messages, as JSON lines."""
        return self.options.output / "published.jsonl"

    @property
    def labels(self) -> Path:
        """The file of the planted kinds: transaction_id, planted_kind, malformed_kind."""
        return self.options.output / "labels.parquet"

    @property
    def picture(self) -> Path:
        """The picture of scores and alerts."""
        return self.options.output / "anomalies.png"

    @property
    def page(self) -> Path:
        """The page of `anomaly report` about the streamed tables."""
        return self.options.output / "report.html"

    def clear(self) -> None:
        """Makes --output, or removes the files of an earlier demo from it, and nothing else."""
        self.options.output.mkdir(parents=True, exist_ok=True)
        for path in (self.lines, self.labels, self.picture, self.page):
            path.unlink(missing_ok=True)

    def publish(self, *sink: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Starts to publish the transactions; `confirmed` waits for the end."""
        counts = ("--count", str(self.options.count), "--seed", str(self.options.seed))
        shares = ("--fraud_share", str(FRAUD_SHARE), "--malformed_share", str(MALFORMED_SHARE))
        form = ("--labels", str(self.labels), "--format", "json")
        return started("publish", *sink, *counts, *shares, *form)

    def run_batch(self, *sink: str) -> Pace:
        """Scores the published lines with the batch pipeline."""
        argv = [f"--input={self.lines}", f"--model={self.options.model}", *sink]
        print(f"$ anomaly batch {' '.join(argv)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = batch.run(argv)
        result.wait_until_finish()
        totals = metrics.totals(result)
        # A message of white space alone is a blank line of the file.
        messages = totals[metrics.ROWS_IN] + totals.get(BLANK_LINES, 0)
        return Pace(messages, time.monotonic() - started)

    def finish(self, summary: DemoReport, scores: pa.Table) -> None:
        """Checks by the stored rows that no message was lost, and looks for what was planted.

        Raises:
          DemoError: the rows are not as many as the messages.
        """
        stored = summary.rows[tables.SCORES_TABLE], summary.rows[tables.ERRORS_TABLE]
        if summary.published != sum(stored):
            raise DemoError(
                f"{summary.published} messages were published, {stored[0]} scores and "
                f"{stored[1]} dead letters were stored"
            )
        labels = pq.read_table(self.labels).select(["transaction_id", "planted_kind"])
        # Arrow joins no lists, so the columns that are drawn come alone.
        drawn = scores.select(["transaction_id", "event_time", "anomaly_score", "severity"])
        joined = drawn.join(labels, "transaction_id", join_type="inner")
        summary.alerts_by_kind = alerts_by_kind(joined)
        heading = f"{scores.num_rows:,} transactions, model {self.manifest.model_version}"
        draw(joined, self.manifest.thresholds, self.picture, heading)
        summary.picture = str(self.picture)


def run(demo: Demo) -> DemoReport:
    """Publishes to Pub/Sub, streams to BigQuery and the alert topic, scores in batch, compares, queries."""
    summary = DemoReport()
    say("Start Pub/Sub and BigQuery")
    with LocalStack(pubsub=demo.options.pubsub or "auto") as stack, stack.endpoints.activate() as endpoints:
        summary.pubsub = endpoints.pubsub_kind
        print(f"Pub/Sub: {summary.pubsub}; BigQuery: bqemulator", file=sys.stderr)
        project = endpoints.project
        topic = topics.create_topic(project, "transactions")
        subscription = topics.create_subscription(project, "transactions-pipeline", topic)
        alert_topic = topics.create_topic(project, "alerts")
        alert_subscription = topics.create_subscription(project, "alerts-demo", alert_topic)
        say("Stream: Pub/Sub -> parse -> score -> alert -> BigQuery, alert topic")
        stream(demo, summary, endpoints, topic, subscription, alert_topic)
        client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(project)
        streamed = f"{project}.{STREAM_DATASET}"
        stored = {name: read_view(client, streamed, name) for name in STORED}
        summary.rows = {name: table.num_rows for name, table in stored.items()}
        scores = stored[tables.SCORES_TABLE]
        check_alerts(summary, stored[tables.ALERTS_TABLE], alert_subscription)
        say("Batch: the same transactions from a file, committed to BigQuery at once")
        batched = f"{project}.{BATCH_DATASET}"
        summary.batch = demo.run_batch(f"--output_dataset={batched}", *endpoints.pipeline_args())
        check_same(scores, read_view(client, batched, tables.SCORES_TABLE))
        say("Query the tables")
        for name, limit in QUERIES.items():
            summary.queries[name] = query.run(client, query.sql(name, streamed, limit=limit))
        demo.finish(summary, scores)
        say("Report: the state of the streamed tables as a page")
        body = page.render(read(client, streamed, moment("24h"), max_bytes=0))
        with writing(demo.page, "--output"):
            demo.page.write_bytes(body)
        summary.page = str(demo.page)
    return summary


def check_same(streamed: pa.Table, batched: pa.Table) -> None:
    """Compares the scores of stream and batch, transaction by transaction.

    Raises:
      DemoError: they differ, or there are none.
    """
    first, second = (
        table.select(["transaction_id", "anomaly_score"]).sort_by("transaction_id")
        for table in (streamed, batched)
    )
    if not first.num_rows or not first.equals(second):
        raise DemoError(
            f"batch and streaming disagree: {first.num_rows} and {second.num_rows} scores of transactions"
        )


def check_alerts(summary: DemoReport, alerts: pa.Table, subscription: str) -> None:
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


def stream(
    demo: Demo, summary: DemoReport, endpoints: Endpoints, topic: str, subscription: str, alert_topic: str
) -> None:
    """Runs the streaming pipeline while messages are published, until every one is stored."""
    dataset = f"{endpoints.project}.{STREAM_DATASET}"
    argv = [
        f"--subscription={subscription}",
        f"--model={demo.options.model}",
        f"--output_dataset={dataset}",
        f"--alert_topic={alert_topic}",
        *endpoints.pipeline_args(),
    ]
    print(f"$ anomaly streaming {' '.join(argv)} &", file=sys.stderr, flush=True)
    result = streaming.run(argv, runner=LocalStreamingRunner())
    assert isinstance(result, LocalResult)
    client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(endpoints.project)
    summary.rate = demo.options.rate
    to_topic = ("--topic", topic, "--tee", str(demo.lines), "--rate", str(demo.options.rate))
    with (
        demo.publish(*to_topic) as publisher,
        progress(demo.options.count, "messages through the stream") as advance,
    ):
        shown = 0
        seconds = 0.0

        def is_done() -> bool:
            nonlocal shown, seconds
            totals = metrics.totals(result)
            written = sum(
                totals.get(f"{name}.{ROWS_WRITTEN}", 0) for name in (tables.SCORES_TABLE, tables.ERRORS_TABLE)
            )
            if written > shown:
                advance(written - shown)
                shown, seconds = written, result.busy_seconds
            if publisher.poll() is None:
                return False
            summary.published = summary.published or confirmed(publisher)
            # The counters count a message twice that was delivered twice; the views do not.
            return written >= summary.published and kept(client, dataset) >= summary.published

        run_until_drained(result, is_done, timeout=240)
    summary.counters = metrics.totals(result)
    summary.stream = Pace(summary.published, seconds)


def confirmed(publisher: subprocess.Popen[str]) -> int:
    """Waits for the end of a publisher, and returns the number of messages that have arrived.

    Raises:
      DemoError: it failed.
    """
    return int(json.loads(output(publisher))["confirmed"])


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("anomaly demo", __doc__, EXAMPLES)
    add_options(parser, DemoOptions)
    add_format(parser)
    namespace = parser.parse_args(argv)
    options = read_options(DemoOptions, namespace)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    # Warnings only: Beam's own information would drown the demo's.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        demo = Demo(options, ensure_model(options.model))
        demo.clear()
        summary = run(demo)
    except (DemoError, LocalStackError, artifact.ArtifactError, TimeoutError) as error:
        raise CommandError(str(error)) from error
    summary.seconds = time.monotonic() - started
    if namespace.format == "table":
        print_report(summary)
    else:
        print_record(asdict(summary), namespace.format)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """Ends as after Ctrl-C: what was started is stopped on the way out."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

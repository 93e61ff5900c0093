"""Runs the whole product on this machine: train, publish, stream, batch, alert, store, query.

Everything but the endpoints is what runs on Google Cloud. Where the emulators cannot run (no Java or no
gcloud), the demo reads and writes files instead, and reports which parts it left out.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud import bigquery
from google.cloud.pubsub_v1.types import ReceivedMessage

from common.command import CommandError, Parser, command
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_record, progress
from common.values import at_least
from local import topics
from local.demo_report import DemoReport, print_report
from local.endpoints import Endpoints
from local.process import LocalStackError
from local.runner import LocalStreamingRunner, run_until_drained
from local.stack import LocalStack
from model import artifact
from operations import query, report
from pipelines import batch, streaming
from transforms import metrics, tables
from transforms.clients import BigQueryEndpoints

EXAMPLES: Final = """\
  anomaly demo
  anomaly demo --count 50000 --rate 2000 --output out/big"""

STREAM_DATASET: Final = "anomaly"
BATCH_DATASET: Final = "anomaly_batch"
FRAUD_SHARE: Final = 0.02
MALFORMED_SHARE: Final = 0.02
STORED: Final = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE)
LEFT_OUT: Final = "Pub/Sub, the stream and its latency, BigQuery and the queries"
"""The parts that a demo without the emulators leaves out."""


class DemoError(RuntimeError):
    """A check of the demo has failed; the text names it."""


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
    files: bool = option(False, action="store_true", help="do not use the emulators, even if they can run")

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
            process.wait()


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
    def scored(self) -> Path:
        """The directory of the batch pipeline, where it writes files."""
        return self.options.output / "scored"

    @property
    def picture(self) -> Path:
        """The picture of scores and alerts."""
        return self.options.output / "anomalies.png"

    def clear(self) -> None:
        """Makes --output, or removes the files of an earlier demo from it, and nothing else."""
        self.options.output.mkdir(parents=True, exist_ok=True)
        for path in (self.lines, self.labels, self.picture, *self.scored.glob("*.parquet")):
            path.unlink(missing_ok=True)

    def publish(self, *sink: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Starts to publish the transactions; `confirmed` waits for the end."""
        counts = ("--count", str(self.options.count), "--seed", str(self.options.seed))
        shares = ("--fraud_share", str(FRAUD_SHARE), "--malformed_share", str(MALFORMED_SHARE))
        form = ("--labels", str(self.labels), "--format", "json")
        return started("publish", *sink, *counts, *shares, *form)

    def run_batch(self, *sink: str) -> dict[str, int]:
        """Scores the published lines with the batch pipeline and gives its counters."""
        argv = [f"--input={self.lines}", f"--model={self.options.model}", *sink]
        print(f"$ anomaly batch {' '.join(argv)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = batch.run(argv)
        result.wait_until_finish()
        totals = metrics.totals(result)
        seconds = time.monotonic() - started
        print(f"{totals[metrics.ROWS_IN]:,} messages in {seconds:.1f} s", file=sys.stderr)
        return totals

    def finish(self, summary: DemoReport, stored: dict[str, pa.Table]) -> None:
        """Checks by the stored rows that no message was lost, and completes the report of both modes.

        Args:
          summary: to be completed.
          stored: the rows of the three tables, by name, each row once.
        """
        scores, errors = stored[tables.SCORES_TABLE], stored[tables.ERRORS_TABLE]
        summary.rows = {name: table.num_rows for name, table in stored.items()}
        if summary.published != scores.num_rows + errors.num_rows:
            raise DemoError(
                f"{summary.published} messages were published, {scores.num_rows} scores and "
                f"{errors.num_rows} dead letters were stored"
            )
        labels = pq.read_table(self.labels)
        summary.alerts_by_kind = report.alerts_by_kind(scores, labels)
        summary.dead_letters = report.dead_letters_by_reason(errors)
        heading = f"{scores.num_rows:,} transactions, model {self.manifest.model_version}"
        report.picture(scores, labels, self.manifest.thresholds, self.picture, heading)
        summary.picture = str(self.picture)


def with_emulators(demo: Demo) -> DemoReport:
    """Publishes to Pub/Sub, streams to BigQuery and the alert topic, scores in batch, compares, queries."""
    summary = DemoReport("emulators", [])
    say("Start the Pub/Sub emulator and the BigQuery emulator")
    with LocalStack() as stack, stack.endpoints.activate() as endpoints:
        project = endpoints.project
        topic = topics.create_topic(project, "transactions")
        subscription = topics.create_subscription(project, "transactions-pipeline", topic)
        alert_topic = topics.create_topic(project, "alerts")
        alert_subscription = topics.create_subscription(project, "alerts-demo", alert_topic)
        say("Stream: Pub/Sub -> parse -> score -> alert -> BigQuery, alert topic")
        summary.published, summary.counters = stream(demo, endpoints, topic, subscription, alert_topic)
        client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(project)
        stored = read_views(client, f"{project}.{STREAM_DATASET}")
        streamed = stored[tables.SCORES_TABLE]
        summary.latency_ms["event to score"] = milliseconds(report.latency(streamed))
        check_alerts(summary, stored[tables.ALERTS_TABLE], alert_subscription)
        say("Batch: the same transactions from a file, committed to BigQuery at once")
        demo.run_batch(f"--output_dataset={project}.{BATCH_DATASET}", *endpoints.pipeline_args())
        batched = read_views(client, f"{project}.{BATCH_DATASET}")[tables.SCORES_TABLE]
        compared = report.compare(streamed, batched)
        summary.comparison = {**vars(compared), "equal": compared.equal}
        if not compared.equal:
            raise DemoError(f"batch and streaming disagree: {compared}")
        summary.throughput = report.throughput(streamed, since="event_time")
        say("Query the tables")
        statement = query.sql("top_anomalies", f"{project}.{STREAM_DATASET}", limit=8)
        summary.top_anomalies = query.run(client, statement)
        demo.finish(summary, stored)
    return summary


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
        summary.latency_ms["event to alert message"] = milliseconds(report.alert_latency(messages))


def milliseconds(waited: report.Latency) -> dict[str, int]:
    """Rounds a latency to whole milliseconds."""
    return {"p50": round(waited.p50), "p99": round(waited.p99)}


def stream(
    demo: Demo, endpoints: Endpoints, topic: str, subscription: str, alert_topic: str
) -> tuple[int, dict[str, int]]:
    """Runs the streaming pipeline while messages are published, until every one is stored."""
    argv = [
        f"--subscription={subscription}",
        f"--model={demo.options.model}",
        f"--output_dataset={endpoints.project}.{STREAM_DATASET}",
        f"--alert_topic={alert_topic}",
        *endpoints.pipeline_args(),
    ]
    print(f"$ anomaly streaming {' '.join(argv)} &", file=sys.stderr, flush=True)
    result = streaming.run(argv, runner=LocalStreamingRunner())
    client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(endpoints.project)
    published: list[int] = []
    to_topic = ("--topic", topic, "--tee", str(demo.lines), "--rate", str(demo.options.rate))
    with (
        demo.publish(*to_topic) as publisher,
        progress(demo.options.count, "messages through the stream") as advance,
    ):
        shown = 0

        def is_done() -> bool:
            nonlocal shown
            totals = metrics.totals(result)
            through = totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0)
            advance(through - shown)
            shown = through
            if publisher.poll() is None:
                return False
            if not published:
                published.append(confirmed(publisher))
            # The counters count a message twice that was delivered twice; the views do not.
            dataset = f"{endpoints.project}.{STREAM_DATASET}"
            return through >= published[0] and kept(client, dataset) >= published[0]

        run_until_drained(result, is_done, timeout=240)
    return published[0], metrics.totals(result)


def confirmed(publisher: subprocess.Popen[str]) -> int:
    """Waits for the end of a publisher, and returns the number of messages that have arrived.

    Raises:
      DemoError: it failed.
    """
    return int(json.loads(output(publisher))["confirmed"])


def kept(client: bigquery.Client, dataset: str) -> int:
    """Counts the messages that have become a row, each once."""
    (row,) = client.query(kept_sql(dataset)).result()
    return int(row.n)


def kept_sql(dataset: str) -> str:
    """Makes the query that counts the rows and the dead letters of a dataset."""
    counts = " + ".join(
        f"(SELECT COUNT(*) FROM `{dataset}.{name}_latest`)"  # noqa: S608 - our own names
        for name in (tables.SCORES_TABLE, tables.ERRORS_TABLE)
    )
    return f"SELECT {counts} AS n"


def read_views(client: bigquery.Client, dataset: str) -> dict[str, pa.Table]:
    """Reads the deduplicated rows of the three tables, by name of the table."""
    return {
        name: client.query(rows_sql(dataset, name)).result().to_arrow(create_bqstorage_client=False)
        for name in STORED
    }


def rows_sql(dataset: str, stored: str) -> str:
    """Makes the query that reads the deduplicated rows of a table, one of STORED."""
    return f"SELECT * FROM `{dataset}.{stored}_latest`"  # noqa: S608 - our own names


def with_files(demo: Demo, left_out: list[str]) -> DemoReport:
    """Scores JSON lines into Parquet, where the emulators cannot run."""
    summary = DemoReport("files", left_out)
    say("Without the emulators, from files to files. Left out: " + "\n   ".join(left_out))
    say("Write the transactions to a file")
    with demo.publish("--jsonl", str(demo.lines)) as publisher:
        summary.published = confirmed(publisher)
    say("Batch: JSON lines -> parse -> score -> alert -> Parquet")
    summary.counters = demo.run_batch(f"--output={demo.scored}")
    stored = {name: report.read_parquet(list(demo.scored.glob(f"{name}-*.parquet"))) for name in STORED}
    scores = stored[tables.SCORES_TABLE]
    summary.throughput = report.throughput(scores)
    summary.top_anomalies = report.top_anomalies(scores, 8)
    demo.finish(summary, stored)
    return summary


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("anomaly demo", __doc__, EXAMPLES)
    add_options(parser, DemoOptions)
    add_format(parser)
    namespace = parser.parse_args(argv)
    options = read_options(DemoOptions, namespace)
    started = time.monotonic()
    # Warnings only: Beam's own information would drown the demo's.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    missing = ["--files is set"] if options.files else LocalStack.missing()
    try:
        demo = Demo(options, ensure_model(options.model))
        demo.clear()
        summary = with_files(demo, [LEFT_OUT, *missing]) if missing else with_emulators(demo)
    except (DemoError, LocalStackError, artifact.ArtifactError, TimeoutError) as error:
        raise CommandError(str(error)) from error
    summary.seconds = time.monotonic() - started
    if namespace.format == "table":
        print_report(summary)
    else:
        print_record(vars(summary), namespace.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())

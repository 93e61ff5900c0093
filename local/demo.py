"""The whole product on this machine: train, publish, stream, batch, alert, store, query.

Everything but the endpoints is what runs on Google Cloud. Where the emulators cannot run (no Java or no
gcloud), the demo reads and writes files instead, and says what it left out.
"""

from __future__ import annotations

import argparse
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
from tqdm import tqdm

from common.command import command
from common.values import at_least
from local import topics
from local.endpoints import Endpoints
from local.findings import Findings, show
from local.process import LocalStackError
from local.runner import LocalStreamingRunner, run_until_drained
from local.stack import LocalStack
from model import artifact
from operations import query, report
from pipelines import batch, streaming
from transforms import metrics, tables
from transforms.clients import BigQueryEndpoints

EXAMPLE = """examples:
  python -m local.demo
  python -m local.demo --count 50000 --rate 2000 --output out/big
"""

STREAM_DATASET: Final = "anomaly"
BATCH_DATASET: Final = "anomaly_batch"
FRAUD_SHARE: Final = 0.02
MALFORMED_SHARE: Final = 0.02
STORED: Final = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE)
LEFT_OUT: Final = "Pub/Sub, the stream and its latency, BigQuery and the queries"
"""What is missing from a demo without the emulators."""


class DemoError(RuntimeError):
    """The demo found that something does not hold; the text says what."""


def say(text: str) -> None:
    """A heading of the demo, on stderr, so that stdout holds the report alone."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(module: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a command of this project as a user would, shows it, and ends it with the block."""
    print(f"$ python -m {module} {' '.join(args)}", file=sys.stderr, flush=True)
    words = [sys.executable, "-m", module, *args]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def output(process: subprocess.Popen[str]) -> str:
    """Waits for a command that was `started` and gives its standard output.

    Raises:
      DemoError: the command failed.
    """
    text, _ = process.communicate()
    if process.returncode:
        raise DemoError(f"the command ended with {process.returncode}; it and its messages are above")
    return text


def ensure_model(path: Path) -> artifact.Manifest:
    """The model at `path`; trained on synthetic data first where there is none."""
    if not (path / artifact.MANIFEST_FILE).is_file():
        say("Train a model on synthetic transactions")
        with started("common.anomaly", "train", "--output", str(path)) as training:
            print(output(training), file=sys.stderr)
    manifest = artifact.verify(path)
    steps = ", ".join(f"{name} from {value:.2f}" for name, value in manifest.thresholds.items())
    say(f"Model {manifest.model_version}: {steps}")
    return manifest


@dataclass
class Demo:
    """One run.

    Attributes:
      args: the options.
      manifest: of the model.
    """

    args: argparse.Namespace
    manifest: artifact.Manifest

    @property
    def lines(self) -> Path:
        """What was published, as JSON lines."""
        return self.args.output / "published.jsonl"

    @property
    def labels(self) -> Path:
        """What was planted: transaction_id, planted_kind, malformed_kind."""
        return self.args.output / "labels.parquet"

    @property
    def scored(self) -> Path:
        """What the batch pipeline gave, where it writes files."""
        return self.args.output / "scored"

    @property
    def picture(self) -> Path:
        """Scores and alerts."""
        return self.args.output / "anomalies.png"

    def clear(self) -> None:
        """Makes --output, or removes from it what an earlier demo has left there, and nothing else."""
        self.args.output.mkdir(parents=True, exist_ok=True)
        for path in (self.lines, self.labels, self.picture, *self.scored.glob("*.parquet")):
            path.unlink(missing_ok=True)

    def publish(self, *sink: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Starts to publish the transactions; `confirmed` waits for the end."""
        return started(
            "publisher",
            *sink,
            *("--labels", str(self.labels), "--count", str(self.args.count), "--seed", str(self.args.seed)),
            *("--fraud_share", str(FRAUD_SHARE), "--malformed_share", str(MALFORMED_SHARE)),
            *("--format", "json"),
        )

    def run_batch(self, *sink: str) -> dict[str, int]:
        """Scores the published lines with the batch pipeline and gives its counters."""
        argv = [f"--input={self.lines}", f"--model={self.args.model}", *sink]
        print(f"$ python -m pipelines.batch {' '.join(argv)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = batch.run(argv)
        result.wait_until_finish()
        totals = metrics.totals(result)
        seconds = time.monotonic() - started
        print(f"{totals[metrics.ROWS_IN]:,} messages in {seconds:.1f} s", file=sys.stderr)
        return totals

    def finish(self, findings: Findings, found: dict[str, pa.Table]) -> None:
        """Checks by what was stored that no message was lost, and fills in what both modes report alike.

        Args:
          findings: to be completed.
          found: the rows of the three tables, by name, each row once.
        """
        scores, errors = found[tables.SCORES_TABLE], found[tables.ERRORS_TABLE]
        findings.rows = {name: table.num_rows for name, table in found.items()}
        if findings.published != scores.num_rows + errors.num_rows:
            raise DemoError(
                f"{findings.published} messages were published, {scores.num_rows} scores and "
                f"{errors.num_rows} dead letters were stored"
            )
        labels = pq.read_table(self.labels)
        findings.alerts_by_kind = report.alerts_by_kind(scores, labels)
        findings.dead_letters = report.dead_letters_by_reason(errors)
        heading = f"{scores.num_rows:,} transactions, model {self.manifest.model_version}"
        report.picture(scores, labels, self.manifest.thresholds, self.picture, heading)
        findings.picture = str(self.picture)


def with_emulators(demo: Demo) -> Findings:
    """Publish to Pub/Sub, stream to BigQuery and the alert topic, batch to BigQuery, compare, query."""
    findings = Findings("emulators", [])
    say("Start the Pub/Sub emulator and the BigQuery emulator")
    with LocalStack() as stack, stack.endpoints.activate() as endpoints:
        project = endpoints.project
        topic = topics.create_topic(project, "transactions")
        subscription = topics.create_subscription(project, "transactions-pipeline", topic)
        alert_topic = topics.create_topic(project, "alerts")
        alert_subscription = topics.create_subscription(project, "alerts-demo", alert_topic)
        say("Stream: Pub/Sub -> parse -> score -> alert -> BigQuery, alert topic")
        findings.published, findings.counters = stream(demo, endpoints, topic, subscription, alert_topic)
        client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(project)
        found = read_views(client, f"{project}.{STREAM_DATASET}")
        streamed = found[tables.SCORES_TABLE]
        findings.latency_ms["event to score"] = milliseconds(report.latency(streamed))
        check_alerts(findings, found[tables.ALERTS_TABLE], alert_subscription)
        say("Batch: the same transactions from a file, committed to BigQuery at once")
        demo.run_batch(f"--output_dataset={project}.{BATCH_DATASET}", *bigquery_args(endpoints))
        batched = read_views(client, f"{project}.{BATCH_DATASET}")[tables.SCORES_TABLE]
        compared = report.compare(streamed, batched)
        findings.comparison = {**vars(compared), "equal": compared.equal}
        if not compared.equal:
            raise DemoError(f"batch and streaming disagree: {compared}")
        findings.throughput = report.throughput(streamed, since="event_time")
        say("Query the tables")
        statement = query.sql("top_anomalies", f"{project}.{STREAM_DATASET}", limit=8)
        findings.top_anomalies = query.run(client, statement)
        demo.finish(findings, found)
    return findings


def check_alerts(findings: Findings, alerts: pa.Table, subscription: str) -> None:
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

    def all_in(found: list[ReceivedMessage]) -> bool:
        return stored <= {alert(received)[0] for received in found}

    messages = [alert(received) for received in topics.take(subscription, all_in)]
    sent = {name for name, _, _ in messages}
    if sent != stored:
        raise DemoError(
            f"{len(stored - sent)} alerts of the table are not on the topic, "
            f"{len(sent - stored)} of the topic are not in the table"
        )
    findings.alert_messages = len(sent)
    if messages:
        findings.latency_ms["event to alert message"] = milliseconds(report.alert_latency(messages))


def milliseconds(waited: report.Latency) -> dict[str, int]:
    """A latency in whole milliseconds, for JSON and people."""
    return {"p50": round(waited.p50), "p99": round(waited.p99)}


def stream(
    demo: Demo, endpoints: Endpoints, topic: str, subscription: str, alert_topic: str
) -> tuple[int, dict[str, int]]:
    """Runs the streaming pipeline while messages are published, until all of them are through."""
    argv = [
        f"--subscription={subscription}",
        f"--model={demo.args.model}",
        f"--output_dataset={endpoints.project}.{STREAM_DATASET}",
        f"--alert_topic={alert_topic}",
        *bigquery_args(endpoints),
    ]
    print(f"$ python -m pipelines.streaming {' '.join(argv)} &", file=sys.stderr, flush=True)
    result = streaming.run(argv, runner=LocalStreamingRunner())
    client = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage).client(endpoints.project)
    published: list[int] = []
    to_topic = ("--topic", topic, "--tee", str(demo.lines), "--rate", str(demo.args.rate))
    with (
        demo.publish(*to_topic) as publisher,
        tqdm(total=demo.args.count, desc="through the stream", unit="msg", file=sys.stderr) as bar,
    ):

        def is_done() -> bool:
            totals = metrics.totals(result)
            through = totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0)
            bar.update(through - bar.n)
            if publisher.poll() is None:
                return False
            if not published:
                published.append(confirmed(publisher))
            # The counters count a message that was delivered twice twice; the tables tell.
            dataset = f"{endpoints.project}.{STREAM_DATASET}"
            return through >= published[0] and kept(client, dataset) >= published[0]

        run_until_drained(result, is_done, timeout=240)
    return published[0], metrics.totals(result)


def confirmed(publisher: subprocess.Popen[str]) -> int:
    """Waits for the end of a publisher and gives how many messages it has sent.

    Raises:
      DemoError: it failed.
    """
    return int(json.loads(output(publisher))["confirmed"])


def kept(client: bigquery.Client, dataset: str) -> int:
    """How many messages have become a row, each counted once."""
    counts = " + ".join(
        f"(SELECT COUNT(*) FROM `{dataset}.{name}_latest`)"  # noqa: S608 - our own names
        for name in (tables.SCORES_TABLE, tables.ERRORS_TABLE)
    )
    (row,) = client.query(f"SELECT {counts} AS n").result()
    return int(row.n)


def bigquery_args(endpoints: Endpoints) -> list[str]:
    """The options that point a pipeline at the BigQuery emulator."""
    return [
        f"--bigquery_endpoint={endpoints.bigquery}",
        f"--bigquery_storage_endpoint={endpoints.bigquery_storage}",
    ]


def read_views(client: bigquery.Client, dataset: str) -> dict[str, pa.Table]:
    """The deduplicated rows of the three tables, by name of the table."""
    return {
        name: client.query(f"SELECT * FROM `{dataset}.{name}_latest`")  # noqa: S608 - our own names
        .result()
        .to_arrow(create_bqstorage_client=False)
        for name in STORED
    }


def with_files(demo: Demo, left_out: list[str]) -> Findings:
    """JSON lines in, Parquet out, where the emulators cannot run."""
    findings = Findings("files", left_out)
    say("Without the emulators, from files to files. Left out: " + "\n   ".join(left_out))
    say("Write the transactions to a file")
    with demo.publish("--jsonl", str(demo.lines)) as publisher:
        findings.published = confirmed(publisher)
    say("Batch: JSON lines -> parse -> score -> alert -> Parquet")
    findings.counters = demo.run_batch(f"--output={demo.scored}")
    found = {name: report.read_parquet(list(demo.scored.glob(f"{name}-*.parquet"))) for name in STORED}
    scores = found[tables.SCORES_TABLE]
    findings.throughput = report.throughput(scores)
    findings.top_anomalies = report.top_anomalies(scores, 8)
    demo.finish(findings, found)
    return findings


def parser() -> argparse.ArgumentParser:
    """The options of the demo."""
    found = argparse.ArgumentParser(
        prog="python -m local.demo",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, least, default, text in (
        ("--count", 1, 12_000, "messages"),
        ("--rate", 1, 800, "messages a second"),
        ("--seed", 0, 11, "of the transactions"),
    ):
        found.add_argument(name, type=at_least(least), default=default, help=f"{text} (default: %(default)s)")
    found.add_argument(
        "--model", type=Path, default=Path("out/model"), help="artifact (default: %(default)s)"
    )
    found.add_argument("--output", type=Path, default=Path("out/demo"), help="default: %(default)s")
    found.add_argument("--files", action="store_true", help="do without the emulators even where they run")
    found.add_argument("--format", choices=("table", "json"), default="table")
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    found = parser()
    args = found.parse_args(argv)
    for flag, path in (("--model", args.model), ("--output", args.output)):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            found.error(f"{flag}={path}: {there} is a file; give a directory, which is made if need be")
    started = time.monotonic()
    # Warnings only: Beam's own information would drown the demo's.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    missing = ["--files was given"] if args.files else LocalStack.missing()
    try:
        demo = Demo(args, ensure_model(args.model))
        demo.clear()
        findings = with_files(demo, [LEFT_OUT, *missing]) if missing else with_emulators(demo)
    except (DemoError, LocalStackError, artifact.ArtifactError, TimeoutError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    findings.seconds = time.monotonic() - started
    if args.format == "json":
        print(json.dumps(vars(findings), indent=1, default=str))
    else:
        show(findings)
    return 0


if __name__ == "__main__":
    sys.exit(main())

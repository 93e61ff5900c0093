"""A stream on a local stack of its own, of which every part can be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from google.cloud import bigquery

from common.clients import BigQueryEndpoints
from local import topics
from local.bigquery import BigQueryEmulator
from local.demo_tables import kept_sql
from local.endpoints import Endpoints
from local.process import Emulator, free_port
from local.pubsub import EmbeddedPubSub
from local.stack import LocalStack
from transforms import tables

ROOT = Path(__file__).resolve().parents[2]
DATASET = "campaign"
STORED = (tables.SCORES_TABLE, tables.ERRORS_TABLE)


@dataclass(frozen=True)
class Outcome:
    """One line of the page of results.

    Attributes:
      scenario: its name.
      fault: in words.
      sent: messages or lines that went in.
      scored: different transactions in the table of scores.
      dead: different dead letters.
      lost: sent and neither scored nor dead; negative where a row is there that was not sent.
      copies: rows that are stored more than once, which the views hide.
      recovery_seconds: from the end of the last fault, or of the publisher where that ends later, to the
        last row in the tables.
      note: a figure of this scenario alone.
    """

    scenario: str
    fault: str
    sent: int
    scored: int
    dead: int
    lost: int
    copies: int
    recovery_seconds: float
    note: str = ""


@dataclass
class Bench:
    """A topic, a dataset and a streaming pipeline between them.

    Attributes:
      model: artifact directory.
      directory: for logs and files.
      flags: more flags of the pipeline.
    """

    model: str
    directory: Path
    flags: Sequence[str] = ()
    stream: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _stack: LocalStack = field(init=False)
    _ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Bench:
        self._stack = LocalStack(
            pubsub="embedded",
            pubsub_port=free_port(),
            bigquery_port=free_port(),
            bigquery_storage_port=free_port(),
            data_dir=self.directory / "bigquery",
        )
        (self.directory / "bigquery").mkdir(parents=True)
        self._ends.enter_context(self._stack)
        self._ends.callback(self.kill_stream)
        self._ends.enter_context(self.endpoints.activate())
        self.topic = topics.create_topic(self.endpoints.project, DATASET)
        self.subscription = topics.create_subscription(
            self.endpoints.project, DATASET, self.topic, ack_deadline_seconds=10
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    @property
    def endpoints(self) -> Endpoints:
        """The addresses of the stack; they stay when a part of it starts again."""
        return self._stack.endpoints

    @property
    def dataset(self) -> str:
        """PROJECT.DATASET of the tables."""
        return f"{self.endpoints.project}.{DATASET}"

    def command(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a command of the product with a log file of its own; its stdout is a pipe."""
        log = self.directory / f"{module}.log"
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=file,
            )

    # The pipeline ----------------------------------------------------------------------------------------

    def start_stream(self) -> None:
        """Starts the pipeline, after the end of the one before."""
        self.kill_stream()
        self.starts += 1
        argv = [f"--subscription={self.subscription}", f"--model={self.model}"]
        argv += [f"--output_dataset={self.dataset}", *self.endpoints.pipeline_args(), *self.flags]
        self.stream = self.command("pipelines.streaming", *argv)

    def kill_stream(self) -> None:
        """Kills the pipeline with SIGKILL."""
        if self.stream is not None:
            self.stream.kill()
            self.stream.wait()

    def keep_streaming(self) -> None:
        """Starts the pipeline again where it has ended, as a supervisor would."""
        if self.stream is not None and self.stream.poll() is not None:
            self.start_stream()

    # Messages and rows -----------------------------------------------------------------------------------

    def publish(self, count: int, rate: int, *flags: str) -> subprocess.Popen[bytes]:
        """Starts a publisher."""
        size = ("--count", str(count), "--rate", str(rate), "--format", "json")
        return self.command("publisher", "--topic", self.topic, *size, *flags)

    def _client(self) -> bigquery.Client:
        endpoints = BigQueryEndpoints(self.endpoints.bigquery, self.endpoints.bigquery_storage)
        return endpoints.client(self.endpoints.project)

    def query(self, sql: str) -> int:
        """Returns the number that a statement selects; -1 while its tables are not there."""
        with contextlib.closing(self._client()) as client:
            names = {table.table_id for table in client.list_tables(DATASET)} if self._exists(client) else {}
            if not {f"{name}_latest" for name in STORED} <= set(names):
                return -1
            (row,) = client.query(sql).result()
            return int(row.n)

    def _exists(self, client: bigquery.Client) -> bool:
        return DATASET in {item.dataset_id for item in client.list_datasets()}

    def stored(self) -> int:
        """Counts the messages that have become a row, each once."""
        return self.query(kept_sql(self.dataset))

    def count(self, table: str) -> int:
        """Counts the rows of a table or view."""
        return self.query(f"SELECT COUNT(*) AS n FROM `{self.dataset}.{table}`")

    def settle(self, sent: int, seconds: float) -> float:
        """Waits until as many messages are rows, or until it takes too long; returns the moment."""
        deadline = time.monotonic() + seconds
        while self.stored() < sent and time.monotonic() < deadline:
            self.keep_streaming()
            time.sleep(0.25)
        return time.monotonic()

    def outcome(self, scenario: str, fault: str, sent: int, waited: float, note: str = "") -> Outcome:
        """Counts in the tables."""
        time.sleep(2.0)  # for what comes again after everything was there
        scored, dead = (self.count(f"{name}_latest") for name in STORED)
        rows = sum(self.count(name) for name in STORED)
        lost = sent - scored - dead
        return Outcome(
            scenario, fault, sent, scored, dead, lost, rows - scored - dead, round(max(waited, 0.0), 1), note
        )

    # Parts of the stack ----------------------------------------------------------------------------------

    def emulator(self, kind: type[EmbeddedPubSub | BigQueryEmulator]) -> Emulator:
        """Finds a running part of the stack."""
        return next(server for server in self._stack._servers if isinstance(server, kind))

    def restart(self, kind: type[BigQueryEmulator], after: float) -> None:
        """Ends a part of the stack, and starts it again on its ports some seconds later."""
        emulator = self.emulator(kind)
        emulator.stop()
        time.sleep(after)
        assert isinstance(emulator, BigQueryEmulator)
        emulator.launch()
        emulator.wait()


@contextlib.contextmanager
def paused(emulator: Emulator) -> Iterator[None]:
    """Holds a server with SIGSTOP for a `with` block: its connections stay, and nothing answers."""
    assert emulator._process is not None
    guardian = emulator._process._guardian
    assert guardian is not None
    processes = psutil.Process(guardian.pid).children(recursive=True)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def confirmed(publisher: subprocess.Popen[bytes]) -> int:
    """Waits for the end of a publisher, and returns the number of messages that arrived."""
    output, _ = publisher.communicate()
    return int(json.loads(output)["confirmed"])


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for a condition.

    Raises:
      TimeoutError: it takes too long.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the bench does not get ready")
        time.sleep(0.2)

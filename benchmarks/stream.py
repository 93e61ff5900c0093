"""Capacity and latency of a stream on the local emulators, from the publisher to the confirmed row.

    python -m benchmarks.stream                       some minutes, on two cores
    python -m benchmarks.stream --seconds 15 --format json
    python -m benchmarks.stream --rates 500 1000      latency at these rates alone

A publisher, the Pub/Sub emulator, `anomaly streaming` on the local runner, and the BigQuery emulator are a
process each. The publisher stamps each message with its time (event_time), and a row counts as stored when
the emulator has confirmed its append: that is the latency. The stages between are times of the row itself.

Rates rise by half. A rate is sustained where, after two seconds of warm-up, the backlog at the end is less
than --bound seconds of messages, and 99 of 100 rows are stored within --bound. A rate that fails is tried
once more, as other programs on the machine are no fault of the stream. Capacity is the highest sustained
rate; steps of bisection follow the first that is not.

With --realtime the figures are those of a machine without other programs, while these wait.

Then: latency at shares of the capacity, the CPU time of each process for a message there, and the emulators
alone, as fast as they go, which shows how much of the capacity is theirs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Before numpy and torch are loaded, here and in the pipeline.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks import stream_alone
from benchmarks.stream_pipeline import TIMES
from common.command import CommandError, Parser, command
from local import topics
from local.endpoints import Endpoints
from local.stack import LocalStack
from model.synthetic.generator import TransactionGenerator
from model.train import main as train
from publisher.messages import MessageSource
from publisher.patterns import Constant
from publisher.publish import publish
from publisher.pubsub import PubSubTopic

SHARES = 0.25, 0.5, 0.8
GOAL_MS = 250.0
"""For 99 of 100 rows at half of the capacity."""
STAGES = "publish", "wait, pull, gather", "parse, score", "alert, to the sink", "append"
_COLUMNS = len(TIMES) + 1
_WARM_SECONDS = 2.0
_START_RATE, _GROWTH, _BISECTIONS = 1_000.0, 1.5, 3
_DRAIN_SECONDS = 120.0


@dataclass(frozen=True)
class Step:
    """A rate, and what became of it.

    Attributes:
      rate: messages a second that were asked for.
      published: messages a second that the publisher reached.
      backlog: messages that were not stored when the last was published.
      p50_ms, p99_ms: from the event to the stored row, without the rows of the warm-up.
      bundle_rows: mean rows of an append.
      stages_ms: medians by stage.
      cpu_us: microseconds of CPU a message by process.
      load: mean number of programs that wanted a core in the last minute, these ones included.
    """

    rate: float
    published: float
    backlog: int
    p50_ms: float
    p99_ms: float
    bundle_rows: float
    stages_ms: dict[str, float]
    cpu_us: dict[str, float]
    load: float

    def sustained(self, bound: float) -> bool:
        """Tests whether the publisher and the stream have kept up."""
        kept_up = self.published > 0.97 * self.rate
        return kept_up and self.backlog < bound * self.rate and self.p99_ms < 1000 * bound


@dataclass
class Stream:
    """A stream with its publisher, and the rows that it has stored."""

    topic: str
    file: Path
    processes: dict[str, list[psutil.Process]]
    source: MessageSource = field(
        default_factory=lambda: MessageSource(TransactionGenerator(seed=1, cycle=50_000))
    )
    published: int = 0

    @property
    def stored(self) -> int:
        """The number of rows that were confirmed."""
        return self.file.stat().st_size // (8 * _COLUMNS)

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU by process."""
        return {
            name: sum(sum(each.cpu_times()[:2]) for each in group) for name, group in self.processes.items()
        }

    def hurry(self) -> None:
        """Lets the threads of all processes run before those of other programs."""
        for process in (each for group in self.processes.values() for each in group):
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread.id, os.SCHED_RR, os.sched_param(1))

    def settle(self) -> None:
        """Waits until all that was published is stored."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self.stored < self.published:
            if time.monotonic() > deadline or not self.processes["pipeline"][0].is_running():
                raise CommandError(f"{self.stored:,} of {self.published:,} messages were stored")
            time.sleep(0.02)

    def offer(self, rate: float, seconds: float) -> Step:
        """Publishes at a rate, and looks at the rows."""
        before, cpu, started = self.published, self.cpu(), time.time()
        with PubSubTopic(self.topic) as sink:
            sent = publish(self.source, sink, pattern=Constant(rate), duration=_WARM_SECONDS + seconds)
        self.published += sent.confirmed
        backlog, load = self.published - self.stored, os.getloadavg()[0]
        self.settle()
        used = {name: (now - cpu[name]) / sent.confirmed * 1e6 for name, now in self.cpu().items()}
        rows = self.rows(before)
        rows = rows[rows[:, 0] > (started + _WARM_SECONDS) * 1e6]
        stages = np.median(np.diff(rows, axis=1), axis=0) / 1000
        p50, p99 = np.percentile(rows[:, -1] - rows[:, 0], [50, 99]) / 1000
        return Step(
            rate,
            sent.rate,
            backlog,
            float(p50),
            float(p99),
            len(rows) / len(np.unique(rows[:, -1])),
            dict(zip(STAGES, stages.tolist(), strict=True)),
            used,
            load,
        )

    def rows(self, first: int) -> npt.NDArray[np.int64]:
        """The times of the rows from the `first` on."""
        return np.fromfile(self.file, np.int64, offset=first * 8 * _COLUMNS).reshape(-1, _COLUMNS)


@contextlib.contextmanager
def streaming(stack: LocalStack, endpoints: Endpoints, directory: Path) -> Iterator[Stream]:
    """Starts the pipeline on a topic of its own, and waits for its first rows."""
    with contextlib.redirect_stdout(sys.stderr):
        train(["--output", str(directory / "model"), "--epochs", "5"])
    topic = topics.create_topic(endpoints.project, "bench")
    subscription = topics.create_subscription(endpoints.project, "bench", topic)
    file = directory / "times"
    file.touch()
    flags = [f"--subscription={subscription}", f"--model={directory}/model", "--trace_messages"]
    flags += [f"--output_dataset={endpoints.project}.bench", *endpoints.pipeline_args()]
    words = [sys.executable, "-m", "benchmarks.stream_pipeline", str(file), *flags]
    with (directory / "log").open("wb") as log:
        pipeline = subprocess.Popen(words, stderr=log)
    try:
        servers = {
            server.name: psutil.Process(server._process._guardian.pid).children(recursive=True)
            for server in stack._servers
        }
        own = {"publisher": [psutil.Process()], "pipeline": [psutil.Process(pipeline.pid)]}
        stream = Stream(topic, file, own | servers)
        with PubSubTopic(topic) as sink:
            stream.published += publish(stream.source, sink, count=100).confirmed
        try:
            stream.settle()
        except CommandError:
            raise CommandError((directory / "log").read_text()) from None
        yield stream
    finally:
        pipeline.terminate()
        pipeline.wait()


def find_capacity(stream: Stream, seconds: float, bound: float) -> tuple[float, list[Step]]:
    """Finds the highest rate that is sustained; returns it with all steps."""
    steps: list[Step] = []

    def holds(rate: float) -> bool:
        for _ in range(2):
            steps.append(stream.offer(rate, seconds))
            report(steps[-1])
            if steps[-1].sustained(bound):
                return True
        return False

    low, high = 0.0, _START_RATE
    while holds(high):
        low, high = high, high * _GROWTH
    if not low:
        raise CommandError(f"{high:,.0f} messages/s were not sustained: try on a quieter machine")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, steps


def report(step: Step) -> None:
    """Shows how far the benchmark is."""
    text = f"{step.rate:9,.0f}/s, published {step.published:9,.0f}/s, backlog {step.backlog:7,}, "
    text += f"p50 {step.p50_ms:7.0f} ms, p99 {step.p99_ms:7.0f} ms, load {step.load:.1f}"
    print(text, file=sys.stderr, flush=True)


def show(capacity: float, steps: Sequence[Step], alone: dict[str, float]) -> None:
    """Prints the tables."""
    if capacity:
        print(f"Capacity: {capacity:,.0f} messages/s\n")
    print("| messages/s | of capacity | p50 ms | p99 ms | rows an append | load |")
    print("|---:|---:|---:|---:|---:|---:|")
    for step in steps:
        share = f"{step.rate / capacity:.0%}" if capacity else ""
        cells = f"{step.p50_ms:,.0f} | {step.p99_ms:,.0f} | {step.bundle_rows:,.0f} | {step.load:.1f}"
        print(f"| {step.rate:,.0f} | {share} | {cells} |")
    heads = "".join(f" {step.rate:,.0f}/s |" for step in steps)
    for title, name in (("median ms of a stage", "stages_ms"), ("CPU microseconds a message", "cpu_us")):
        print(f"\n| {title} |{heads}\n|---|{'---:|' * len(steps)}")
        for part in getattr(steps[0], name):
            cells = "".join(f" {getattr(step, name)[part]:,.0f} |" for step in steps)
            print(f"| {part} |{cells}")
    if alone:
        print("\n| without the pipeline, as fast as it goes | a second |\n|---|---:|")
        for name, rate in alone.items():
            print(f"| {name} | {rate:,.0f} |")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 1 where the latency at half of the capacity misses the goal."""
    parser = Parser("python -m benchmarks.stream", __doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate (default: %(default)s)")
    parser.add_argument(
        "--bound",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="the longest latency of 99 of 100 rows at a sustained rate (default: %(default)s)",
    )
    parser.add_argument("--rates", type=float, nargs="+", help="measure at these, in place of a search")
    parser.add_argument("--count", type=int, default=20_000, help="of a part alone (default: %(default)s)")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run before other programs on the machine, at real-time priority; needs root, and Linux",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory(prefix="bench-stream-") as name,
        LocalStack(pubsub="embedded") as stack,
        stack.endpoints.activate() as endpoints,
    ):
        with streaming(stack, endpoints, Path(name)) as stream:
            if args.realtime:
                stream.hurry()
            capacity, searched = 0.0, []
            if not args.rates:
                capacity, searched = find_capacity(stream, args.seconds, args.bound)
            steps = []
            for rate in args.rates or [share * capacity for share in SHARES]:
                steps.append(stream.offer(rate, 2 * args.seconds))
                report(steps[-1])
        alone = {}
        if not args.rates:
            rows = max(1, round(steps[-1].bundle_rows))
            alone = stream_alone.measure(endpoints, stream.source, args.count, rows)
    if args.format == "json":
        found = {"capacity": capacity, "search": [asdict(step) for step in searched]}
        print(json.dumps(found | {"steps": [asdict(step) for step in steps], "alone": alone}, indent=1))
    else:
        show(capacity, steps, alone)
    half = next((step for step in steps if step.rate == 0.5 * capacity), None)
    return 0 if half is None or half.p99_ms < GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())

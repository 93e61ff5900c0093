"""Messages per second of the local streaming runner, beside Beam's own, on the Pub/Sub emulator.

Example:
  python -m benchmarks.local_runner --runs 3 --messages 20000

Each run drains a backlog of 500-byte messages: through one step that only counts them, through batches of one
bundle each, and through batches that wait 50 ms for more (a step with state and a timer). Beam's runner takes
a tenth of the messages, because it is that slow.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.runner import PipelineState
from google.cloud.pubsub_v1 import PublisherClient
from google.pubsub_v1 import PublisherClient as PlainPublisherClient
from tqdm import tqdm

from benchmarks import local_runner_count as counting
from common.command import command
from local import topics
from local.runner import LocalStreamingRunner
from local.stack import LocalStack
from transforms.gather import BatchMessages

RUNNERS: dict[str, Callable[[], beam.runners.PipelineRunner]] = {
    "LocalStreamingRunner": LocalStreamingRunner,
    "BundleBasedDirectRunner": BundleBasedDirectRunner,
}
STEPS: dict[str, tuple[int, int] | None] = {"count": None, "batch": (1024, 0), "batch, 50 ms": (1024, 50)}
_PER_REQUEST = 1000


def backlog(project: str, count: int) -> str:
    """A new subscription that holds `count` messages of 500 bytes. Returns its full name."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    topic = topics.create_topic(project, name)
    subscription = topics.create_subscription(project, name, topic)
    publisher = PublisherClient()
    for start in range(0, count, _PER_REQUEST):
        size = min(_PER_REQUEST, count - start)
        messages = [{"data": b"x" * 500, "attributes": {"kind": "bench"}}] * size
        # The request itself, without the client's own batching thread.
        PlainPublisherClient.publish(publisher, request={"topic": topic, "messages": messages})
    publisher.transport.close()
    return subscription


def drain(runner: str, steps: tuple[int, int] | None, subscription: str, count: int, timeout: float) -> float:
    """Seconds until `count` messages have come out of the pipeline."""
    pipeline = beam.Pipeline(runner=RUNNERS[runner](), options=PipelineOptions(["--streaming"]))
    messages = pipeline | beam.io.ReadFromPubSub(subscription=subscription, with_attributes=True)
    if steps is not None:
        messages = messages | BatchMessages(*steps)
    _ = messages | beam.ParDo(counting.Count())
    counting.SEEN.clear()
    started = time.perf_counter()
    result = pipeline.run()
    while sum(counting.SEEN) < count:
        if time.perf_counter() - started > timeout or result.state != PipelineState.RUNNING:
            raise RuntimeError(f"{runner}: {sum(counting.SEEN)} of {count} messages in {timeout:.0f} s")
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    result.cancel()
    return seconds


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.local_runner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each case (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a run (default: %(default)s)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    rates: dict[str, dict[str, float]] = {step: {} for step in STEPS}
    with LocalStack(bigquery=False) as stack, stack.endpoints.activate() as endpoints:
        cases = [(step, runner) for step in STEPS for runner in RUNNERS]
        for step, runner in tqdm(cases, unit="case", disable=not sys.stderr.isatty()):
            own = runner == "LocalStreamingRunner"
            count = options.messages if own else max(500, options.messages // 10)
            seconds = [
                drain(runner, STEPS[step], backlog(endpoints.project, count), count, options.timeout)
                for _ in range(options.runs)
            ]
            rates[step][runner] = count / statistics.median(seconds)
    if options.format == "json":
        print(json.dumps({"runs": options.runs, "messages_per_second": rates}, indent=2))
        return 0
    print(f"messages per second, median of {options.runs} runs")
    for step, found in rates.items():
        own, beams = (found[name] for name in RUNNERS)
        print(f"  {step:14}{own:10,.0f}   Beam's runner {beams:8,.0f}   {own / beams:6.1f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Messages per second of both servers of Pub/Sub, and of the local streaming runner beside Beam's own.

Example:
  python -m benchmarks.local_runner --runs 3 --messages 20000

The servers take turns: the embedded one, and gcloud's where it is there. Each publishes and pulls messages of
500 bytes, in requests as large as the server takes, and by Google's clients. Their start is from the command
to the first answer.

The runners read from the embedded server. Each run drains a backlog: through one step that only counts the
messages, through batches of one bundle each, and through batches that wait 50 ms for more (a step with state
and a timer). Beam's runner takes a tenth of the messages, because it is that slow.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.runner import PipelineState
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.subscriber.message import Message
from google.pubsub_v1 import PublisherClient as PlainPublisherClient
from google.pubsub_v1.types import AcknowledgeRequest, PullRequest, PullResponse

from benchmarks import local_runner_count as counting
from common.command import command
from common.output import track
from common.pubsub import subscriber_client
from local import pubsub, topics
from local.pubsub import EmbeddedPubSub, GcloudPubSub, PubSubKind
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


def serve(kind: PubSubKind, count: int) -> dict[str, float]:
    """Seconds until a server has started, and messages a second through it."""
    emulator = EmbeddedPubSub() if kind == "embedded" else GcloudPubSub()
    started = time.perf_counter()
    emulator.launch()
    emulator.wait()
    figures = {"seconds to start": time.perf_counter() - started}
    emulator.stop()
    with LocalStack(pubsub=kind, bigquery=False) as stack, stack.endpoints.activate() as endpoints:
        started = time.perf_counter()
        subscription = backlog(endpoints.project, count)
        figures["publish"] = count / (time.perf_counter() - started)
        figures["pull and acknowledge"] = count / pull(subscription, count)
        started = time.perf_counter()
        subscription = publish_by_client(endpoints.project, count)
        figures["publish by Google's client"] = count / (time.perf_counter() - started)
        figures["pull by Google's client"] = count / pull_by_client(subscription, count)
    return figures


def pull(subscription: str, count: int) -> float:
    """Seconds for `count` messages, one request after the other."""
    started = time.perf_counter()
    left = count
    with subscriber_client() as client:
        while left > 0:
            request = PullRequest(subscription=subscription, max_messages=_PER_REQUEST)
            messages = PullResponse.pb(client.transport.pull(request, timeout=30)).received_messages
            ids = [message.ack_id for message in messages]
            client.transport.acknowledge(AcknowledgeRequest(subscription=subscription, ack_ids=ids))
            left -= len(ids)
    return time.perf_counter() - started


def publish_by_client(project: str, count: int) -> str:
    """Publishes by the client that batches in a thread; gives the subscription."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    topic = topics.create_topic(project, name)
    subscription = topics.create_subscription(project, name, topic)
    publisher = PublisherClient()
    for future in [publisher.publish(topic, b"x" * 500, kind="bench") for _ in range(count)]:
        future.result()
    publisher.stop()
    return subscription


def pull_by_client(subscription: str, count: int) -> float:
    """Seconds for `count` messages by streaming pull."""
    done, left = threading.Event(), iter(range(count - 1))

    def receive(message: Message) -> None:
        message.ack()
        if next(left, None) is None:
            done.set()

    started = time.perf_counter()
    with SubscriberClient() as subscriber:
        pulling = subscriber.subscribe(subscription, receive)
        if not done.wait(120):
            raise RuntimeError(f"not all of {count} messages came in 120 s")
        seconds = time.perf_counter() - started
        pulling.cancel()
        pulling.result()
    return seconds


def _servers(runs: int, count: int) -> dict[str, dict[str, float]]:
    """Medians by server; the servers take turns, so that a slow minute hits both."""
    kinds: tuple[PubSubKind, ...] = ("embedded",) if pubsub.missing() else ("embedded", "gcloud")
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for kind in kinds:
            measured[kind].append(serve(kind, count))
    return {
        kind: {name: statistics.median(run[name] for run in each) for name in each[0]}
        for kind, each in measured.items()
    }


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
    servers = _servers(options.runs, options.messages)
    with LocalStack(pubsub="embedded", bigquery=False) as stack, stack.endpoints.activate() as endpoints:
        cases = [(step, runner) for step in STEPS for runner in RUNNERS]
        for step, runner in track(cases, "cases"):
            own = runner == "LocalStreamingRunner"
            count = options.messages if own else max(500, options.messages // 10)
            seconds = [
                drain(runner, STEPS[step], backlog(endpoints.project, count), count, options.timeout)
                for _ in range(options.runs)
            ]
            rates[step][runner] = count / statistics.median(seconds)
    if options.format == "json":
        print(json.dumps({"runs": options.runs, "servers": servers, "messages_per_second": rates}, indent=2))
        return 0
    print(f"median of {options.runs} runs; messages a second but for the start")
    for name in next(iter(servers.values())):
        digits = 2 if name.startswith("seconds") else 0
        shown = "   ".join(f"{kind} {figures[name]:10,.{digits}f}" for kind, figures in servers.items())
        print(f"  {name:28}{shown}")
    for step, found in rates.items():
        own, beams = (found[name] for name in RUNNERS)
        print(f"  {step:14}{own:10,.0f}   Beam's runner {beams:8,.0f}   {own / beams:6.1f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())

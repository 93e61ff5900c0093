"""Messages per second of the publisher: made, written to files, and published to the Pub/Sub emulator.

Example:
  python -m benchmarks.publisher --runs 5 --messages 50000

Making and writing run on one core. Publishing is measured as the product does it (the Publish RPC itself,
with 1, 2 and 4 requests under way) and with the batching client of google-cloud-pubsub, on the same messages,
with one subscription to the topic. Every message is made within the measured time; the pools of accounts and
merchants are made before. Both kinds of data take turns: the 30 numbers of the ULB table, and raw card
payments, here of 10,000 accounts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from google.cloud import pubsub_v1
from google.cloud.pubsub_v1.types import BatchSettings

from common.command import command
from common.output import progress
from local import topics
from local.stack import LocalStack
from model.synthetic.cards.generator import CardGenerator
from model.synthetic.generator import TransactionGenerator
from publisher.cards import CARD
from publisher.files import JsonLinesFile, ParquetFile
from publisher.forms import Form
from publisher.messages import MessageSource, default_start_time
from publisher.publish import BATCH, publish
from publisher.pubsub import PubSubTopic
from publisher.sink import Sink
from publisher.ulb import ULB

GOAL = 20_000
"""Messages a second, made on one core, that the product promises."""
REFERENCE = "batching client"


CARD_ACCOUNTS: Final = 10_000


def source(seed: int, form: Form) -> MessageSource:
    """Messages as a run of the command makes them."""
    generator = TransactionGenerator(seed) if form is ULB else CardGenerator(seed, accounts=CARD_ACCOUNTS)
    return MessageSource(generator, start_time=default_start_time(), form=form)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def make(count: int, messages: MessageSource) -> None:
    """Messages ready to send."""
    for _ in range(0, count, BATCH):
        messages.take(BATCH)


def send(sink: Sink, count: int, messages: MessageSource) -> None:
    """A whole run into `sink`."""
    with sink:
        summary = publish(messages, sink, count=count)
    if summary.confirmed != count:
        raise RuntimeError(
            f"{summary.destination}: {summary.confirmed} of {count} messages: {summary.errors}"
        )


def send_batching(topic: str, count: int, messages: MessageSource) -> None:
    """The same with the batching client of google-cloud-pubsub."""
    settings = BatchSettings(max_messages=1_000, max_bytes=5_000_000, max_latency=0.05)
    client = pubsub_v1.PublisherClient(batch_settings=settings)
    futures = []
    for _ in range(0, count, BATCH):
        batch = messages.take(BATCH)
        pairs = zip(batch.payloads, batch.attributes, strict=True)
        futures += [client.publish(topic, data, **attributes) for data, attributes in pairs]
    for future in futures:
        future.result()
    client.stop()
    client.transport.close()


@dataclass(frozen=True)
class Case:
    """One way to make, write or publish messages.

    Attributes:
      run: takes the number of messages and their source.
      form: of the messages.
      alone: whether on one core.
    """

    run: Callable[[int, MessageSource], None]
    form: Form = ULB
    alone: bool = True


def cases(directory: Path, topic: str) -> dict[str, Case]:
    """The cases by name."""
    listed: dict[str, Case] = {}
    for form, suffix in ((ULB, ""), (CARD, f", {CARD.name}")):
        listed |= {
            f"make{suffix}": Case(make, form),
            f"JSON lines{suffix}": Case(partial(_to_lines, directory / "m.jsonl"), form),
            f"Parquet{suffix}": Case(partial(_to_parquet, directory / "t.parquet", form), form),
        }
    for workers in (1, 2, 4):
        listed[f"publish, {workers} under way"] = Case(partial(_to_topic, topic, workers), alone=False)
    listed[f"publish, {CARD.name}"] = Case(partial(_to_topic, topic, 2), CARD, alone=False)
    listed[REFERENCE] = Case(partial(send_batching, topic), alone=False)
    return listed


def _to_lines(path: Path, count: int, messages: MessageSource) -> None:
    send(JsonLinesFile(path), count, messages)


def _to_parquet(path: Path, form: Form, count: int, messages: MessageSource) -> None:
    send(ParquetFile(path, form), count, messages)


def _to_topic(topic: str, workers: int, count: int, messages: MessageSource) -> None:
    send(PubSubTopic(topic, workers=workers), count, messages)


def measure(directory: Path, topic: str, runs: int, count: int) -> dict[str, float]:
    """Median messages per second by case. The cases take turns, so that a slow minute hits all of them."""
    listed = cases(directory, topic)
    rates: dict[str, list[float]] = {name: [] for name in listed}
    with progress((runs + 1) * len(listed), "runs") as advance:
        for run in range(runs + 1):
            for name, case in listed.items():
                messages = source(run, case.form)
                with one_core() if case.alone else nullcontext():
                    started = time.perf_counter()
                    case.run(count, messages)
                if run > 0:  # the first round warms up
                    rates[name].append(count / (time.perf_counter() - started))
                advance(1)
    return {name: statistics.median(values) for name, values in rates.items()}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit status: 1 where the goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publisher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=5, help="default %(default)s")
    parser.add_argument("--messages", type=int, default=50_000, help="in each run; default %(default)s")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    count = -(-options.messages // BATCH) * BATCH
    with (
        TemporaryDirectory(prefix="bench-publisher-") as directory,
        LocalStack(bigquery=False) as stack,
        stack.endpoints.activate() as endpoints,
    ):
        name = f"bench-{uuid.uuid4().hex[:12]}"
        topic = topics.create_topic(endpoints.project, name)
        topics.create_subscription(endpoints.project, f"{name}-sub", topic)
        rates = measure(Path(directory), topic, options.runs, count)
    if options.format == "json":
        print(json.dumps({"messages": count, "runs": options.runs, "messages_per_second": rates}))
    else:
        print(f"{count:,} messages, median of {options.runs} runs")
        reference = rates.get(REFERENCE)
        for name, rate in rates.items():
            published = reference is not None and "publish" in name and "card" not in name
            ratio = f", {rate / reference:.1f} times the {REFERENCE}" if published and reference else ""
            print(f"{name:22} {rate:10,.0f} a second{ratio}")
        print(f"goal: make at least {GOAL:,} a second on one core, of either kind")
    return 0 if min(rates["make"], rates["make, card"]) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

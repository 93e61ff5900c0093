"""The scenarios of the campaign: each breaks one part while messages flow, and counts afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from common.pubsub import publisher_client
from local.bigquery import BigQueryEmulator
from local.process import HOST, free_port
from local.pubsub import EmbeddedPubSub
from model.synthetic.generator import TransactionGenerator
from publisher.messages import MessageSource
from tests.campaign.bench import STORED, Bench, Outcome, confirmed, paused, until
from tests.model.serving.servers import container
from tests.model.serving.vertex_cases import serve_through
from tests.model.serving.vertex_server import vertex_server

RATE: Final = 200
"""Messages a second: about half of what a stream on two busy cores takes."""
PATIENCE: Final = 240.0
"""Seconds after the last fault in which everything has to be in the tables."""
MALFORMED: Final = ("--malformed_share", "0.02", "--fraud_share", "0.01")
ENDPOINT: Final = "projects/my-project/locations/us-central1/endpoints/5"


@dataclass(frozen=True)
class Size:
    """Lengths of the scenarios.

    Attributes:
      fault_seconds: length of an outage.
      kills: of a process.
      messages: of the fuzz.
      soak_seconds: of the run without a fault.
    """

    fault_seconds: float = 150.0
    kills: int = 6
    messages: int = 30_000
    soak_seconds: float = 600.0


Scenario = Callable[[str, Path, Size], Outcome]


def _under(
    name: str, fault: str, bench: Bench, seconds: float, break_it: Callable[[], None], note: str = ""
) -> Outcome:
    """Publishes from before a fault until after it, and waits until the tables hold everything."""
    bench.start_stream()
    publisher = bench.publish(int(RATE * (seconds + 10)), RATE, *MALFORMED)
    until(lambda: bench.stored() > 0)
    break_it()
    over = time.monotonic()
    sent = confirmed(publisher)
    over = max(over, time.monotonic())
    return bench.outcome(name, fault, sent, bench.settle(sent, PATIENCE) - over, note)


def kill_stream(model: str, directory: Path, size: Size) -> Outcome:
    """SIGKILL to the pipeline again and again, each time at another moment."""
    chance = random.Random(size.kills)
    with Bench(model, directory) as bench:

        def break_it() -> None:
            for _ in range(size.kills):
                time.sleep(chance.uniform(2.0, 6.0))
                before = bench.stored()
                bench.start_stream()
                until(partial(_grown, bench, before))  # the next one is to meet a pipeline that works

        return _under("kill_stream", f"{size.kills} times SIGKILL", bench, size.kills * 12.0, break_it)


def _grown(bench: Bench, rows: int) -> bool:
    return bench.stored() > rows


def pause_bigquery(model: str, directory: Path, size: Size) -> Outcome:
    """BigQuery answers nothing for a while; its connections stay."""
    with Bench(model, directory) as bench:

        def break_it() -> None:
            with paused(bench.emulator(BigQueryEmulator)):
                time.sleep(size.fault_seconds)

        fault = f"SIGSTOP for {size.fault_seconds:.0f} s"
        return _under("pause_bigquery", fault, bench, size.fault_seconds, break_it)


def restart_bigquery(model: str, directory: Path, size: Size) -> Outcome:
    """BigQuery is gone, its connections are refused, and it comes back with its tables."""
    with Bench(model, directory) as bench:

        def break_it() -> None:
            bench.restart(BigQueryEmulator, size.fault_seconds)

        fault = f"away for {size.fault_seconds:.0f} s"
        return _under("restart_bigquery", fault, bench, size.fault_seconds, break_it)


def pause_pubsub(model: str, directory: Path, size: Size) -> Outcome:
    """Pub/Sub answers nothing for a while, to the publisher and to the pipeline."""
    seconds = min(size.fault_seconds, 40.0)  # the publisher gives a request up after 60
    with Bench(model, directory) as bench:

        def break_it() -> None:
            with paused(bench.emulator(EmbeddedPubSub)):
                time.sleep(seconds)

        return _under("pause_pubsub", f"SIGSTOP for {seconds:.0f} s", bench, seconds, break_it)


@contextmanager
def _vertex(model: str) -> Iterator[tuple[list[str], Callable[[float], None]]]:
    """A Vertex AI endpoint before the FastAPI server; gives the pipeline's flags, and a way to break it."""
    port = free_port()
    with vertex_server() as server:
        serve_through(server, ENDPOINT, f"http://{HOST}:{port}")
        running = container(model, port=port)
        running.__enter__()

        def kill(seconds: float) -> None:
            nonlocal running
            running.__exit__(None, None, None)
            time.sleep(seconds)
            running = container(model, port=port)
            running.__enter__()

        try:
            yield (
                [
                    "--scorer=vertex",
                    f"--vertex_endpoint={ENDPOINT}",
                    f"--vertex_api_endpoint={server.url}",
                    "--remote_attempts=3",
                ],
                kill,
            )
        finally:
            running.__exit__(None, None, None)


def kill_scorer(model: str, directory: Path, size: Size) -> Outcome:
    """The server that scores goes away and comes back; its requests get 503 meanwhile."""
    seconds = min(size.fault_seconds, 60.0)
    with _vertex(model) as (flags, kill), Bench(model, directory, flags) as bench:
        fault = f"away for {seconds:.0f} s"
        return _under("kill_scorer", fault, bench, seconds, lambda: kill(seconds))


def fuzz(model: str, directory: Path, size: Size) -> Outcome:
    """Messages with bytes flipped, cut, put in and doubled: each is one score or one dead letter."""
    rng = np.random.default_rng(size.messages)
    source = MessageSource(TransactionGenerator(seed=11), malformed_share=0.2)
    with Bench(model, directory) as bench:
        bench.start_stream()
        client = publisher_client()
        sent = 0
        while sent < size.messages:
            made = source.take(min(500, size.messages - sent))
            messages = [
                {"data": _mutated(payload, rng), "attributes": attributes}
                for payload, attributes in zip(made.payloads, made.attributes, strict=True)
            ]
            client.transport.publish({"topic": bench.topic, "messages": messages}, timeout=60)
            sent += len(made)
        client.transport.close()
        over = time.monotonic()
        waited = bench.settle(sent, PATIENCE) - over
        return bench.outcome("fuzz", "1 to 4 mutations a message", sent, waited, f"{bench.starts} start")


def _mutated(payload: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(payload)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data) + 1))
        match int(rng.integers(4)):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + int(rng.integers(1, 20))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 8)))
            case _:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
    return bytes(data)


def soak(model: str, directory: Path, size: Size) -> Outcome:
    """No fault for a long time: memory, threads and open files stay as they are."""
    with Bench(model, directory) as bench:
        bench.start_stream()
        count = int(RATE * (size.soak_seconds + 10))
        publisher = bench.publish(count, RATE, *MALFORMED)
        until(lambda: bench.stored() > 0)
        time.sleep(size.soak_seconds * 0.2)
        assert bench.stream is not None
        process = psutil.Process(bench.stream.pid)
        before = _resources(process)
        time.sleep(size.soak_seconds * 0.8)
        after = _resources(process)
        sent = confirmed(publisher)
        over = time.monotonic()
        waited = bench.settle(sent, PATIENCE) - over
        note = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before)
        return bench.outcome("soak", f"none, {size.soak_seconds:.0f} s", sent, waited, note)


def _resources(process: psutil.Process) -> dict[str, int]:
    return {
        "MB": process.memory_info().rss // 1_000_000,
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }


def kill_batch(model: str, directory: Path, size: Size) -> Outcome:
    """SIGKILL to a batch job at any moment: each of its tables has all rows or none."""
    chance = random.Random(7)
    lines = directory / "lines.jsonl"
    sent = 20_000
    with Bench(model, directory) as bench:
        writer = bench.command("publisher", "--jsonl", str(lines), "--count", str(sent), *MALFORMED)
        writer.communicate()
        with lines.open("rb") as file:
            sent = sum(1 for line in file if line.strip())  # a blank line is no message
        argv = [f"--input={lines}", f"--model={model}", f"--output_dataset={bench.dataset}"]
        argv += bench.endpoints.pipeline_args()
        started = time.monotonic()
        bench.command("pipelines.batch", *argv).communicate()
        seconds = time.monotonic() - started
        whole = {name: bench.count(name) for name in STORED}
        torn = 0
        for _ in range(size.kills):
            job = bench.command("pipelines.batch", *argv)
            time.sleep(seconds * chance.uniform(0.3, 1.0))
            job.kill()
            job.communicate()
            torn += any(bench.count(name) % rows for name, rows in whole.items())
        # Equal lines without an id are one row of the views: the rows of the first job count here. A job that
        # was killed after its commit has stored all of them again.
        scored, dead = whole.values()
        copies = sum(bench.count(name) for name in STORED) - scored - dead
        fault = f"{size.kills} times SIGKILL"
        note = f"{torn} of {size.kills} left a part of a table"
        return Outcome("kill_batch", fault, sent, scored, dead, sent - scored - dead, copies, 0.0, note)


SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        kill_stream,
        pause_bigquery,
        restart_bigquery,
        pause_pubsub,
        kill_scorer,
        fuzz,
        kill_batch,
        soak,
    )
}

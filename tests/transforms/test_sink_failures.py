"""A sink that fails costs itself: copies are counted in the others, attempt by attempt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest

import transforms.sinks
from common.clients import BigQueryEndpoints
from tests.transforms.bigquery_server import Fault, Request, ScriptedBigQuery
from tests.transforms.retrying_runner import RetryingRunner
from tests.transforms.test_bigquery_sink import score
from transforms.alert import Alert
from transforms.dead_letter import dead_letters
from transforms.detect import Detected
from transforms.schema import SCORES
from transforms.sinks import PublishRows, WriteTables
from transforms.thresholds import with_thresholds

ROWS = 1_000
ATTEMPTS = 5
ALERTING = with_thresholds(SCORES, {"medium": 2.0, "high": 3.0})
SINKS = ("scores", "alerts", "error_records", "topic")

published: list[str] = []
topic_failures: list[int] = []


def publish(message: beam.io.PubsubMessage) -> None:
    if topic_failures:
        topic_failures.pop()
        raise ValueError("the topic refuses")
    published.append(message.attributes["transaction_id"])


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    published.clear()
    topic_failures.clear()
    with ScriptedBigQuery("p.d.scores") as server:
        yield server


def run(server: ScriptedBigQuery, runner: RetryingRunner) -> None:
    rows = [score(f"{i}", severity="high" if i % 100 == 0 else "normal") for i in range(ROWS)]
    letters = dead_letters([b"x"] * 5, ["wrong"] * 5, "parse", [{"message_id": str(i)} for i in range(5)])
    with beam.Pipeline(runner=runner) as p:
        batches = p | beam.Create([(pa.RecordBatch.from_pylist(rows, ALERTING), letters)], reshuffle=False)
        scores = batches | "Score" >> beam.Map(lambda both: both[0]).with_output_types(pa.RecordBatch)
        dead = batches | "Dead" >> beam.Map(lambda both: both[1]).with_output_types(pa.RecordBatch)
        alerts = scores | Alert()
        endpoints = BigQueryEndpoints(storage=server.address)
        _ = Detected(scores, alerts, dead) | WriteTables("p.d", streaming=True, endpoints=endpoints)
        _ = alerts | PublishRows("projects/p/topics/alerts", apart=True)


@pytest.mark.parametrize("failing", SINKS)
def test_while_a_sink_refuses_the_others_store_each_row_once(server, monkeypatch, failing):
    monkeypatch.setattr(transforms.sinks.beam.io, "WriteToPubSub", lambda *args, **kwargs: beam.Map(publish))
    refusals = [ATTEMPTS - 1]

    def fault_of(request: Request) -> Fault | None:
        if f"/tables/{failing}/" not in request.stream or not refusals[0]:
            return None
        refusals[0] -= 1
        return Fault("NOT_FOUND")

    server.fault_of = fault_of
    if failing == "topic":
        topic_failures.extend(range(ATTEMPTS - 1))
    runner = RetryingRunner()
    run(server, runner)
    assert sum(runner.failures.values()) == ATTEMPTS - 1
    copies = {
        "scores": Counter(row["transaction_id"] for row in server.rows_of("scores")),
        "alerts": Counter(row["transaction_id"] for row in server.rows_of("alerts")),
        "error_records": Counter(row["attributes"][0]["value"] for row in server.rows_of("error_records")),
        "topic": Counter(published),
    }
    assert {name: sum(count.values()) for name, count in copies.items()} == {
        "scores": ROWS,
        "alerts": ROWS // 100,
        "error_records": 5,
        "topic": ROWS // 100,
    }
    assert {max(count.values()) for count in copies.values()} == {1}

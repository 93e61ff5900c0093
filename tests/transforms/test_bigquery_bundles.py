"""Bundles of a pipeline at the sink: what they send together, how many connections, and what they count."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions

from common.clients import BigQueryEndpoints
from common.retry import Patience
from tests.transforms import bigquery_cases
from tests.transforms.bigquery_server import SLOW, Fault, ScriptedBigQuery
from tests.transforms.test_bigquery_sink import SCHEMA, batch, pipeline
from transforms import metrics
from transforms.bigquery import AppendOptions, WriteBatches
from transforms.bigquery.counters import THROTTLING_NAMESPACE
from transforms.bigquery.sink import AppendToDefaultStream

pytest_plugins = ("tests.transforms.bigquery_fixtures",)

TABLES = ("scores", "alerts", "error_records")


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    with ScriptedBigQuery("p.d.t") as server:
        yield server


def sink(server: ScriptedBigQuery, table: str = "t", **options) -> WriteBatches:
    endpoints = BigQueryEndpoints(storage=server.address)
    return WriteBatches(
        f"p.d.{table}", SCHEMA, streaming=True, endpoints=endpoints, options=AppendOptions(**options)
    )


@pytest.mark.parametrize("batches", [1, 3])
def test_the_sinks_of_a_bundle_send_all_and_then_wait(server, batches):
    # No table answers before all three have been asked: who waits for one after the other waits for ever.
    all_asked = threading.Event()

    def fault_of(request):
        if len({seen.stream for seen in server.requests} | {request.stream}) == len(TABLES):
            all_asked.set()
        return Fault(SLOW, until=all_asked)

    server.fault_of = fault_of
    with pipeline() as p:
        rows = p | beam.Create([batch(f"{i}") for i in range(batches)], reshuffle=False)
        for table in TABLES:
            _ = rows | sink(server, table)
    assert server.impatient == 0
    assert [len(server.rows_of(table)) for table in TABLES] == [batches] * 3
    assert len(server.requests) == 3


def test_a_bundle_that_fails_leaves_nothing_to_the_next_one_of_its_thread(server):
    first, second = (sink(server, table) for table in TABLES[:2])
    failed, next_one = AppendToDefaultStream(first), AppendToDefaultStream(second)
    for fn in (failed, next_one):
        fn.setup()
    failed.start_bundle()
    assert list(failed.process(batch("lost"))) == []
    next_one.start_bundle()  # the first one never finishes
    assert list(next_one.process(batch("kept"))) == []
    assert list(next_one.finish_bundle()) == []
    for fn in (failed, next_one):
        fn.teardown()
    assert server.rows_of("scores") == []
    assert [row["id"] for row in server.rows_of("alerts")] == ["kept"]


def test_the_threads_of_a_process_have_one_connection_a_table(server):
    workers = ["--direct_num_workers=6", "--direct_running_mode=multi_threading"]
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(workers)) as p:
        rows = p | beam.Create(range(60)) | beam.Reshuffle()
        batches = rows | beam.Map(lambda i: batch(f"{i}")).with_output_types(pa.RecordBatch)
        for table in TABLES:
            _ = batches | sink(server, table)
    assert [len(server.rows_of(table)) for table in TABLES] == [60] * 3
    connections = {(request.stream, request.connection) for request in server.requests}
    assert len(connections) == len(TABLES)


def test_a_quota_signals_throttling_to_dataflow(server):
    server.script = {0: Fault("RESOURCE_EXHAUSTED"), 1: Fault("RESOURCE_EXHAUSTED"), 2: Fault("UNAVAILABLE")}
    p = pipeline()
    waits = {"quota_patience": Patience(first=0.6, longest=0.6, steady=1.0), "patience": Patience(first=0)}
    _ = p | beam.Create([batch("a")], reshuffle=False) | sink(server, **waits)
    result = p.run()
    result.wait_until_finish()
    # The name that Dataflow looks for, as in Beam's own sinks.
    wanted = MetricsFilter().with_namespace(THROTTLING_NAMESPACE).with_name("cumulativeThrottlingSeconds")
    (signal,) = result.metrics().query(wanted)["counters"]
    assert signal.committed == 1
    counters = metrics.totals(result)
    assert (counters["t.append_throttled_ms"], counters["t.append_waited_ms"]) == (1200, 1200)
    assert (counters["t.append_errors"], counters["t.append_retries"]) == (3, 3)


def test_attempts_errors_and_waits_are_counted_before_the_wait(server, new_appender, monkeypatch):
    server.script = {0: Fault("UNAVAILABLE")}
    appender, seen, told = new_appender(patience=Patience(first=2, longest=2, steady=1.0)), [], []
    monkeypatch.setattr(appender, "_sleep", lambda seconds: seen.extend(told))
    sending = appender.begin(told.append)
    appender.submit(sending, [bigquery_cases.batch("a")])
    appender.finish(sending)
    assert sum(news.calls for news in seen) == 1
    assert sum(news.errors for news in seen) == 1
    assert sum(news.retries for news in seen) == 1
    assert sum(news.waited for news in seen) == 2
    assert sum(news.rows for news in told) == 1

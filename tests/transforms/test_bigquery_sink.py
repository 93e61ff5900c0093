from __future__ import annotations

import datetime as dt
import pickle
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from google.cloud import bigquery

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.clients import BigQueryEndpoints
from common.retry import Patience
from tests.transforms.bigquery_server import Fault, ScriptedBigQuery
from transforms import metrics
from transforms.bigquery import METHODS, AppendOptions, Commit, WriteBatches
from transforms.schema import SCORES, to_bigquery
from transforms.tables import create_tables, scores_table

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("n", pa.int64())])
T0 = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def batch(*ids: str | None) -> pa.RecordBatch:
    ids_array = pa.array(ids, pa.string())
    return pa.RecordBatch.from_arrays([ids_array, pa.array(range(len(ids)), pa.int64())], schema=SCHEMA)


def score(transaction_id: str | None, **changes) -> dict:
    top = [("V4", 0.5, "1.5"), ("Amount", 0.25, None)]
    row = dict.fromkeys(SCORES.names) | {
        "transaction_id": transaction_id,
        "account_id": "account",
        "event_time": T0,
        "event_time_derived": False,
        "anomaly_score": 3.25,
        "severity": "high",
        "encoded": [1.0, 2.0, 3.0, 4.0],
        "top_features": [dict(zip(("feature", "contribution", "value"), each, strict=True)) for each in top],
        "model_version": "1",
        "scored_at": T0 + dt.timedelta(microseconds=5),
    }
    return row | changes


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner="FnApiRunner")


def rows_of(letters: pa.RecordBatch) -> list[tuple[str, str, str]]:
    return [(row["payloadString"], row["errorMessage"], row["stage"]) for row in letters.to_pylist()]


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    with ScriptedBigQuery("p.d.t") as server:
        server.refuse = lambda row: f"id: {row['id']!r} is bad" if str(row["id"]).startswith("bad") else None
        yield server


def sink(server: ScriptedBigQuery, **kwargs) -> WriteBatches:
    options = AppendOptions(patience=Patience(first=0, longest=0, tries=3))
    defaults = {"endpoints": BigQueryEndpoints(storage=server.address), "options": options}
    return WriteBatches("p.d.t", SCHEMA, **(defaults | kwargs))


class TestAgainstAScriptedServer:
    @pytest.mark.parametrize("streaming", [True, False])
    def test_rows_in_are_rows_stored_and_dead_letters(self, server, streaming):
        server.script = {0: Fault("UNAVAILABLE"), 1: Fault("INTERNAL", in_band=False)}
        p = pipeline()
        batches = p | beam.Create([batch("a", "bad1"), batch("b"), batch("bad2", "c")], reshuffle=False)
        written = batches | sink(server, streaming=streaming)
        assert_that(
            written.dead_letters | beam.FlatMap(rows_of),
            equal_to(
                [
                    ('{"id":"bad1","n":1}', "id: 'bad1' is bad", "sink"),
                    ('{"id":"bad2","n":0}', "id: 'bad2' is bad", "sink"),
                ]
            ),
        )
        result = p.run()
        result.wait_until_finish()
        assert sorted(row["id"] for row in server.visible) == ["a", "b", "c"]
        counters = metrics.totals(result)
        assert counters == {
            "t.rows_written": 3,
            "t.rows_refused": 2,
            "t.append_calls": 4,
            "t.append_errors": 3,
            "t.append_retries": 2,
        }

    def test_a_bundle_is_one_request_however_small_its_batches(self, server):
        with pipeline() as p:
            batches = p | beam.Create([batch(str(i)) for i in range(50)], reshuffle=False)
            _ = batches | sink(server, streaming=True)
        assert [request.rows for request in server.requests] == [50]

    def test_a_failing_bundle_leaves_nothing_of_a_batch_job(self, server):
        def fail(batch: pa.RecordBatch) -> pa.RecordBatch:
            if batch.column("id")[0].as_py() == "boom":
                raise ValueError("this bundle fails")
            return batch

        p = pipeline()
        first = p | "First" >> beam.Create([batch("a", "b")])
        second = (
            p | "Second" >> beam.Create([batch("boom")]) | beam.Map(fail).with_output_types(pa.RecordBatch)
        )
        _ = (first, second) | beam.Flatten() | sink(server)
        with pytest.raises(Exception, match="this bundle fails"):
            p.run().wait_until_finish()
        assert server.commits == []
        assert server.visible == []

    def test_an_append_that_fails_for_good_leaves_nothing_of_a_batch_job(self, server):
        # The first request of the job is stored, on a pending stream; then the service is gone.
        server.script = {i: Fault("UNAVAILABLE") for i in range(1, 50)}
        options = AppendOptions(patience=Patience(first=0.001, longest=0.001, tries=3), max_request_rows=1)
        p = pipeline()
        _ = p | beam.Create([batch("a", "b")]) | sink(server, options=options)
        with pytest.raises(Exception, match="gave up after 3 attempts"):
            p.run().wait_until_finish()
        assert [len(stream.rows) for stream in server.streams.values()] == [1]
        assert server.visible == []

    def test_several_streams_share_one_commit(self, server):
        with pipeline() as p:
            sources = [p | f"Source {i}" >> beam.Create([batch(f"{i}")]) for i in range(3)]
            streams = [
                source | f"Write {i}" >> sink(server, commit=False) for i, source in enumerate(sources)
            ]
            committed = (
                [written.streams for written in streams]
                | beam.Flatten()
                | Commit(BigQueryEndpoints(storage=server.address))
            )
            assert_that(committed, equal_to([3]))
        assert [len(names) for names in server.commits] == [3]
        assert sorted(row["id"] for row in server.visible) == ["0", "1", "2"]

    @pytest.mark.parametrize("streaming", [True, False])
    def test_no_rows_no_calls(self, server, streaming):
        with pipeline() as p:
            nothing = p | beam.Create([]) | beam.Map(lambda x: x).with_output_types(pa.RecordBatch)
            written = nothing | sink(server, streaming=streaming)
            assert_that(written.dead_letters, equal_to([]))
        assert server.requests == []
        assert server.commits == []
        assert server.streams == {}

    def test_windows_do_not_matter(self, server):
        with pipeline() as p:
            batches = p | beam.Create([TimestampedValue(batch(f"{i}"), i * 100) for i in range(5)])
            windows = batches | beam.WindowInto(FixedWindows(100))
            _ = windows | sink(server)
        assert sorted(row["id"] for row in server.visible) == [str(i) for i in range(5)]
        assert len(server.commits) == 1

    def test_many_bytes_are_sent_before_the_bundle_ends(self, server):
        options = AppendOptions(max_request_bytes=10_000, window=2)
        with pipeline() as p:
            batches = p | beam.Create([batch("x" * 3_000 + str(i)) for i in range(30)], reshuffle=False)
            _ = batches | sink(server, options=options)
        assert len(server.visible) == 30
        assert len(server.commits[0]) == 1
        assert all(request.bytes < 11_000 for request in server.requests)


class TestConstruction:
    def test_an_unknown_method_is_an_error_that_lists_the_known_ones(self):
        with pytest.raises(
            ValueError, match="expected one of storage_arrow, file_loads, storage_write_api, got"
        ):
            WriteBatches("p.d.t", SCHEMA, method="avro")

    @pytest.mark.parametrize("table", ["t", "d.t"])
    def test_an_incomplete_table_is_an_error(self, table):
        with pytest.raises(ValueError, match=r"expected PROJECT\.DATASET\.TABLE"):
            WriteBatches(table, SCHEMA)

    @pytest.mark.parametrize("method", METHODS)
    def test_it_can_be_pickled(self, method):
        write = WriteBatches("p.d.t", SCORES, method=method)
        assert pickle.loads(pickle.dumps(write)).schema == SCORES

    def test_two_sinks_of_a_pipeline_need_no_labels(self, server):
        p = pipeline()
        batches = p | beam.Create([batch("a")])
        _ = batches | WriteBatches("p.d.one", SCHEMA)
        _ = batches | WriteBatches("p.d.two", SCHEMA)


@pytest.fixture
def table(bigquery_client, dataset) -> str:
    create_tables(bigquery_client, dataset, [scores_table()])
    return f"{bigquery_client.project}.{dataset}.scores"


@pytest.fixture
def endpoints(bigquery_emulator) -> BigQueryEndpoints:
    return BigQueryEndpoints(bigquery_emulator.bigquery, bigquery_emulator.bigquery_storage)


def select(client: bigquery.Client, table: str) -> list[dict]:
    rows = client.query(f"SELECT * FROM `{table}` ORDER BY transaction_id").result()
    return [dict(row.items()) for row in rows]


@pytest.mark.integration
class TestOnTheEmulator:
    @pytest.mark.parametrize("streaming", [True, False])
    def test_rows_arrive_as_they_were(self, bigquery_client, endpoints, table, streaming):
        rows = [score("a"), score("b", account_id=None, encoded=[], top_features=[], severity="normal")]
        with pipeline() as p:
            batches = p | beam.Create([pa.RecordBatch.from_pylist([row], SCORES) for row in rows])
            written = batches | WriteBatches(table, SCORES, streaming=streaming, endpoints=endpoints)
            assert_that(written.dead_letters, equal_to([]))
        assert select(bigquery_client, table) == rows

    @pytest.mark.parametrize("streaming", [True, False])
    def test_a_row_that_bigquery_refuses_is_a_dead_letter_with_its_message(
        self, bigquery_client, endpoints, table, streaming
    ):
        rows = [score("a"), score(None), score("c"), score("d", model_version=None)]
        columns = {name: [row[name] for row in rows] for name in SCORES.names}
        arrays = [pa.array(columns[field.name], field.type) for field in SCORES]
        p = pipeline()
        batches = p | beam.Create([pa.RecordBatch.from_arrays(arrays, schema=SCORES)])
        written = batches | WriteBatches(table, SCORES, streaming=streaming, endpoints=endpoints)
        messages = written.dead_letters | beam.FlatMap(
            lambda letters: [
                (row["errorMessage"].partition(":")[0], row["attributes"]) for row in letters.to_pylist()
            ]
        )
        where = [{"key": "table", "value": table}]
        assert_that(
            messages,
            equal_to(
                [
                    ("Field transaction_id", where),
                    ("Field model_version", where),
                ]
            ),
        )
        result = p.run()
        result.wait_until_finish()
        assert [row["transaction_id"] for row in select(bigquery_client, table)] == ["a", "c"]
        counters = metrics.totals(result)
        assert (counters["scores.rows_written"], counters["scores.rows_refused"]) == (2, 2)

    def test_a_batch_job_that_fails_leaves_no_row(self, bigquery_client, endpoints, table):
        def fail(_: int) -> pa.RecordBatch:
            raise ValueError("this bundle fails")

        p = pipeline()
        good = p | "Good" >> beam.Create([pa.RecordBatch.from_pylist([score("a")], SCORES)])
        bad = p | "Bad" >> beam.Create([1]) | beam.Map(fail).with_output_types(pa.RecordBatch)
        _ = (good, bad) | beam.Flatten() | WriteBatches(table, SCORES, endpoints=endpoints)
        with pytest.raises(Exception, match="this bundle fails"):
            p.run().wait_until_finish()
        assert select(bigquery_client, table) == []

    @pytest.fixture
    def numbers(self, bigquery_client, dataset) -> str:
        table = f"{bigquery_client.project}.{dataset}.numbers"
        bigquery_client.create_table(bigquery.Table(table, [bigquery.SchemaField("n", "INT64")]))
        return table

    @pytest.mark.parametrize("streaming", [True, False])
    def test_a_table_of_other_types_is_an_error_that_names_the_column(
        self, bigquery_client, endpoints, numbers, streaming
    ):
        rows = pa.RecordBatch.from_pydict({"n": ["1", "2", "three"]})
        p = pipeline()
        sink = WriteBatches(numbers, rows.schema, streaming=streaming, endpoints=endpoints)
        _ = p | beam.Create([rows]) | sink
        with pytest.raises(Exception, match=r"column n: the table has INT64, the rows have STRING"):
            p.run().wait_until_finish()
        assert list(bigquery_client.query(f"SELECT n FROM `{numbers}`").result()) == []

    def test_a_table_that_does_not_exist_is_named(self, bigquery_emulator, endpoints, dataset):
        table = f"{bigquery_emulator.project}.{dataset}.nowhere"
        p = pipeline()
        _ = p | beam.Create([batch("a")]) | WriteBatches(table, SCHEMA, endpoints=endpoints)
        with pytest.raises(Exception, match=rf"datasets/{dataset}/tables/nowhere"):
            p.run().wait_until_finish()

    def test_a_table_that_lacks_a_column_is_an_error(self, bigquery_client, endpoints, dataset):
        table = f"{bigquery_client.project}.{dataset}.narrow"
        bigquery_client.create_table(bigquery.Table(table, to_bigquery([SCHEMA.field("id")])))
        p = pipeline()
        _ = p | beam.Create([batch("a", "b")]) | WriteBatches(table, SCHEMA, endpoints=endpoints)
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT: .*\bn\b"):
            p.run().wait_until_finish()
        assert list(bigquery_client.query(f"SELECT * FROM `{table}`").result()) == []

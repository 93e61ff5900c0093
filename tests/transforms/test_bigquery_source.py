from __future__ import annotations

import datetime as dt
import pickle
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from google.cloud import bigquery

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.clients import BigQueryEndpoints
from features.ulb import FEATURES
from transforms import metrics
from transforms.bigquery import ReadBatches
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.source import arrow_schema, create_streams, read_batches
from transforms.bigquery.streams import default_stream
from transforms.columnar import to_transactions
from transforms.schema import to_bigquery

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("n", pa.int64()),
        pa.field("x", pa.float64()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("values", pa.list_(pa.float64())),
        pa.field("pairs", pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())]))),
    ]
)
T0 = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ROWS = [
    {
        "id": f"row {i}",
        "n": i,
        "x": None if i == 1 else i / 2,
        "at": T0 + dt.timedelta(microseconds=i),
        "values": [float(i)] * i,
        "pairs": [{"key": "k", "value": 0.5}],
    }
    for i in range(4)
]


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner="FnApiRunner")


@pytest.fixture(scope="module")
def endpoints(bigquery_emulator) -> BigQueryEndpoints:
    return BigQueryEndpoints(bigquery_emulator.bigquery, bigquery_emulator.bigquery_storage)


@pytest.fixture(scope="module")
def client(endpoints, bigquery_emulator) -> bigquery.Client:
    return endpoints.client(bigquery_emulator.project)


@pytest.fixture(scope="module")
def source(client) -> Iterator[str]:
    """A dataset "PROJECT.DATASET" for all tests, which only read."""
    name = f"{client.project}.source"
    client.create_dataset(name, exists_ok=True)
    yield name
    client.delete_dataset(name, delete_contents=True)


def fill(client: bigquery.Client, endpoints: BigQueryEndpoints, table: str, rows: pa.RecordBatch) -> str:
    client.create_table(bigquery.Table(table, to_bigquery(rows.schema)))
    channel = WriteChannel(endpoints.write_client)
    appender = Appender(channel, default_stream(table), rows.schema)
    assert appender.append([rows]).rows == rows.num_rows
    appender.close()
    channel.close()
    return table


@pytest.fixture(scope="module")
def table(client, endpoints, source) -> str:
    return fill(client, endpoints, f"{source}.small", pa.RecordBatch.from_pylist(ROWS, SCHEMA))


@pytest.fixture(scope="module")
def big_table(client, endpoints, source) -> str:
    """Over 1 MB, so that it has several streams."""
    numbers = np.arange(60_000)
    columns = [pa.array(numbers.astype(str)), pa.array(numbers), pa.array(numbers / 2)]
    schema = pa.schema(list(SCHEMA)[:3])
    return fill(client, endpoints, f"{source}.big", pa.RecordBatch.from_arrays(columns, schema=schema))


@pytest.mark.integration
class TestOnTheEmulator:
    def test_a_table(self, endpoints, table):
        with pipeline() as p:
            rows = p | ReadBatches(table, endpoints=endpoints) | beam.FlatMap(lambda rows: rows.to_pylist())
            assert_that(rows, equal_to(ROWS))

    def test_columns_come_in_the_types_of_the_table(self, endpoints, table):
        (stream,) = create_streams(ReadBatches(table, endpoints=endpoints))
        read_client = endpoints.read_client()
        (batch,) = read_batches(read_client, stream)
        read_client.transport.close()
        assert batch.schema.names == SCHEMA.names
        assert batch.schema.types[:5] == SCHEMA.types[:5]

    def test_chosen_columns_and_a_row_filter(self, endpoints, table):
        read = ReadBatches(table, columns=["n", "id"], row_filter="n >= 2", endpoints=endpoints)
        with pipeline() as p:
            rows = p | read | beam.FlatMap(lambda rows: rows.to_pylist())
            assert_that(rows, equal_to([{"n": 2, "id": "row 2"}, {"n": 3, "id": "row 3"}]))

    @pytest.mark.parametrize("query", [False, True])
    def test_of_optional_columns_those_are_read_that_there_are(self, endpoints, client, table, query):
        what = {"query": f"SELECT * FROM `{table}`"} if query else {"table": table, "row_filter": "x > 0.5"}
        read = ReadBatches(
            **what,
            columns=["gone", "n", "id"],
            optional=True,
            project=client.project,
            max_streams=1,
            endpoints=endpoints,
        )
        (stream,) = create_streams(read)
        assert set(pa.ipc.read_schema(pa.py_buffer(stream.schema)).names) == {"n", "id"}
        with pipeline() as p:
            rows = p | read | beam.FlatMap(lambda rows: rows.to_pylist())
            kept = range(4) if query else (2, 3)
            assert_that(rows, equal_to([{"n": i, "id": f"row {i}"} for i in kept]))

    def test_no_matching_row_gives_no_batch(self, endpoints, table):
        with pipeline() as p:
            assert_that(p | ReadBatches(table, row_filter="n > 99", endpoints=endpoints), equal_to([]))

    @pytest.mark.parametrize("max_streams", [1, 3])
    def test_every_row_is_read_once_from_all_streams(self, endpoints, big_table, max_streams):
        read = ReadBatches(big_table, max_streams=max_streams, batch_rows=1_000, endpoints=endpoints)
        assert len(create_streams(read)) == max_streams
        p = pipeline()
        batches = p | read
        sizes = batches | "Sizes" >> beam.Map(lambda rows: rows.num_rows)
        total = batches | "N" >> beam.Map(lambda rows: sum(rows["n"].to_pylist())) | beam.CombineGlobally(sum)
        assert_that(total, equal_to([60_000 * 59_999 // 2]), label="total")
        assert_that(sizes, equal_to([1_000] * 60), label="sizes")
        result = p.run()
        result.wait_until_finish()
        assert metrics.totals(result) == {"rows_read": 60_000}

    def test_a_query(self, endpoints, client, table):
        sql = f"SELECT id, n * 10 AS tens FROM `{table}` WHERE n > 1"
        read = ReadBatches(query=sql, project=client.project, endpoints=endpoints)
        with pipeline() as p:
            rows = p | read | beam.FlatMap(lambda rows: rows.to_pylist())
            assert_that(rows, equal_to([{"id": "row 2", "tens": 20}, {"id": "row 3", "tens": 30}]))

    def test_the_project_of_the_pipeline_pays_for_a_query(self, endpoints, client, table):
        argv = [f"--project={client.project}"]
        with beam.Pipeline(runner="FnApiRunner", argv=argv) as p:
            read = ReadBatches(query=f"SELECT n FROM `{table}` WHERE n = 1", endpoints=endpoints)
            rows = p | read | beam.FlatMap(lambda rows: rows.to_pylist())
            assert_that(rows, equal_to([{"n": 1}]))

    def test_rows_in_the_ulb_layout_become_transactions(self, endpoints, client, source):
        columns = {name: [float(i), float(i) + 1] for i, name in enumerate(FEATURES)} | {"Class": [0, 1]}
        table = fill(client, endpoints, f"{source}.ulb", pa.RecordBatch.from_pydict(columns))
        with pipeline() as p:
            rows = (
                p
                | ReadBatches(table, endpoints=endpoints)
                | beam.Map(lambda batch: to_transactions(batch, T0).transactions)
                | beam.FlatMap(lambda batch: batch["features"].to_pylist())
            )
            expected = [[float(i) for i in range(30)], [float(i) + 1 for i in range(30)]]
            assert_that(rows, equal_to(expected))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"table": "{source}.nowhere"}, r"Table .*\.source\.nowhere cannot be read"),
            (
                {"table": "{source}.small", "columns": ["n", "gone"]},
                r"\.source\.small cannot be read with columns n, gone: .*gone",
            ),
            (
                {"table": "{source}.small", "row_filter": "gone > 1"},
                r"\.source\.small cannot be read with row filter 'gone > 1': ",
            ),
            (
                {"table": "{source}.nowhere", "columns": ["n"], "optional": True},
                r"\.source\.nowhere cannot be read: ",
            ),
            ({"query": "SELECT gone FROM `{source}.small`"}, r"The query failed: .*gone"),
        ],
    )
    def test_an_error_names_what_was_read(self, endpoints, client, table, source, settings, message):
        filled = {
            key: value.format(source=source) if isinstance(value, str) else value
            for key, value in settings.items()
        }
        p = pipeline()
        _ = p | ReadBatches(**filled, project=client.project, endpoints=endpoints)
        with pytest.raises(Exception, match=message):
            p.run().wait_until_finish()


@pytest.mark.integration
def test_the_schema_of_a_table_in_arrow_is_that_of_its_batches(client, endpoints, table):
    (stream,) = create_streams(ReadBatches(table, endpoints=endpoints))
    read = pa.ipc.read_schema(pa.py_buffer(stream.schema))
    schema = arrow_schema(client.get_table(table).schema)
    assert schema.names == read.names
    assert schema.types[:5] == read.types[:5]
    assert pa.types.is_list(schema.field("pairs").type)


class TestConstruction:
    @pytest.mark.parametrize("settings", [{}, {"table": "p.d.t", "query": "SELECT 1"}])
    def test_a_table_or_a_query(self, settings):
        with pytest.raises(ValueError, match="expected either table or query"):
            ReadBatches(**settings)

    @pytest.mark.parametrize("settings", [{"max_streams": -1}, {"batch_rows": 0}])
    def test_numbers_out_of_range_are_named(self, settings):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ReadBatches("p.d.t", **settings)

    def test_an_incomplete_table_is_an_error(self):
        with pytest.raises(ValueError, match=r"expected PROJECT\.DATASET\.TABLE"):
            ReadBatches("t")

    def test_it_can_be_pickled(self):
        read = ReadBatches("p.d.t", columns=["a"], row_filter="a > 1")
        assert pickle.loads(pickle.dumps(read)).columns == ["a"]

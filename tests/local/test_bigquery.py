"""Each fix of the BigQuery emulator, seen through Google's own clients."""

import concurrent.futures
import datetime
import os

import duckdb
import grpc
import pyarrow as pa
import pytest
from google.api_core.exceptions import GoogleAPICallError, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient, types
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from local.bigquery import BigQueryEmulator
from local.process import LocalStackError
from local.stack import LocalStack
from tests.local.bigquery_cases import ARROW, FIELDS, UTC, rows_of

pytestmark = pytest.mark.integration


def parent(table):
    project, dataset, name = table.split(".")
    return f"projects/{project}/datasets/{dataset}/tables/{name}"


def batch(ids, schema=ARROW):
    moment = datetime.datetime(2026, 1, 2, tzinfo=UTC)
    data = [{"id": i, "moment": moment, "parts": [{"name": f"{i}-part"}]} for i in ids]
    return pa.RecordBatch.from_pylist(data, schema=schema)


def request(stream, data, offset=None):
    return types.AppendRowsRequest(
        write_stream=stream,
        offset=offset,
        arrow_rows=types.AppendRowsRequest.ArrowData(
            writer_schema=types.ArrowSchema(serialized_schema=data.schema.serialize().to_pybytes()),
            rows=types.ArrowRecordBatch(serialized_record_batch=data.serialize().to_pybytes()),
        ),
    )


def append(client, stream, *batches):
    return list(client.append_rows(iter([request(stream, data) for data in batches])))


def default_stream(table):
    return f"{parent(table)}/streams/_default"


# Start ---------------------------------------------------------------------------------------------------


def test_starts_without_downloading_extensions(tmp_path, monkeypatch):
    # DuckDB keeps downloaded extensions below the home directory.
    monkeypatch.setenv("HOME", str(tmp_path))
    with LocalStack(pubsub="none") as stack, stack.endpoints.activate():
        assert rows_of(bigquery.Client(), "SELECT 1") == [(1,)]
    assert not list(tmp_path.rglob("*.duckdb_extension*"))


def test_default_credentials_are_found_at_once_and_work(bigquery_emulator):
    # No `credentials=`: google.auth.default() finds the stack's key, and its token comes from the emulator.
    # Activated again, because another fixture's stack may have been activated since.
    with bigquery_emulator.activate():
        client = bigquery.Client()
        assert (client.project, rows_of(client, "SELECT 'in'")) == (bigquery_emulator.project, [("in",)])
        assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == bigquery_emulator.credentials_file


@pytest.mark.parametrize("port", ["bigquery_port", "bigquery_storage_port"])
def test_a_taken_port_is_an_error_and_not_shared(bigquery_emulator, port):
    address = bigquery_emulator.bigquery if port == "bigquery_port" else bigquery_emulator.bigquery_storage
    taken = int(address.rsplit(":", 1)[1])
    with pytest.raises(LocalStackError, match=f"port {taken} on 127.0.0.1 is in use"):
        LocalStack(pubsub="none", **{port: taken}).start()
    # Without that check, as when the port is taken a moment later, the emulator itself gives up.
    late = BigQueryEmulator("local-project", **{port.removeprefix("bigquery_"): taken})
    late.launch()
    with pytest.raises(LocalStackError, match="ended while it was starting"):
        late.wait()


# Threads, memory, persistence ----------------------------------------------------------------------------


def test_many_open_append_streams_beside_queries(bigquery_emulator, bigquery_client, table):
    """More streams than the default thread pool has threads, each held open, while REST reads and writes."""
    streams, appends = 24, 5
    with grpc.insecure_channel(bigquery_emulator.bigquery_storage) as wire:
        client = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=wire))
        barrier = concurrent.futures.Future()

        def requests(number):
            for index in range(appends):
                yield request(default_stream(table), batch([f"{number}-{index}"]))
            barrier.result(timeout=60)  # keeps this stream open until every stream has its answers

        calls = [client.append_rows(requests(number)) for number in range(streams)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            count = f"SELECT count(*) FROM `{table}`"
            counts = [pool.submit(rows_of, bigquery_client, count) for _ in range(20)]
            rows = [[{"id": f"r{i}"}] for i in range(20)]
            inserts = [pool.submit(bigquery_client.insert_rows_json, table, row) for row in rows]
            for call in calls:
                assert [next(call).error.code for _ in range(appends)] == [0] * appends
            assert [insert.result() for insert in inserts] == [[]] * 20
            assert all(0 <= count.result()[0][0] <= streams * appends + 20 for count in counts)
        barrier.set_result(None)
        for call in calls:
            assert list(call) == []
    assert rows_of(bigquery_client, f"SELECT count(*), count(DISTINCT id) FROM `{table}`") == [(140, 140)]


def test_persistent_data_survives_and_holds_no_copies(tmp_path):
    data = tmp_path / "data"
    with LocalStack(pubsub="none", data_dir=data) as stack, stack.endpoints.activate() as endpoints:
        client = bigquery.Client()
        client.create_dataset("kept")
        client.create_table(bigquery.Table(f"{client.project}.kept.t", FIELDS))
        with grpc.insecure_channel(endpoints.bigquery_storage) as wire:
            writer = BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=wire))
            append(writer, default_stream(f"{client.project}.kept.t"), *(batch([str(i)]) for i in range(30)))
    with duckdb.connect(str(data / "bqemulator.duckdb"), read_only=True) as database:
        copies = "SELECT count(*) FROM duckdb_tables() WHERE schema_name = '_bqemulator_snapshots'"
        assert database.execute(copies).fetchall() == [(0,)]
    with LocalStack(pubsub="none", data_dir=data) as stack, stack.endpoints.activate():
        client = bigquery.Client()
        assert rows_of(client, "SELECT count(*), min(id) FROM kept.t") == [(30, "0")]
        assert client.get_table("kept.t").num_rows == 30


# Storage Write API ---------------------------------------------------------------------------------------


def test_nested_records_survive_an_append(bigquery_client, write_client, table):
    append(write_client, default_stream(table), batch(["a"]))
    moment = datetime.datetime(2026, 1, 2, tzinfo=UTC)
    assert rows_of(bigquery_client, f"SELECT id, moment, parts FROM `{table}`") == [
        ("a", moment, [{"name": "a-part"}])
    ]


def test_a_null_in_a_required_column_is_an_error_of_its_row(bigquery_client, write_client, table):
    refused, accepted = append(write_client, default_stream(table), batch(["a", None, "c"]), batch(["d"]))
    assert refused.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    (error,) = refused.row_errors
    assert (error.index, error.code) == (1, types.RowError.RowErrorCode.FIELDS_ERROR)
    assert "id" in error.message
    assert not accepted.error.code
    assert rows_of(bigquery_client, f"SELECT id FROM `{table}`") == [("d",)]


def test_a_timestamp_beyond_the_year_9999_is_an_error_of_its_row(write_client, table):
    data = batch(["a", "b"])
    far = pa.array([0, 400_000_000_000_000_000], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    (answer,) = append(
        write_client, default_stream(table), data.set_column(1, data.schema.field("moment"), far)
    )
    assert [error.index for error in answer.row_errors] == [1]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (pa.schema([*ARROW, pa.field("other", pa.string())]), "other"),
        (
            pa.schema([ARROW.field("id"), pa.field("moment", pa.list_(pa.string())), ARROW.field("parts")]),
            "fit",
        ),
    ],
)
def test_columns_that_do_not_fit_are_invalid(write_client, bigquery_client, table, schema, reason):
    data = pa.RecordBatch.from_pylist([{"id": "a"}], schema=schema)
    refused, accepted = append(write_client, default_stream(table), data, batch(["b"]))
    assert refused.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert reason in refused.error.message
    assert not accepted.error.code
    assert rows_of(bigquery_client, f"SELECT id FROM `{table}`") == [("b",)]


def test_pending_streams_are_committed_together_once(bigquery_client, write_client, table):
    kind = types.WriteStream(type_=types.WriteStream.Type.PENDING)
    streams = []
    for number in range(3):
        streams.append(write_client.create_write_stream(parent=parent(table), write_stream=kind).name)
        append(write_client, streams[-1], batch([f"{number}"]))
    for stream in streams[:2]:
        write_client.finalize_write_stream(name=stream)

    def commit():
        wanted = types.BatchCommitWriteStreamsRequest(parent=parent(table), write_streams=streams)
        return write_client.batch_commit_write_streams(request=wanted)

    codes = types.StorageError.StorageErrorCode
    early = commit()
    assert [(error.code, error.entity) for error in early.stream_errors] == [
        (codes.INVALID_STREAM_STATE, streams[2])
    ]
    assert rows_of(bigquery_client, f"SELECT count(*) FROM `{table}`") == [(0,)]
    write_client.finalize_write_stream(name=streams[2])
    assert not commit().stream_errors
    assert rows_of(bigquery_client, f"SELECT id FROM `{table}` ORDER BY id") == [("0",), ("1",), ("2",)]
    assert {error.code for error in commit().stream_errors} == {codes.STREAM_ALREADY_COMMITTED}
    assert rows_of(bigquery_client, f"SELECT count(*) FROM `{table}`") == [(3,)]


def test_a_commit_that_fails_half_way_leaves_nothing(bigquery_client, write_client, dataset):
    names = [f"{bigquery_client.project}.{dataset}.{name}" for name in ("kept", "dropped")]
    kind = types.WriteStream(type_=types.WriteStream.Type.PENDING)
    streams = []
    for name in names:
        bigquery_client.create_table(bigquery.Table(name, FIELDS))
        streams.append(write_client.create_write_stream(parent=parent(name), write_stream=kind).name)
        append(write_client, streams[-1], batch(["a"]))
        write_client.finalize_write_stream(name=streams[-1])
    bigquery_client.delete_table(names[1])  # the second write of the commit will fail
    with pytest.raises(GoogleAPICallError):
        write_client.batch_commit_write_streams(
            request=types.BatchCommitWriteStreamsRequest(parent=parent(names[0]), write_streams=streams),
            retry=None,
        )
    assert rows_of(bigquery_client, f"SELECT count(*) FROM `{names[0]}`") == [(0,)]


# Storage Read API ----------------------------------------------------------------------------------------


def test_the_result_of_a_query_is_read_in_arrow(bigquery_client, read_client):
    job = bigquery_client.query("SELECT x, x * 2 AS y FROM UNNEST(GENERATE_ARRAY(1, 5)) AS x")
    job.result()
    path = job.destination.to_bqstorage()
    session = read_client.create_read_session(
        parent=f"projects/{bigquery_client.project}",
        read_session=types.ReadSession(
            table=path,
            data_format=types.DataFormat.ARROW,
            read_options={"selected_fields": ["y"], "row_restriction": "x > 3"},
        ),
        max_stream_count=1,
    )
    data = read_client.read_rows(session.streams[0].name).to_arrow(session)
    assert sorted(data.to_pydict()["y"]) == [8, 10]
    assert bigquery_client.get_table(job.destination).num_rows == 5


def test_clients_need_nothing_but_the_endpoint(bigquery_emulator):
    """The recipe of the docstring of `local.stack`."""
    client = bigquery.Client(
        project=bigquery_emulator.project,
        client_options={"api_endpoint": bigquery_emulator.bigquery},
        credentials=AnonymousCredentials(),
    )
    assert rows_of(client, "SELECT 1") == [(1,)]
    with grpc.insecure_channel(bigquery_emulator.bigquery_storage) as wire:
        reader = BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=wire))
        missing = types.ReadSession(table=parent(f"{client.project}.no.no"), data_format="ARROW")
        with pytest.raises(NotFound):
            reader.create_read_session(parent=f"projects/{client.project}", read_session=missing)

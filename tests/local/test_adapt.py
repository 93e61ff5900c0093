"""Beam's own BigQuery connectors on the local stack."""

import datetime

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp.bigquery import ReadFromBigQuery, WriteToBigQuery
from apache_beam.io.gcp.internal.clients.bigquery import BigqueryV2
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from local.adapt import beam_connectors
from local.endpoints import Endpoints
from local.gcs import local_gcs

ROWS = [
    {"id": "a", "at": "2026-01-02T03:04:05Z", "parts": [{"name": "x"}]},
    {"id": "b", "at": "2026-01-02T03:04:06Z", "parts": []},
]
SCHEMA = [
    SchemaField("id", "STRING", mode="REQUIRED"),
    SchemaField("at", "TIMESTAMP"),
    SchemaField("parts", "RECORD", mode="REPEATED", fields=[SchemaField("name", "STRING")]),
]
API_SCHEMA = {"fields": [field.to_api_repr() for field in SCHEMA]}


@pytest.fixture
def connectors(bigquery_emulator, gcs_root):
    with beam_connectors(bigquery_emulator, gcs_root):
        yield


@pytest.fixture
def table(bigquery_client, dataset):
    name = f"{bigquery_client.project}.{dataset}.t"
    bigquery_client.create_table(bigquery.Table(name, SCHEMA))
    return name


def pipeline(project):
    options = PipelineOptions([f"--project={project}", "--temp_location=gs://local/tmp"])
    return beam.Pipeline(runner="FnApiRunner", options=options)


def stored(client, table):
    return [tuple(row.values()) for row in client.query(f"SELECT * FROM `{table}` ORDER BY id").result()]


def write(client, table, rows, method):
    with pipeline(client.project) as p:
        result = (
            p
            | beam.Create(rows)
            | WriteToBigQuery(
                table.replace(".", ":", 1),
                schema=API_SCHEMA,
                method=method,
                create_disposition="CREATE_NEVER",
                custom_gcs_temp_location="gs://local/tmp",
                insert_retry_strategy="RETRY_ON_TRANSIENT_ERROR",
            )
        )
        if method == "STREAMING_INSERTS":
            failed = result.failed_rows_with_errors | beam.Map(
                lambda item: (item[1]["id"], item[2][0]["location"])
            )
            assert_that(failed, equal_to([(row["id"], "at") for row in rows if row["at"] == "never"]))


@pytest.mark.integration
@pytest.mark.parametrize("method", ["STREAMING_INSERTS", "FILE_LOADS"])
def test_rows_are_written(connectors, bigquery_client, table, method):
    write(bigquery_client, table, ROWS, method)
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert stored(bigquery_client, table) == [
        ("a", moment, [{"name": "x"}]),
        ("b", moment + datetime.timedelta(seconds=1), []),
    ]


@pytest.mark.integration
def test_a_refused_row_comes_back_with_its_reason(connectors, bigquery_client, table):
    write(bigquery_client, table, [*ROWS, {"id": "bad", "at": "never", "parts": []}], "STREAMING_INSERTS")


@pytest.mark.integration
def test_rows_are_read_directly(connectors, bigquery_client, table):
    bigquery_client.insert_rows_json(table, ROWS)
    with pipeline(bigquery_client.project) as p:
        found = (
            p
            | ReadFromBigQuery(
                table=table.replace(".", ":", 1),
                method="DIRECT_READ",
                use_native_datetime=True,
                selected_fields=["id", "parts"],
            )
            | beam.Map(lambda row: (row["id"], [part["name"] for part in row["parts"]]))
        )
        assert_that(found, equal_to([("a", ["x"]), ("b", [])]))


@pytest.mark.integration
def test_a_query_is_read_directly_and_no_dataset_is_lost(connectors, bigquery_client, table, dataset):
    bigquery_client.insert_rows_json(table, ROWS)
    before = {item.dataset_id for item in bigquery_client.list_datasets()}
    with pipeline(bigquery_client.project) as p:
        found = (
            p
            | ReadFromBigQuery(
                query=f"SELECT id FROM `{table}` WHERE id = 'b'",
                method="DIRECT_READ",
                use_native_datetime=True,
                use_standard_sql=True,
            )
            | beam.Map(lambda row: row["id"])
        )
        assert_that(found, equal_to(["b"]))
    after = {item.dataset_id for item in bigquery_client.list_datasets()}
    assert before <= after


@pytest.mark.integration
def test_everything_is_put_back(bigquery_emulator, gcs_root):
    before = BigqueryV2.BASE_URL
    with beam_connectors(bigquery_emulator, gcs_root):
        assert f"{bigquery_emulator.bigquery}/bigquery/v2/" == BigqueryV2.BASE_URL
        assert type(FileSystems.get_filesystem("gs://x/y")).__name__ == "LocalGcs"
    assert before == BigqueryV2.BASE_URL
    assert type(FileSystems.get_filesystem("gs://x/y")).__name__ == "GCSFileSystem"


def test_a_stack_without_bigquery_is_refused():
    with (
        pytest.raises(ValueError, match="BigQuery emulator"),
        beam_connectors(Endpoints("x", None, None, "p")),
    ):
        pass


def test_gs_paths_are_files_below_the_root(tmp_path):
    with local_gcs(tmp_path):
        for name in ("a", "b", "dir/c"):
            with FileSystems.create(f"gs://bucket/{name}.txt") as file:
                file.write(name.encode())
        assert (tmp_path / "bucket" / "dir" / "c.txt").read_bytes() == b"dir/c"
        (match,) = FileSystems.match(["gs://bucket/*.txt"])
        assert [(item.path, item.size_in_bytes) for item in match.metadata_list] == [
            ("gs://bucket/a.txt", 1),
            ("gs://bucket/b.txt", 1),
        ]
        (match,) = FileSystems.match(["gs://bucket/**"])
        assert len(match.metadata_list) == 3
        FileSystems.rename(["gs://bucket/a.txt"], ["gs://other/deep/a.txt"])
        assert not FileSystems.exists("gs://bucket/a.txt")
        with FileSystems.open("gs://other/deep/a.txt") as file:
            assert file.read() == b"a"
        FileSystems.delete(["gs://other/deep/a.txt", "gs://other/not-there"])
        assert not FileSystems.exists("gs://other/deep/a.txt")
        with pytest.raises(BeamIOError, match="outside"):
            FileSystems.exists("gs://bucket/../../etc")


def test_parquet_goes_through_gs(tmp_path):
    rows = [{"x": 1}, {"x": 2}]
    with local_gcs(tmp_path):
        with beam.Pipeline(runner="FnApiRunner") as p:
            (
                p
                | beam.Create(rows)
                | beam.io.WriteToParquet("gs://bucket/out", pa.schema([("x", pa.int64())]), num_shards=1)
            )
        with beam.Pipeline(runner="FnApiRunner") as p:
            assert_that(p | beam.io.ReadFromParquet("gs://bucket/out*"), equal_to(rows))

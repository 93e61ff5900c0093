"""Tables, queries and jobs of the BigQuery emulator by its REST interface, by Google's own client."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.api_core.exceptions import BadRequest, Conflict, GoogleAPICallError, NotFound
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from tests.local.bigquery_cases import ARROW, UTC, rows_of

pytestmark = pytest.mark.integration


def test_datasets_are_filtered_by_label(bigquery_client, dataset):
    labelled = bigquery.Dataset(f"{bigquery_client.project}.{dataset}_l")
    labelled.labels = {"kind": dataset}
    bigquery_client.create_dataset(labelled)

    def listed(filter_text):
        return {item.dataset_id for item in bigquery_client.list_datasets(filter=filter_text)}

    try:
        assert listed(f"labels.kind:{dataset}") == {f"{dataset}_l"}
        assert f"{dataset}_l" in listed("labels.kind")
        assert dataset not in listed("labels.kind")
        assert listed("labels.kind:other") == set()
        with pytest.raises(BadRequest, match="kind"):
            listed("kind")
    finally:
        bigquery_client.delete_dataset(f"{dataset}_l")


def test_a_query_is_written_to_its_destination(bigquery_client, dataset):
    target = f"{bigquery_client.project}.{dataset}.result"

    def run(sql, disposition):
        config = bigquery.QueryJobConfig(destination=target, write_disposition=disposition)
        job = bigquery_client.query(sql, job_config=config)
        job.result()
        assert job.destination.table_id == "result"
        return sorted(rows_of(bigquery_client, f"SELECT * FROM `{target}`"))

    assert run("SELECT 1 AS a, 'x' AS b", "WRITE_EMPTY") == [(1, "x")]
    assert run("SELECT 2 AS a, 'y' AS b", "WRITE_APPEND") == [(1, "x"), (2, "y")]
    assert run("SELECT 'z' AS b, 3 AS a", "WRITE_APPEND") == [(1, "x"), (2, "y"), (3, "z")]  # by name
    with pytest.raises(Conflict, match="Already Exists"):
        run("SELECT 4 AS a, 'z' AS b", "WRITE_EMPTY")
    with pytest.raises(BadRequest, match="new"):
        run("SELECT 4 AS new", "WRITE_APPEND")
    assert run("SELECT 5 AS other", "WRITE_TRUNCATE") == [(5,)]
    assert bigquery_client.get_table(target).num_rows == 1


@pytest.mark.parametrize(
    ("bad", "location", "message"),
    [
        ({"id": None}, "id", "Missing required field"),
        ({"moment": "2026-01-01T00:00:00Z"}, "id", "Missing required field"),
        ({"id": "b", "other": 1}, "other", "no such field"),
        ({"id": "b", "moment": "yesterday"}, "moment", "Cannot convert"),
        ({"id": "b", "parts": {"name": "x"}}, "parts", "array"),
        ({"id": "b", "parts": [{"name": "x", "size": 1}]}, "parts.size", "no such field"),
        ({"id": {"x": 1}}, "id", "not a record"),
    ],
)
def test_a_bad_row_of_insert_all_is_an_error_of_that_row(bigquery_client, table, bad, location, message):
    rows = [{"id": "a"}, bad, {"id": "c"}]
    errors = bigquery_client.insert_rows_json(table, rows)
    assert [(error["index"], error["errors"][0]["reason"]) for error in errors] == [
        (0, "stopped"),
        (1, "invalid"),
        (2, "stopped"),
    ]
    assert errors[1]["errors"][0]["location"] == location
    assert message in errors[1]["errors"][0]["message"]
    assert rows_of(bigquery_client, f"SELECT count(*) FROM `{table}`") == [(0,)]
    (error,) = bigquery_client.insert_rows_json(table, rows, skip_invalid_rows=True)
    assert error["index"] == 1
    assert rows_of(bigquery_client, f"SELECT id FROM `{table}` ORDER BY id") == [("a",), ("c",)]


def test_numbers_are_timestamps_in_seconds(bigquery_client, table):
    rows = [
        {"id": "a", "moment": 1_700_000_000.25},
        {"id": "b", "moment": "1700000000.25"},
        {"id": "c", "moment": "2023-11-14 22:13:20.25 UTC"},
    ]
    assert bigquery_client.insert_rows_json(table, rows) == []
    moment = datetime.datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
    assert rows_of(bigquery_client, f"SELECT id, moment FROM `{table}` ORDER BY id") == [
        ("a", moment),
        ("b", moment),
        ("c", moment),
    ]


def test_json_columns_take_objects_and_text(bigquery_client, table):
    rows = [{"id": "a", "extra": {"k": [1]}}, {"id": "b", "extra": '{"k": 2}'}, {"id": "c", "extra": "text"}]
    assert bigquery_client.insert_rows_json(table, rows) == []
    rows = rows_of(bigquery_client, f"SELECT extra FROM `{table}` ORDER BY id")
    assert rows == [({"k": [1]},), ({"k": 2},), ("text",)]


def test_views_are_dropped_however_they_were_made(bigquery_client, table, dataset):
    view = bigquery.Table(f"{bigquery_client.project}.{dataset}.by_api")
    view.view_query = f"SELECT id FROM `{table}`"
    bigquery_client.create_table(view)
    bigquery_client.query(f"CREATE VIEW {dataset}.by_sql AS SELECT id FROM `{table}`").result()
    bigquery_client.insert_rows_json(table, [{"id": "a"}])
    for name in ("by_api", "by_sql"):
        assert rows_of(bigquery_client, f"SELECT * FROM {dataset}.{name}") == [("a",)]
        bigquery_client.delete_table(f"{dataset}.{name}")
        with pytest.raises(NotFound):
            bigquery_client.get_table(f"{dataset}.{name}")
    assert [item.table_id for item in bigquery_client.list_tables(dataset)] == ["t"]


def test_a_column_can_be_added(bigquery_client, table):
    bigquery_client.insert_rows_json(table, [{"id": "a"}])
    changed = bigquery_client.get_table(table)
    changed.schema = [*changed.schema, SchemaField("score", "FLOAT64")]
    bigquery_client.update_table(changed, ["schema"])
    assert bigquery_client.insert_rows_json(table, [{"id": "b", "score": 0.5}]) == []
    assert rows_of(bigquery_client, f"SELECT id, score FROM `{table}` ORDER BY id") == [
        ("a", None),
        ("b", 0.5),
    ]
    changed.schema = changed.schema[:1]
    with pytest.raises(BadRequest, match="missing"):
        bigquery_client.update_table(changed, ["schema"])


def test_num_rows_counts_what_sql_inserts_and_deletes(bigquery_client, table):
    bigquery_client.query(f"INSERT INTO `{table}` (id) VALUES ('a'), ('b')").result()
    assert bigquery_client.get_table(table).num_rows == 2
    bigquery_client.query(f"DELETE FROM `{table}` WHERE id = 'a'").result()
    assert bigquery_client.get_table(table).num_rows == 1


def test_json_rows_are_loaded(bigquery_client, table):
    rows = [{"id": "a", "moment": 1.5, "parts": [{"name": "x"}]}, {"id": "b", "extra": {"k": 1}}]
    bigquery_client.load_table_from_json(rows, table).result()
    moment = datetime.datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert rows_of(bigquery_client, f"SELECT * FROM `{table}` ORDER BY id") == [
        ("a", moment, [{"name": "x"}], None),
        ("b", None, [], {"k": 1}),
    ]
    with pytest.raises(BadRequest, match="Missing required field"):
        bigquery_client.load_table_from_json([{"id": "c"}, {"moment": 1}], table).result()
    assert bigquery_client.get_table(table).num_rows == 2


def test_parquet_is_loaded_by_column_name(bigquery_client, table, gcs_root, dataset):
    folder = gcs_root / "bucket" / dataset
    folder.mkdir(parents=True)
    required = pa.field("id", pa.string(), nullable=False)  # as in the table; NULLABLE does not go into it
    data = pa.table([[0], ["p"]], pa.schema([ARROW.field("moment"), required]))
    pq.write_table(data, folder / "a.parquet")
    config = bigquery.LoadJobConfig(source_format="PARQUET")
    bigquery_client.load_table_from_uri(f"gs://bucket/{dataset}/a.parquet", table, job_config=config).result()
    assert rows_of(bigquery_client, f"SELECT id, moment FROM `{table}`") == [
        ("p", datetime.datetime(1970, 1, 1, tzinfo=UTC))
    ]


def test_a_table_is_extracted_to_a_wildcard(bigquery_client, table, gcs_root, dataset):
    bigquery_client.insert_rows_json(table, [{"id": "a"}, {"id": "b"}])
    config = bigquery.ExtractJobConfig(destination_format="PARQUET")
    bigquery_client.extract_table(table, f"gs://bucket/{dataset}/out-*.parquet", job_config=config).result()
    (file,) = (gcs_root / "bucket" / dataset).glob("out-*.parquet")
    assert file.name == "out-000000000000.parquet"
    assert pq.read_table(file)["id"].to_pylist() == ["a", "b"]
    config = bigquery.ExtractJobConfig(destination_format="AVRO")
    with pytest.raises(GoogleAPICallError, match="Avro"):
        bigquery_client.extract_table(table, f"gs://bucket/{dataset}/x.avro", job_config=config).result()


def test_div_keeps_its_parentheses(bigquery_client):
    assert rows_of(bigquery_client, "SELECT 300 * DIV(x, 300) FROM UNNEST([299, 650]) AS x ORDER BY x") == [
        (0,),
        (600,),
    ]

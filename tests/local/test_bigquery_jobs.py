"""Copy, query and extract jobs of the BigQuery emulator: they make and write tables by the rules of loads."""

import pytest
from google.api_core.exceptions import BadRequest, Conflict, NotFound
from google.cloud import bigquery
from google.cloud.bigquery import CopyJobConfig, QueryJobConfig, SchemaField, TimePartitioning

pytestmark = pytest.mark.integration

FIELDS = [SchemaField("a", "INTEGER", "REQUIRED"), SchemaField("t", "TIMESTAMP"), SchemaField("j", "JSON")]


@pytest.fixture
def copy(bigquery_client, dataset):
    """Copies tables of the dataset, and waits."""

    def run(sources, target="copy", **config):
        sources = [f"{dataset}.{name}" for name in ([sources] if isinstance(sources, str) else sources)]
        job_config = CopyJobConfig(**config)
        job = bigquery_client.copy_table(sources, f"{dataset}.{target}", job_config=job_config)
        job.result()
        return job

    return run


@pytest.fixture
def stored(bigquery_client, dataset):
    """The first column of a table."""
    return lambda table="copy": sorted(row[0] for row in bigquery_client.list_rows(f"{dataset}.{table}"))


@pytest.fixture
def source(bigquery_client, dataset):
    """A table with one row, partitioned and clustered: its name in the dataset."""
    table = bigquery.Table(f"{bigquery_client.project}.{dataset}.source", FIELDS)
    table.time_partitioning = TimePartitioning("HOUR", field="t")
    table.clustering_fields = ["a"]
    table.description = "described"
    table.labels = {"team": "risk"}
    bigquery_client.create_table(table)
    row = {"a": 1, "t": "2026-01-02 03:04:05", "j": {"k": [1]}}
    assert bigquery_client.insert_rows_json(table, [row]) == []
    return "source"


def test_a_copy_makes_a_table_like_its_source(bigquery_client, dataset, source, copy):
    copy(source)
    made = bigquery_client.get_table(f"{dataset}.copy")
    assert [(field.name, field.mode) for field in made.schema] == [(f.name, f.mode) for f in FIELDS]
    assert (made.time_partitioning.type_, made.clustering_fields) == ("HOUR", ["a"])
    assert (made.description, made.labels, made.num_rows) == ("described", {"team": "risk"}, 1)
    assert [row["j"] for row in bigquery_client.list_rows(made)] == [{"k": [1]}]


def test_write_dispositions_of_a_copy(source, copy, stored):
    copy(source)
    with pytest.raises(Conflict, match="Already Exists: Table"):  # WRITE_EMPTY is the default
        copy(source)
    copy(source, write_disposition="WRITE_APPEND")
    assert stored() == [1, 1]
    copy(source, write_disposition="WRITE_TRUNCATE")
    assert stored() == [1]
    copy([source, "copy"], "both")
    assert stored("both") == [1, 1]


def test_a_copy_that_cannot_be(bigquery_client, dataset, source, copy):
    project = bigquery_client.project
    with pytest.raises(NotFound, match=f"Not found: Table {project}:{dataset}.copy"):
        copy(source, create_disposition="CREATE_NEVER")
    with pytest.raises(NotFound, match=f"Not found: Table {project}:{dataset}.no"):
        copy("no")
    with pytest.raises(NotFound, match=f"Not found: Dataset {project}:no"):
        bigquery_client.copy_table(f"{dataset}.source", "no.copy").result()
    bigquery_client.query(f"CREATE TABLE {dataset}.other AS SELECT 'x' AS a").result()
    with pytest.raises(BadRequest, match="Field a has changed type from INTEGER to STRING"):
        copy([source, "other"])
    with pytest.raises(BadRequest, match="Failed to copy Non partitioned table to Column partitioned table"):
        copy("other", source, write_disposition="WRITE_TRUNCATE")
    assert {item.table_id for item in bigquery_client.list_tables(dataset)} == {"source", "other"}
    assert bigquery_client.get_table(f"{dataset}.source").num_rows == 1


def query(client, sql, target, **config):
    job = client.query(sql, job_config=QueryJobConfig(destination=f"{client.project}.{target}", **config))
    job.result()
    return job


def test_a_query_makes_its_table_with_what_the_job_says(bigquery_client, dataset):
    query(
        bigquery_client,
        "SELECT 1 AS a, TIMESTAMP '2026-01-02' AS t",
        f"{dataset}.q",
        time_partitioning=TimePartitioning(field="t"),
        clustering_fields=["a"],
    )
    (item,) = bigquery_client.list_tables(dataset)
    assert (item.time_partitioning.field, item.clustering_fields) == ("t", ["a"])
    assert bigquery_client.get_table(f"{dataset}.q").num_rows == 1


def test_columns_without_a_name_get_one(bigquery_client, read_client, dataset):
    sql = "SELECT count(*), 'x' AS b, 2 + 3"
    job = query(bigquery_client, sql, f"{dataset}.q")
    assert [dict(row) for row in bigquery_client.list_rows(f"{dataset}.q")] == [
        {"f0_": 1, "b": "x", "f1_": 5}
    ]
    assert job.result().to_arrow(bqstorage_client=read_client).column_names == ["f0_", "b", "f1_"]
    assert bigquery_client.query(sql).result().schema[0].name == "f0_"
    with pytest.raises(BadRequest, match=r"Found duplicate\(s\): a"):
        query(bigquery_client, "SELECT a, a FROM (SELECT 1 AS a)", f"{dataset}.twice")


def test_a_query_that_cannot_write(bigquery_client, dataset, stored):
    target = f"{dataset}.q"
    with pytest.raises(NotFound, match=f"Not found: Table {bigquery_client.project}:{target}"):
        query(bigquery_client, "SELECT 1 AS a", target, create_disposition="CREATE_NEVER")
    with pytest.raises(NotFound, match=f"Not found: Dataset {bigquery_client.project}:no"):
        query(bigquery_client, "SELECT 1 AS a", "no.q")
    query(bigquery_client, "SELECT 1 AS a", target)
    with pytest.raises(BadRequest, match=r"Invalid schema update\. Cannot add fields \(field: b\)"):
        query(bigquery_client, "SELECT 1 AS a, 2 AS b", target, write_disposition="WRITE_APPEND")
    with pytest.raises(BadRequest, match="The rows do not fit the columns of the destination table"):
        query(bigquery_client, "SELECT 'x' AS a", target, write_disposition="WRITE_APPEND")
    assert stored("q") == [1]
    options = {"write_disposition": "WRITE_APPEND", "schema_update_options": ["ALLOW_FIELD_ADDITION"]}
    query(bigquery_client, "SELECT 1 AS a, 2 AS b", target, **options)
    assert [tuple(row) for row in bigquery_client.list_rows(target)] == [(1, None), (1, 2)]


def test_a_query_that_fails_to_write_keeps_the_table(bigquery_client, dataset, stored):
    target = f"{dataset}.q"
    query(bigquery_client, "SELECT 1 AS a", target)
    with pytest.raises(BadRequest, match="Incompatible table partitioning specification"):
        query(
            bigquery_client,
            "SELECT 2 AS a",
            target,
            write_disposition="WRITE_TRUNCATE",
            clustering_fields=["a"],
        )
    assert stored("q") == [1]


def test_an_extract_of_what_is_missing(bigquery_client, dataset):
    with pytest.raises(NotFound, match=f"Not found: Table {bigquery_client.project}:{dataset}.no"):
        bigquery_client.extract_table(f"{dataset}.no", f"gs://bucket/{dataset}/x.csv").result()

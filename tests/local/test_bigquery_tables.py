"""Answers of tables.get and tables.list of the BigQuery emulator: all that a table was made with."""

import datetime

import pytest
from google.api_core.exceptions import BadRequest, NotFound
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

pytestmark = pytest.mark.integration


def declared(dataset, project):
    table = bigquery.Table(
        f"{project}.{dataset}.api", [SchemaField("t", "TIMESTAMP"), SchemaField("k", "STRING")]
    )
    table.time_partitioning = bigquery.TimePartitioning("HOUR", field="t", expiration_ms=86_400_000)
    table.require_partition_filter = True
    table.clustering_fields = ["k"]
    table.labels = {"team": "risk"}
    table.friendly_name = "A name"
    table.expires = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    return table


def test_partitioning_and_clustering_are_in_the_list_and_in_the_table(bigquery_client, dataset):
    bigquery_client.create_table(declared(dataset, bigquery_client.project))
    (item,) = bigquery_client.list_tables(dataset)
    table = bigquery_client.get_table(f"{dataset}.api")
    for resource in (item, table):
        assert (resource.time_partitioning.type_, resource.time_partitioning.field) == ("HOUR", "t")
        assert resource.time_partitioning.expiration_ms == 86_400_000
        assert resource.clustering_fields == ["k"]
        assert resource.labels == {"team": "risk"}
        assert resource.friendly_name == "A name"
        assert resource.expires.year == 2100
    assert table.require_partition_filter
    assert table.location == "US"
    assert item.created == table.created
    # `bq update` sends a null for what it does not change.
    unchanged = {"labels": {"more": "y"}, "schema": None}
    bigquery_client._connection.api_request("PATCH", table.path, data=unchanged)
    table.labels = {"team": None, "more": None, "other": "x"}
    assert bigquery_client.update_table(table, ["labels"]).labels == {"other": "x"}
    assert bigquery_client.get_table(table).expires.year == 2100


def test_partitioning_by_range_is_kept(bigquery_client, dataset):
    table = bigquery.Table(f"{bigquery_client.project}.{dataset}.r", [SchemaField("n", "INT64")])
    bounds = bigquery.PartitionRange(start=0, end=100, interval=10)
    table.range_partitioning = bigquery.RangePartitioning(field="n", range_=bounds)
    bigquery_client.create_table(table)
    assert bigquery_client.get_table(table).range_partitioning == table.range_partitioning


@pytest.mark.parametrize(
    ("clause", "kind", "field"),
    [
        ("PARTITION BY DATE(t)", "DAY", "t"),
        ("PARTITION BY TIMESTAMP_TRUNC(t, HOUR)", "HOUR", "t"),
        ("PARTITION BY DATE_TRUNC(d, MONTH)", "MONTH", "d"),
        ("PARTITION BY d", "DAY", "d"),
        ("PARTITION BY _PARTITIONDATE", "DAY", None),
    ],
)
def test_what_create_table_declares_is_in_the_list(bigquery_client, dataset, clause, kind, field):
    options = "labels = [('team', 'risk')], partition_expiration_days = 2, require_partition_filter = true"
    sql = f"CREATE TABLE IF NOT EXISTS {dataset}.sql (t TIMESTAMP, d DATE, k STRING) {clause} CLUSTER BY k, d"
    bigquery_client.query(f"{sql} OPTIONS ({options})").result()
    bigquery_client.query(f"CREATE TABLE IF NOT EXISTS {dataset}.sql (x INT64)").result()  # changes nothing
    (item,) = bigquery_client.list_tables(dataset)
    assert (item.time_partitioning.type_, item.time_partitioning.field) == (kind, field)
    assert item.time_partitioning.expiration_ms == 2 * 86_400_000
    assert (item.clustering_fields, item.labels) == (["k", "d"], {"team": "risk"})
    assert bigquery_client.get_table(f"{dataset}.sql").require_partition_filter


def test_a_range_of_create_table_is_kept(bigquery_client, dataset):
    clause = "PARTITION BY RANGE_BUCKET(n, GENERATE_ARRAY(0, 100, 10))"
    bigquery_client.query(f"CREATE TABLE {dataset}.r (n INT64) {clause}").result()
    spec = bigquery_client.get_table(f"{dataset}.r").range_partitioning
    assert (spec.field, spec.range_.start, spec.range_.end, spec.range_.interval) == ("n", 0, 100, 10)


def test_lists_have_pages(bigquery_client, dataset):
    for name in ("a", "b", "c"):
        bigquery_client.create_table(bigquery.Table(f"{bigquery_client.project}.{dataset}.{name}"))
    assert [item.table_id for item in bigquery_client.list_tables(dataset, page_size=2)] == ["a", "b", "c"]
    others = [f"{dataset}_{number}" for number in range(3)]
    for name in others:
        bigquery_client.create_dataset(name)
    try:
        listed = {item.dataset_id for item in bigquery_client.list_datasets(page_size=1)}
        assert {dataset, *others} <= listed
    finally:
        for name in others:
            bigquery_client.delete_dataset(name)
    bigquery_client.query("SELECT 1").result()
    jobs = [job.job_id for job in bigquery_client.list_jobs(max_results=4, page_size=1)]
    assert len(set(jobs)) == len(jobs) > 1


def test_a_view_tells_its_query(bigquery_client, dataset):
    view = bigquery.Table(f"{bigquery_client.project}.{dataset}.v")
    view.view_query = "SELECT 1 AS a"
    bigquery_client.create_table(view)
    assert bigquery_client.get_table(view).view_query == "SELECT 1 AS a"


def test_what_is_missing_is_named_as_bigquery_names_it(bigquery_client, dataset):
    project = bigquery_client.project
    for action, name in (
        (lambda: bigquery_client.get_table(f"{dataset}.no"), f"Table {project}:{dataset}.no"),
        (lambda: list(bigquery_client.list_tables("no")), f"Dataset {project}:no"),
        (lambda: bigquery_client.get_table("no.no"), f"Dataset {project}:no"),
        (lambda: bigquery_client.create_table(bigquery.Table(f"{project}.no.t")), f"Dataset {project}:no"),
        (lambda: bigquery_client.get_dataset("no"), f"Dataset {project}:no"),
    ):
        with pytest.raises(NotFound, match=f"Not found: {name}$"):
            action()


@pytest.mark.parametrize("kind", ["BIGNUMERIC", "GEOGRAPHY"])
def test_types_that_the_emulator_lacks_are_refused_by_name(bigquery_client, dataset, kind):
    table = bigquery.Table(f"{bigquery_client.project}.{dataset}.t", [SchemaField("x", kind)])
    with pytest.raises(Exception, match=f"The local BigQuery has no {kind}. Field: x"):
        bigquery_client.create_table(table)


@pytest.mark.parametrize(
    ("names", "message"), [(['a"b'], 'Invalid field name "a"b"'), (["a", "A"], "Duplicate field name: A")]
)
def test_names_that_are_none_are_refused(bigquery_client, dataset, names, message):
    fields = [SchemaField(name, "STRING") for name in names]
    with pytest.raises(BadRequest, match=message):
        bigquery_client.create_table(bigquery.Table(f"{bigquery_client.project}.{dataset}.t", fields))


def test_nested_fields_may_be_called_by_words_of_sql(bigquery_client, dataset):
    inner = [SchemaField("order", "STRING"), SchemaField("group", "INT64", mode="REPEATED")]
    table = bigquery.Table(
        f"{bigquery_client.project}.{dataset}.t",
        [SchemaField("select", "RECORD", mode="REPEATED", fields=inner)],
    )
    bigquery_client.create_table(table)
    assert bigquery_client.insert_rows_json(table, [{"select": [{"order": "x", "group": [1]}]}]) == []
    assert [row["select"] for row in bigquery_client.list_rows(table)] == [[{"order": "x", "group": [1]}]]


@pytest.mark.parametrize("end", ["", ";"])
def test_a_view_keeps_its_query_as_it_was_written(bigquery_client, dataset, end):
    query = "SELECT ( 1 )  AS   one, 'AS SELECT 2' AS two -- ; as it was"
    columns = "one OPTIONS (description = 'AS'), two"
    options = "description = 'a (b) AS SELECT 3', labels = [('team', 'risk')]"
    statement = f"CREATE VIEW {dataset}.v ({columns}) OPTIONS ({options}) AS\n{query}\n{end}"
    for create in (statement, statement.replace("CREATE", "CREATE OR REPLACE")):
        bigquery_client.query_and_wait(create)
        view = bigquery_client.get_table(f"{dataset}.v")
        assert view.view_query == query
        assert view.description == "a (b) AS SELECT 3"
        assert view.labels == {"team": "risk"}

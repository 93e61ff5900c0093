"""Load jobs of the BigQuery emulator through Google's client: the table they make, find, or leave alone."""

import concurrent.futures
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.api_core.exceptions import (
    BadRequest,
    Conflict,
    MethodNotImplemented,
    NotFound,
)
from google.cloud import bigquery
from google.cloud.bigquery import LoadJobConfig, SchemaField, TimePartitioning

from local.stack import LocalStack

pytestmark = pytest.mark.integration

CSV = "id,amount,moment\na,1.5,2026-01-02 03:04:05\nb,2,2026-01-03 00:00\n"
AB = [SchemaField("a", "INTEGER"), SchemaField("b", "STRING")]
REQUIRED_B = SchemaField("b", "STRING", "REQUIRED")
JSON = "NEWLINE_DELIMITED_JSON"


@pytest.fixture
def load(bigquery_client, dataset):
    """Loads text or bytes, or objects as JSON lines, and returns the job when it has ended."""

    def run(content, table="t", **config):
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
            config.setdefault("source_format", JSON)
        data = content.encode() if isinstance(content, str) else content
        name = table if "." in table else f"{bigquery_client.project}.{dataset}.{table}"
        job = bigquery_client.load_table_from_file(io.BytesIO(data), name, job_config=LoadJobConfig(**config))
        job.result()
        return job

    return run


@pytest.fixture
def stored(bigquery_client, dataset):
    """The rows of a table as tuples."""

    def read(table="t"):
        return sorted((tuple(row) for row in bigquery_client.list_rows(f"{dataset}.{table}")), key=repr)

    return read


@pytest.fixture
def columns(bigquery_client, dataset):
    """The columns of a table as (name, type, mode)."""

    def read(table="t"):
        schema = bigquery_client.get_table(f"{dataset}.{table}").schema
        return [(field.name, field.field_type, field.mode) for field in schema]

    return read


@pytest.fixture
def names(bigquery_client, dataset):
    """The tables that there are."""
    return lambda: [item.table_id for item in bigquery_client.list_tables(dataset)]


def parquet(data):
    sink = io.BytesIO()
    pq.write_table(data, sink)
    return sink.getvalue()


# The table is made ---------------------------------------------------------------------------------------


def test_the_schema_of_the_job_makes_the_table(load, columns, stored):
    schema = [SchemaField("a", "INT64", "REQUIRED"), SchemaField("b", "STRING", description="text")]
    assert load("1,x\n", schema=schema).output_rows == 1
    assert columns() == [("a", "INTEGER", "REQUIRED"), ("b", "STRING", "NULLABLE")]
    assert stored() == [(1, "x")]


def test_autodetection_makes_the_table(load, columns, stored):
    load(CSV, autodetect=True)
    assert [kind for _, kind, _ in columns()] == ["STRING", "FLOAT", "TIMESTAMP"]
    assert [row[0] for row in stored()] == ["a", "b"]
    load([{"n": 1, "r": {"x": [True]}}], "j", autodetect=True)
    assert columns("j") == [("n", "INTEGER", "NULLABLE"), ("r", "RECORD", "NULLABLE")]
    assert stored("j") == [(1, {"x": [True]})]


def test_the_schema_of_a_parquet_file_makes_the_table(load, columns, stored):
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    load(parquet(pa.table([[1], ["x"]], schema)), source_format="PARQUET")
    assert columns() == [("a", "INTEGER", "REQUIRED"), ("b", "STRING", "NULLABLE")]
    assert stored() == [(1, "x")]


def test_partitioning_and_clustering_of_the_job_are_kept(bigquery_client, dataset, load):
    for _ in range(2):  # the second job goes with the table that the first has made
        load(
            CSV,
            autodetect=True,
            time_partitioning=TimePartitioning("MONTH", field="moment"),
            clustering_fields=["id"],
            destination_table_description="history",
            labels={"of": "the job"},
        )
    table = bigquery_client.get_table(f"{dataset}.t")
    assert (table.time_partitioning.type_, table.time_partitioning.field) == ("MONTH", "moment")
    assert (table.clustering_fields, table.description, table.num_rows) == (["id"], "history", 4)


def test_without_any_schema_the_job_is_refused(load, names):
    with pytest.raises(BadRequest, match=r"No schema specified on job or table\."):
        load(CSV)
    assert names() == []


def test_create_never_wants_the_table(bigquery_client, load, names, dataset):
    with pytest.raises(NotFound, match=f"Not found: Table {bigquery_client.project}:{dataset}.t;") as missing:
        load(CSV, autodetect=True, create_disposition="CREATE_NEVER")
    assert "reason: notFound" in str(missing.value)
    assert names() == []
    load("1,x\n", schema=AB)
    load("2,y\n", create_disposition="CREATE_NEVER")
    assert bigquery_client.get_table(f"{dataset}.t").num_rows == 2


def test_a_missing_dataset_is_named(bigquery_client, load):
    with pytest.raises(NotFound, match=f"Not found: Dataset {bigquery_client.project}:no$"):
        load(CSV, f"{bigquery_client.project}.no.t", autodetect=True)


def test_a_table_without_a_schema_takes_the_one_of_the_file(bigquery_client, dataset, load, columns, stored):
    bigquery_client.create_table(bigquery.Table(f"{bigquery_client.project}.{dataset}.t"))
    load("1,x\n", schema=AB)
    assert [name for name, _, _ in columns()] == ["a", "b"]
    assert stored() == [(1, "x")]


# The table is there --------------------------------------------------------------------------------------


def test_write_dispositions(load, columns, stored):
    load("1,x\n", schema=AB)
    assert load("2,y\n").output_rows == 1  # WRITE_APPEND
    assert stored() == [(1, "x"), (2, "y")]
    with pytest.raises(Conflict, match="Already Exists: Table"):
        load("3,z\n", write_disposition="WRITE_EMPTY")
    load("4,q\n", write_disposition="WRITE_TRUNCATE")  # the table's schema, because the job has none
    assert stored() == [(4, "q")]
    load([{"other": True}], write_disposition="WRITE_TRUNCATE", autodetect=True)
    assert (columns(), stored()) == ([("other", "BOOLEAN", "NULLABLE")], [(True,)])
    load([{"other": False}], write_disposition="WRITE_TRUNCATE_DATA")
    assert stored() == [(False,)]


def test_write_empty_takes_a_table_without_rows(bigquery_client, dataset, load, stored):
    bigquery_client.create_table(bigquery.Table(f"{bigquery_client.project}.{dataset}.t", AB))
    load("1,x\n", write_disposition="WRITE_EMPTY")
    assert stored() == [(1, "x")]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([SchemaField("a", "STRING"), AB[1]], "Field a has changed type from INTEGER to STRING"),
        (
            [SchemaField("a", "INT64", "REPEATED")],
            "Field a has changed type from INTEGER to REPEATED INTEGER",
        ),
        ([REQUIRED_B, SchemaField("c", "STRING")], r"Cannot add fields \(field: c\)"),
        ([AB[0]], "Field b is missing in new schema"),
        ([AB[0], SchemaField("b", "STRING")], "Field b has changed mode from REQUIRED to NULLABLE"),
    ],
)
def test_a_schema_that_is_not_the_tables_is_refused(bigquery_client, dataset, load, schema, message):
    fields = [AB[0], REQUIRED_B]
    name = f"{bigquery_client.project}.{dataset}.t"
    bigquery_client.create_table(bigquery.Table(name, fields))
    label = f"{bigquery_client.project}:{dataset}.t"
    with pytest.raises(BadRequest, match=f"Provided Schema does not match Table {label}. {message}"):
        load([{"a": 1, "b": "x"}], schema=schema)


def test_a_schema_can_be_widened(load, columns, stored):
    load("1\n", schema=[SchemaField("a", "INTEGER", "REQUIRED")])
    load(
        [{"a": None, "b": "x"}],
        schema=AB,
        schema_update_options=["ALLOW_FIELD_ADDITION", "ALLOW_FIELD_RELAXATION"],
    )
    assert columns() == [("a", "INTEGER", "NULLABLE"), ("b", "STRING", "NULLABLE")]
    assert stored() == [(1, None), (None, "x")]


@pytest.mark.parametrize("disposition", ["WRITE_APPEND", "WRITE_TRUNCATE"])
def test_the_partitioning_of_a_table_stays(load, disposition):
    load(CSV, autodetect=True)
    expects = "Expects partitioning specification none, but input partitioning specification is interval"
    with pytest.raises(BadRequest, match=rf"{expects}\(type:day,field:moment\) clustering\(id\)"):
        load(
            CSV,
            autodetect=True,
            write_disposition=disposition,
            time_partitioning=TimePartitioning(field="moment"),
            clustering_fields=["id"],
        )


def test_a_view_is_no_destination(bigquery_client, dataset, load):
    bigquery_client.query(f"CREATE VIEW {dataset}.v AS SELECT 1 AS a").result()
    with pytest.raises(BadRequest, match="not allowed for this operation because it is currently a VIEW"):
        load([{"a": 1}], "v", autodetect=True)


# Failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        ("1,x\nbad,y\n", {"schema": AB}, "Could not parse 'bad' as INT64 for field a"),
        ([{"a": 1}, {"a": "bad"}], {"schema": AB}, "bad value"),
        (b"no Parquet", {"source_format": "PARQUET"}, "not in Parquet format"),
        (CSV, {"autodetect": True, "clustering_fields": ["no"]}, r"Invalid field: no\."),
        (CSV, {"autodetect": True, "time_partitioning": TimePartitioning(field="id")}, "found is: STRING"),
        ([{"a.b": 1}], {"autodetect": True}, 'Invalid field name "a.b"'),
        ([{"a": 1}], {"schema": [AB[0], AB[0]]}, "Duplicate field name: a"),
        ("", {"autodetect": True}, "Schema has no fields"),
    ],
)
def test_a_load_that_fails_leaves_no_table(load, names, content, config, message):
    with pytest.raises(BadRequest, match=message) as failed:
        load(content, **config)
    assert "Catalog Error" not in str(failed.value)
    assert names() == []
    load("1,x\n", schema=AB)  # nothing is in the way


@pytest.mark.parametrize("disposition", ["WRITE_APPEND", "WRITE_TRUNCATE"])
def test_a_load_that_fails_leaves_the_table_as_it_was(load, columns, stored, disposition):
    load("1,x\n", schema=AB)
    with pytest.raises(BadRequest, match="too many errors"):
        load("2,y\nbad,z\n", write_disposition=disposition)
    # Here the file is good, and the database refuses what is in it when the table is written already.
    no_json = parquet(pa.table({"a": [2], "b": ["y"], "j": ["no JSON"]}))
    with pytest.raises(BadRequest, match=r"^400 The rows do not fit the columns of the destination table\."):
        load(
            no_json,
            source_format="PARQUET",
            schema=[*AB, SchemaField("j", "JSON")],
            write_disposition=disposition,
            schema_update_options=["ALLOW_FIELD_ADDITION"] if disposition == "WRITE_APPEND" else [],
        )
    assert (len(columns()), stored()) == (2, [(1, "x")])


def test_all_files_of_a_job_are_loaded_or_none(bigquery_client, dataset, gcs_root, names, stored):
    folder = gcs_root / "bucket" / dataset
    folder.mkdir(parents=True)
    (folder / "1.csv").write_text("1,x\n")
    (folder / "2.csv").write_text("bad,y\n")
    config = LoadJobConfig(schema=AB)
    table, uri = f"{dataset}.t", f"gs://bucket/{dataset}/*.csv"
    with pytest.raises(BadRequest, match="too many errors"):
        bigquery_client.load_table_from_uri(uri, table, job_config=config).result()
    assert names() == []
    (folder / "2.csv").write_text("2,y\n")
    job = bigquery_client.load_table_from_uri(uri, table, job_config=config)
    job.result()
    assert (job.output_rows, job.input_files, stored()) == (2, 2, [(1, "x"), (2, "y")])
    with pytest.raises(NotFound, match=f"Not found: URI gs://bucket/{dataset}/no-"):
        bigquery_client.load_table_from_uri(f"gs://bucket/{dataset}/no-*.csv", table).result()


def test_errors_are_told_in_full(bigquery_client, load):
    with pytest.raises(BadRequest):
        load("x,1\ny,2\n", schema=AB)
    job = next(iter(bigquery_client.list_jobs(max_results=1)))
    assert (job.state, job.error_result["reason"]) == ("DONE", "invalid")
    first, second, *rows = [error["message"] for error in bigquery_client.get_job(job.job_id).errors]
    assert first == job.error_result["message"]
    assert "CSV table encountered too many errors, giving up. Rows: 2; errors: 2." in first
    assert "max bad: 0; error percent: 0" in second
    assert [row.partition("row ")[2] for row in rows] == ["1", "2"]


def test_what_is_not_known_is_refused(bigquery_client, dataset, load):
    with pytest.raises(MethodNotImplemented, match=r"loads CSV, NEWLINE_DELIMITED_JSON, PARQUET: got AVRO"):
        load(b"", source_format="AVRO")
    with pytest.raises(MethodNotImplemented, match="does not know the load option sourceColumnMatch"):
        load(CSV, autodetect=True, source_column_match="NAME")
    with pytest.raises(MethodNotImplemented, match=r"expected TABLE, got 't\$20260102'"):
        load(CSV, "t$20260102", autodetect=True)
    with pytest.raises(BadRequest, match="must be a Google Cloud Storage location: file:///etc/passwd"):
        bigquery_client.load_table_from_uri("file:///etc/passwd", f"{dataset}.t").result()


def test_without_a_directory_for_cloud_storage_the_message_says_how_to_get_one():
    with LocalStack(pubsub="none") as stack, stack.endpoints.activate():
        client = bigquery.Client()
        client.create_dataset("d")
        with pytest.raises(BadRequest, match="--gcs_root=DIRECTORY"):
            client.load_table_from_uri("gs://bucket/x.csv", "d.t").result()


# Clients -------------------------------------------------------------------------------------------------


def test_json_rows_of_the_client(bigquery_client, dataset, stored):
    name = f"{dataset}.t"
    bigquery_client.load_table_from_json([{"a": 1}], name).result()  # the client asks for autodetection
    bigquery_client.load_table_from_json([{"a": 2}], name).result()  # and now it does not
    assert stored() == [(1,), (2,)]
    config = LoadJobConfig(schema=AB)
    bigquery_client.load_table_from_json([], f"{dataset}.none", job_config=config).result()
    assert stored("none") == []


def test_a_data_frame_of_the_client(bigquery_client, dataset, columns, stored):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    moments = pandas.to_datetime(["2026-01-02 03:04:05", "2026-01-03 00:00:00"], utc=True)
    frame = pandas.DataFrame({"a": [1, 2], "t": moments, "l": [[1.5], []]})
    for _ in range(2):
        bigquery_client.load_table_from_dataframe(frame, f"{dataset}.t").result()
    assert [kind for _, kind, _ in columns()] == ["INTEGER", "TIMESTAMP", "FLOAT"]
    assert [(row[0], row[2]) for row in stored()] == [(1, [1.5]), (1, [1.5]), (2, []), (2, [])]


def test_an_upload_keeps_the_id_of_its_job(bigquery_client, dataset):
    def start(data):
        file, config = io.BytesIO(data), LoadJobConfig(schema=AB)
        return bigquery_client.load_table_from_file(
            file, f"{dataset}.t", job_id=f"job-of-{dataset}", size=len(data), job_config=config
        )

    job = start(b"1,x\n")
    assert job.job_id == f"job-of-{dataset}"
    assert bigquery_client.get_job(job.job_id).destination.table_id == "t"
    with pytest.raises(Conflict, match=f"Already Exists: Job {bigquery_client.project}:US.job-of-{dataset}"):
        start(b"1,x\n")


def test_jobs_that_load_the_same_new_table_at_once(bigquery_client, dataset, load):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda number: load(f"{number},x\n" * 1000, schema=AB), range(4)))
    assert [job.output_rows for job in jobs] == [1000] * 4
    assert bigquery_client.get_table(f"{dataset}.t").num_rows == 4000

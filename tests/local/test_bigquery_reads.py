"""Reads of the BigQuery emulator: every way to the rows, in every format that a client asks for."""

import datetime
import json
import urllib.error
import urllib.parse
import urllib.request
from decimal import Decimal

import pytest
from google.api_core.exceptions import BadRequest
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

pytestmark = pytest.mark.integration

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=datetime.UTC)
SECONDS, MICROS, ISO = "1.76732304525E9", "1767323045250000", "2026-01-02T03:04:05.250000000000Z"
INNER = [SchemaField("moment", "TIMESTAMP"), SchemaField("day", "DATE")]
FIELDS = [
    SchemaField("moment", "TIMESTAMP"),
    SchemaField("moments", "TIMESTAMP", mode="REPEATED"),
    SchemaField("inner", "RECORD", fields=INNER),
    SchemaField("inners", "RECORD", mode="REPEATED", fields=INNER),
    SchemaField("day", "DATE"),
    SchemaField("civil", "DATETIME"),
    SchemaField("clock", "TIME"),
    SchemaField("money", "NUMERIC"),
    SchemaField("raw", "BYTES"),
    SchemaField("ratio", "FLOAT64"),
    SchemaField("sure", "BOOL"),
]
ROW = {
    "moment": MOMENT.isoformat(),
    "moments": [MOMENT.isoformat(), 0],
    "inner": {"moment": MOMENT.isoformat(), "day": "2026-01-02"},
    "inners": [{"moment": MOMENT.isoformat(), "day": None}],
    "day": "2026-01-02",
    "civil": "2026-01-02T03:04:05.250000",
    "clock": "03:04:05",
    "money": "1.50",
    "raw": "eA==",
    "ratio": 1e20,
    "sure": True,
}


@pytest.fixture
def table(bigquery_client, dataset):
    """A fresh table of one row, ROW; its full id."""
    name = f"{bigquery_client.project}.{dataset}.t"
    bigquery_client.create_table(bigquery.Table(name, FIELDS))
    assert bigquery_client.insert_rows_json(name, [ROW]) == []
    return name


@pytest.fixture
def rest(bigquery_emulator):
    """Calls the REST API as a program without a client library does."""

    def call(path, body=None, **parameters):
        url = f"{bigquery_emulator.bigquery}/bigquery/v2/projects/{bigquery_emulator.project}/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{url}?{urllib.parse.urlencode(parameters)}", data, {"Content-Type": "application/json"}
        )
        # Not urlopen: it keeps the proxies that another test has set when it was first used.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request) as response:
            return json.load(response)

    return call


def tabledata_list(rest, table, options):
    _, dataset, name = table.split(".")
    parameters = {f"formatOptions.{key}": value for key, value in options.items()}
    return rest(f"datasets/{dataset}/tables/{name}/data", **parameters)


def jobs_query(rest, table, options):
    body = {"query": f"SELECT * FROM `{table}`", "useLegacySql": False}
    return rest("queries", body | ({"formatOptions": options} if options else {}))


def get_query_results(rest, table, options):
    job = rest("jobs", {"configuration": {"query": {"query": f"SELECT * FROM `{table}`"}}})
    parameters = {f"formatOptions.{key}": value for key, value in options.items()}
    return rest(f"queries/{job['jobReference']['jobId']}", **parameters)


READS = pytest.mark.parametrize("read", [tabledata_list, jobs_query, get_query_results])


@READS
@pytest.mark.parametrize(
    ("options", "moment", "zero"),
    [
        ({}, SECONDS, "0.0"),
        ({"useInt64Timestamp": False}, SECONDS, "0.0"),
        ({"useInt64Timestamp": True}, MICROS, "0"),
        ({"timestampOutputFormat": "FLOAT64"}, SECONDS, "0.0"),
        ({"timestampOutputFormat": "INT64"}, MICROS, "0"),
        ({"timestampOutputFormat": "ISO8601_STRING"}, ISO, "1970-01-01T00:00:00.000000000000Z"),
    ],
    ids=str,
)
def test_timestamps_are_in_the_format_that_is_asked_for(rest, table, read, options, moment, zero):
    (row,) = read(rest, table, options)["rows"]
    values = [cell["v"] for cell in row["f"]]
    assert values[:4] == [
        moment,
        [{"v": moment}, {"v": zero}],
        {"f": [{"v": moment}, {"v": "2026-01-02"}]},
        [{"v": {"f": [{"v": moment}, {"v": None}]}}],
    ]


@READS
def test_other_types_do_not_depend_on_it(rest, table, read):
    for options in ({}, {"useInt64Timestamp": True}):
        (row,) = read(rest, table, options)["rows"]
        assert [cell["v"] for cell in row["f"]][4:] == [
            "2026-01-02",
            "2026-01-02T03:04:05.250000",
            "03:04:05",
            "1.5",
            "eA==",
            "1.0E20",
            "true",
        ]


@READS
def test_two_formats_of_timestamps_exclude_each_other(rest, table, read):
    with pytest.raises(urllib.error.HTTPError) as refused:
        read(rest, table, {"useInt64Timestamp": True, "timestampOutputFormat": "FLOAT64"})
    assert refused.value.code == 400
    assert "useInt64Timestamp and timestampOutputFormat" in refused.value.read().decode()


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("CAST('NaN' AS FLOAT64)", "NaN"),
        ("CAST('-inf' AS FLOAT64)", "-Infinity"),
        ("CAST(0.0001 AS FLOAT64)", "1.0E-4"),
        ("CAST(1234567.5 AS FLOAT64)", "1234567.5"),
        ("NUMERIC '0'", "0"),
        ("NUMERIC '100'", "100"),
        ("TIMESTAMP '0001-01-01 00:00:00 UTC'", "-6.21355968E10"),
        ("TIMESTAMP '1969-12-31 23:59:59.999999 UTC'", "-1.0E-6"),
    ],
)
def test_numbers_are_written_as_bigquery_writes_them(rest, sql, text):
    answer = rest("queries", {"query": f"SELECT {sql}", "useLegacySql": False})
    assert answer["rows"] == [{"f": [{"v": text}]}]


def test_the_client_reads_the_same_row_in_every_way(bigquery_client, read_client, table):
    def rows_of(iterator):
        return [dict(row) for row in iterator]

    query = f"SELECT * FROM `{table}`"
    (listed,) = rows_of(bigquery_client.list_rows(table))
    assert listed["moments"] == [MOMENT, datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)]
    assert listed["inner"] == {"moment": MOMENT, "day": datetime.date(2026, 1, 2)}
    assert (listed["money"], listed["raw"], listed["ratio"]) == (Decimal("1.5"), b"x", 1e20)
    assert rows_of(bigquery_client.query(query).result()) == [listed]
    assert rows_of(bigquery_client.query_and_wait(query)) == [listed]
    assert bigquery_client.list_rows(table).to_arrow(create_bqstorage_client=False).to_pylist() == [listed]
    over_storage = bigquery_client.query(query).result().to_arrow(bqstorage_client=read_client)
    assert over_storage.to_pylist() == [listed]


def test_the_client_reads_into_a_data_frame(bigquery_client, table):
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = bigquery_client.query(f"SELECT moment, money FROM `{table}`").to_dataframe(
        create_bqstorage_client=False
    )
    assert frame["moment"].tolist() == [MOMENT]


def test_the_result_of_a_query_is_a_table_that_can_be_listed(bigquery_client):
    job = bigquery_client.query("SELECT x, TIMESTAMP_SECONDS(x) AS t FROM UNNEST([1, 2, 3]) AS x ORDER BY x")
    job.result()
    rows = bigquery_client.list_rows(job.destination, start_index=1, page_size=1)
    assert [row["x"] for row in rows] == [2, 3]


def test_rows_are_listed_in_pages_of_the_columns_that_are_wanted(bigquery_client, dataset):
    name = f"{bigquery_client.project}.{dataset}.t"
    bigquery_client.create_table(
        bigquery.Table(name, [SchemaField("a", "INT64"), SchemaField("b", "STRING")])
    )
    bigquery_client.insert_rows_json(name, [{"a": i, "b": str(i)} for i in range(5)])
    pages = bigquery_client.list_rows(name, selected_fields=[SchemaField("b", "STRING")], page_size=2).pages
    assert [[tuple(row) for row in page] for page in pages] == [[("0",), ("1",)], [("2",), ("3",)], [("4",)]]
    with pytest.raises(BadRequest, match="No such field: c"):
        list(bigquery_client.list_rows(name, selected_fields=[SchemaField("c", "STRING")]))


def test_a_view_is_not_listed(bigquery_client, dataset):
    bigquery_client.query(f"CREATE VIEW {dataset}.v AS SELECT 1 AS a").result()
    with pytest.raises(BadRequest, match="Cannot list a table of type VIEW"):
        list(bigquery_client.list_rows(f"{dataset}.v", selected_fields=[SchemaField("a", "INT64")]))

"""The SQL of the local stack where it was wrong, and where it still is, judged by ZetaSQL."""

from __future__ import annotations

import datetime as dt
import math

import pyarrow as pa
import pytest
from google.cloud import bigquery

from tests.sql import worlds, zeta
from tests.sql.worlds import World, plain
from transforms.schema import to_bigquery

pytestmark = pytest.mark.integration

SCHEMA = pa.schema(
    [
        pa.field("Name", pa.string()),
        pa.field("Raw", pa.binary()),
        pa.field("N", pa.int64()),
        pa.field("Since", pa.timestamp("us", tz="UTC")),
        pa.field("Until", pa.timestamp("us", tz="UTC")),
    ]
)
NAN = "CAST('nan' AS FLOAT64)"
NOON = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)
ROWS = [
    {"Name": name, "Raw": raw, "N": n, "Since": NOON, "Until": NOON + dt.timedelta(microseconds=micros)}
    for name, raw, n, micros in [
        ("100%", b"\x00\xff", 7, 1),
        ("100 per cent", b"\\x00", -7, -1),
        ("a_b", None, 3, 3_599_999_999),
        ("back\\slash", b"{}", 0, -86_400_000_001),
        (None, b"", 10, 999),
    ]
]


@pytest.fixture(scope="module")
def world(zetasql, bigquery_emulator):
    """A flat table, whose names have capital letters."""
    endpoints, client = worlds.clients(bigquery_emulator)
    dataset = f"{bigquery_emulator.project}.sql_flat"
    client.create_dataset(dataset)
    columns = to_bigquery(SCHEMA)
    client.create_table(bigquery.Table(f"{dataset}.Flat", columns))
    worlds.store(endpoints, f"{dataset}.Flat", ROWS, SCHEMA)
    name = f"{dataset}.Flat"
    return World(dataset, {"Flat": ROWS}, zeta.Catalog(zetasql, {name: columns}, rows={name: ROWS}), client)


@pytest.mark.parametrize(
    "select",
    [
        "TO_JSON_STRING(STRUCT(Raw AS Bytes, Name, N)) AS Json",
        "IFNULL(TO_JSON_STRING(Raw), 'null') AS Json",
        r"Name LIKE '100\\%' AS Percent, Name LIKE '%\\_%' AS Underscore, Name LIKE '%\\\\%' AS Backslash",
        "Name LIKE '%0%' AS Zero, Name NOT LIKE '_\\\\__' AS Other",
        *(f"TIMESTAMP_DIFF(Until, Since, {unit}) AS Units" for unit in ("MILLISECOND", "SECOND", "DAY")),
        "10 * DIV(N - 1, 2) AS Div, DIV(N, 1 + 2) AS Other",
        "COUNTIF(N > 0) AS Positive, MAX(Name) AS Last",
        "APPROX_QUANTILES(N, 100)[OFFSET(50)] AS P50, APPROX_QUANTILES(N, 100)[OFFSET(99)] AS P99",
    ],
)
def test_what_was_wrong_is_right(world, select):
    aggregated = "COUNTIF" in select or "QUANTILES" in select
    end = "" if aggregated else "ORDER BY N"
    sql = f"SELECT {select} FROM `{world.dataset}.Flat` {end}"
    expected, actual = world.expected(sql), world.actual(sql)
    assert [list(row) for row in actual] == [list(row) for row in expected]
    assert actual == expected
    assert aggregated or len({repr(row) for row in actual}) > 1


@pytest.mark.parametrize(
    ("sql", "expected", "actual"),
    [
        ("ROUND(2.675, 2)", 2.67, 2.68),
        (f"ARRAY(SELECT x FROM UNNEST([1.0, {NAN}]) AS x ORDER BY x)", [math.nan, 1.0], [1.0, math.nan]),
        ("TO_JSON_STRING(CAST(NULL AS STRING))", "null", None),
    ],
)
def test_the_differences_that_are_recorded_are_there(world, sql, expected, actual):
    """docs/local-stack.md lists them; what no longer differs is to be taken off."""
    (one,), (other,) = world.expected(f"SELECT {sql} AS x"), world.actual(f"SELECT {sql} AS x")
    assert (plain(one["x"]), plain(other["x"])) == (plain(expected), plain(actual))

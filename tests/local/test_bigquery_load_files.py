"""JSON lines and Parquet files of load jobs: their schemas, and which rows they give."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from local.bqemulator_patches.failures import JobError
from local.bqemulator_patches.load_files import JsonLines
from local.bqemulator_patches.load_parquet import Parquet
from tests.local.load_sources import named, shape, table

UTC = dt.UTC


# JSON lines -----------------------------------------------------------------------------------------------


def test_json_lines_are_detected(load_source):
    content = (
        '{"a": 1, "r": {"x": [1, 2.5], "y": null}, "l": [{"q": true}], "n": null, "s": "12"}\n'
        '{"a": 2, "d": "2026-01-02", "r": {"y": {"z": "2026-01-02 03:04"}}, "late": [1]}\n'
    )
    files = load_source(JsonLines, content, autodetect=True)
    detected = files.schema()
    assert shape(detected) == (
        "a:INTEGER,r{x:FLOAT[],y{z:TIMESTAMP}},l{q:BOOLEAN}[],n:STRING,s:INTEGER,d:DATE,late:INTEGER[]"
    )
    first, second = files.read(table(detected), detected).data.to_pylist()
    assert first["r"] == {"x": [1.0, 2.5], "y": None}
    assert (first["l"], first["s"], first["late"]) == ([{"q": True}], 12, [])
    assert second["r"]["y"] == {"z": dt.datetime(2026, 1, 2, 3, 4, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": "x"}\n', "Row 2: Field a is STRING where rows before have INTEGER"),
        ('{"a": {"b": 1}}\n{"a": 2}\n', "Row 2: Field a is INTEGER where rows before have RECORD"),
        ('{"a": [1, "x"]}\n', "Row 1: All array elements must be the same compatible type"),
    ],
)
def test_json_fields_of_two_types_are_not_detected(load_source, content, message):
    with pytest.raises(JobError, match=message):
        load_source(JsonLines, content).schema()


def test_bad_json_lines_are_errors_with_their_position(load_source):
    columns = table("a:INT64")
    content = '{"a": 1}\n{"a": \n{"a": "x"}\n{"b": 1}\n[]\n'
    with pytest.raises(JobError, match=r"JSON table encountered too many .* Rows: 5; errors: 4") as failed:
        load_source(JsonLines, content).read(columns, named(columns))
    details = " ".join(failed.value.details)
    for position, what in (
        (9, "unexpected end"),
        (16, "bad value"),
        (27, "no such field: b"),
        (36, "not an object"),
    ):
        assert f"row starting at position {position}: " in details
        assert what in details
    loaded = load_source(JsonLines, content, maxBadRecords=4).read(columns, named(columns))
    assert (loaded.data.to_pydict(), loaded.bad) == ({"a": [1]}, 4)
    ignoring = load_source(JsonLines, '{"a": 1, "b": 2}', ignoreUnknownValues=True).read(
        columns, named(columns)
    )
    assert ignoring.data.to_pydict() == {"a": [1]}


# Parquet --------------------------------------------------------------------------------------------------


def parquet(data, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, **options)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("kind", "value", "detected", "read"),
    [
        (pa.int32(), 1, "INTEGER", 1),
        (pa.uint8(), 1, "INTEGER", 1),
        (pa.float32(), 1.5, "FLOAT", 1.5),
        (pa.bool_(), True, "BOOLEAN", True),
        (pa.large_string(), "x", "STRING", "x"),
        (pa.dictionary(pa.int8(), pa.string()), "x", "STRING", "x"),
        (pa.binary(2), b"xy", "BYTES", b"xy"),
        (pa.date32(), dt.date(2026, 1, 2), "DATE", dt.date(2026, 1, 2)),
        (pa.time64("us"), dt.time(1, 2, 3), "TIME", dt.time(1, 2, 3)),
        (pa.timestamp("ns", "UTC"), 1_500, "TIMESTAMP", dt.datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        (pa.timestamp("ms", "Asia/Tokyo"), 0, "TIMESTAMP", dt.datetime(1970, 1, 1, tzinfo=UTC)),
        (pa.timestamp("us"), 0, "DATETIME", dt.datetime(1970, 1, 1)),
        (pa.decimal128(10, 2), Decimal("1.50"), "NUMERIC", Decimal("1.5")),
    ],
    ids=str,
)
def test_parquet_types(load_source, kind, value, detected, read):
    files = load_source(Parquet, parquet(pa.table({"x": pa.array([value, None], kind)})))
    fields = files.schema()
    assert fields == [{"name": "x", "mode": "NULLABLE", "type": detected}]
    assert files.read(table(fields), fields).data.to_pydict() == {"x": [read, None]}


def test_the_timestamps_of_old_parquet_writers_are_in_utc(load_source):
    moment = pa.array([dt.datetime(2026, 1, 2)], pa.timestamp("us"))
    data = parquet(pa.table({"x": moment}), use_deprecated_int96_timestamps=True)
    files = load_source(Parquet, data)
    fields = files.schema()
    assert shape(fields) == "x:TIMESTAMP"
    assert files.read(table(fields), fields).data.to_pydict() == {"x": [dt.datetime(2026, 1, 2, tzinfo=UTC)]}


NESTED = pa.table(
    {
        "l": pa.array([[1, 2], None, []]),
        "s": pa.array([{"x": [{"y": "a"}]}, None, {"x": None}]),
        "m": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    }
)


def test_parquet_lists_are_records_unless_they_are_inferred(load_source):
    files = load_source(Parquet, parquet(NESTED))
    fields = files.schema()
    assert shape(fields) == (
        "l{list{element:INTEGER}[]},s{x{list{element{y:STRING}}[]}},m{key_value{key:STRING,value:INTEGER}[]}"
    )
    rows_read = files.read(table(fields), fields).data.to_pylist()
    assert rows_read[0] == {
        "l": {"list": [{"element": 1}, {"element": 2}]},
        "s": {"x": {"list": [{"element": {"y": "a"}}]}},
        "m": {"key_value": [{"key": "k", "value": 1}]},
    }
    assert rows_read[1] == {"l": None, "s": None, "m": None}
    inferring = load_source(Parquet, parquet(NESTED), parquetOptions={"enableListInference": True})
    fields = inferring.schema()
    assert shape(fields) == "l:INTEGER[],s{x{y:STRING}[]},m{key_value{key:STRING,value:INTEGER}[]}"
    data = inferring.read(table(fields), fields).data
    assert data.column("l").to_pylist() == [[1, 2], None, []]
    assert data.column("s").to_pylist() == [{"x": [{"y": "a"}]}, None, {"x": None}]


def test_modes_of_parquet_columns_are_kept(load_source):
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.int64())])
    fields = load_source(Parquet, parquet(pa.table([[1], [2]], schema))).schema()
    assert [(field["name"], field["mode"]) for field in fields] == [("a", "REQUIRED"), ("b", "NULLABLE")]


def test_parquet_columns_are_matched_by_name(load_source):
    columns = table("a:INT64,b:STRING,c:STRING")
    files = load_source(Parquet, parquet(pa.table({"B": ["x"], "a": [1]})))
    assert files.read(columns, []).data.to_pydict() == {"a": [1], "b": ["x"], "c": [None]}


def test_what_is_not_parquet_is_an_error(load_source):
    with pytest.raises(JobError, match="Input file is not in Parquet format"):
        load_source(Parquet, "a,b\n1,2\n").schema()

"""CSV files of load jobs: what is detected in them, and which rows they give."""

import datetime as dt
import gzip
import json
from decimal import Decimal

import pytest

from local.bqemulator_patches import rows
from local.bqemulator_patches.failures import JobError
from local.bqemulator_patches.load_csv import Csv
from local.bqemulator_patches.load_files import JsonLines
from tests.local.load_sources import named, shape, table

UTC = dt.UTC


# CSV: detection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "config", "fields", "first"),
    [
        # The header is a row of strings over others that are not.
        ("id,amount\na,1.5\n", {}, "id:STRING,amount:FLOAT", ["a", 1.5]),
        ("name,town\nx,y\n", {}, "string_field_0:STRING,string_field_1:STRING", ["name", "town"]),
        ("1,x,true,1.5\n", {}, "int64_field_0:INTEGER,string_field_1:STRING,bool_field_2:BOOLEAN,"
         "double_field_3:FLOAT", [1, "x", True, 1.5]),
        # skipLeadingRows: 0 says that there is none, N looks for it in row N, which is skipped either way.
        ("id,n\na,1\n", {"skipLeadingRows": "0"}, "string_field_0:STRING,string_field_1:STRING", ["id", "n"]),
        ("id,n\na,1\n", {"skipLeadingRows": "1"}, "id:STRING,n:INTEGER", ["a", 1]),
        ("note\nid,n\na,1\n", {"skipLeadingRows": "2"}, "id:STRING,n:INTEGER", ["a", 1]),
        ("a,b\nx,y\n", {"skipLeadingRows": "1"}, "string_field_0:STRING,string_field_1:STRING", ["x", "y"]),
        # Delimiters.
        ("id|n\na|1\n", {}, "id:STRING,n:INTEGER", ["a", 1]),
        ("id\tn\na,b\t1\n", {}, "id:STRING,n:INTEGER", ["a,b", 1]),
        ("id;n\na;1\n", {"fieldDelimiter": ";"}, "id:STRING,n:INTEGER", ["a", 1]),
        # Names.
        ("a b,9x,a-b,a_b,\n1,2,3,4,5\n", {}, "a_b:INTEGER,_9x:INTEGER,a_b_1:INTEGER,a_b_2:INTEGER,"
         "int64_field_4:INTEGER", [1, 2, 3, 4, 5]),
        # Types.
        ("a,b,c,d\n2026-01-02,03:04:05,2026-01-02 03:04,x\n", {}, "a:DATE,b:TIME,c:TIMESTAMP,d:STRING",
         [dt.date(2026, 1, 2), dt.time(3, 4, 5), dt.datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "x"]),
        ("a,b\n1,1\n2.5,x\n", {}, "a:FLOAT,b:STRING", [1.0, "1"]),
        ("a,b\n1,\n2,\n", {}, "a:INTEGER,b:STRING", [1, None]),
        ("a,b\n9223372036854775808,1\n", {}, "a:FLOAT,b:INTEGER", [9223372036854775808.0, 1]),
        ('a,b\n"1","x, ""y"""\n', {}, "a:INTEGER,b:STRING", [1, 'x, "y"']),
    ],
)  # fmt: skip
def test_csv_is_detected(load_source, content, config, fields, first):
    files = load_source(Csv, content, autodetect=True, **config)
    detected = files.schema()
    assert shape(detected) == fields
    loaded = files.read(table(detected), detected)
    assert list(loaded.data.slice(0, 1).to_pylist()[0].values()) == first


def test_only_the_first_rows_of_csv_are_looked_at(load_source):
    files = load_source(Csv, "n\n" + "1\n" * 500 + "x\n", autodetect=True)
    detected = files.schema()
    assert shape(detected) == "n:INTEGER"
    with pytest.raises(JobError, match="Rows: 501; errors: 1") as failed:
        files.read(table(detected), detected)
    assert failed.value.details[1].endswith(
        "Could not parse 'x' as INT64 for field n (position 0) in row 501"
    )


def test_a_header_is_skipped_in_every_file(load_source):
    files = load_source(Csv, "id,n\na,1\n", "id,n\nb,2\n", autodetect=True)
    detected = files.schema()
    assert files.read(table(detected), detected).data.to_pydict() == {"id": ["a", "b"], "n": [1, 2]}


# CSV: values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("INT64", " 7 ", 7),
        ("INTEGER", "+7", 7),
        ("FLOAT64", "1e3", 1000.0),
        ("NUMERIC", "1.25", Decimal("1.25")),
        ("BOOL", "Yes", True),
        ("BOOL", "0", False),
        ("DATE", "2026-1-2", dt.date(2026, 1, 2)),
        ("TIME", "03:04:05.5", dt.time(3, 4, 5, 500_000)),
        ("DATETIME", "2026-01-02T03:04:05", dt.datetime(2026, 1, 2, 3, 4, 5)),
        ("BYTES", "eA==", b"x"),
        ("JSON", '{"k":1}', '{"k":1}'),
        ("STRING", " a ", " a "),
    ],
)
def test_csv_values_are_read_by_the_type_of_the_column(load_source, kind, text, value):
    columns = table([{"name": "x", "type": kind}])
    loaded = load_source(Csv, f"{text}\n", quote="").read(columns, named(columns))
    assert loaded.data.to_pydict() == {"x": [value]}


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("INT64", "1.5", "INT64"),
        ("INT64", "0x1F", "INT64"),
        ("INT64", "9223372036854775808", "INT64"),
        ("FLOAT64", "x", "DOUBLE"),
        ("NUMERIC", "x", "NUMERIC"),
        ("BOOL", "maybe", "BOOL"),
        ("DATE", "02/01/2026", "DATE"),
        ("DATE", "2026-13-01", "DATE"),
        ("TIMESTAMP", "yesterday", "TIMESTAMP"),
        ("DATETIME", "2026-01-02 03:04:05Z", "DATETIME"),
        ("BYTES", "!", "BYTES"),
        ("JSON", "{", "JSON"),
    ],
)
def test_csv_values_of_another_type_are_errors(load_source, kind, text, said):
    columns = table([{"name": "x", "type": kind}])
    with pytest.raises(JobError, match="CSV table encountered too many errors") as failed:
        load_source(Csv, f"{text}\n", quote="").read(columns, named(columns))
    assert failed.value.details[1].endswith(
        f"Could not parse '{text}' as {said} for field x (position 0) in row 1"
    )


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2018-08-19 12:11", dt.datetime(2018, 8, 19, 12, 11, tzinfo=UTC)),
        ("2018-08-19 12:11:35.22", dt.datetime(2018, 8, 19, 12, 11, 35, 220_000, tzinfo=UTC)),
        ("2018/08/19 12:11", dt.datetime(2018, 8, 19, 12, 11, tzinfo=UTC)),
        ("2018-08-19 07:11:35.220 -05:00", dt.datetime(2018, 8, 19, 12, 11, 35, 220_000, tzinfo=UTC)),
        ("2018-08-19T12:11:35Z", dt.datetime(2018, 8, 19, 12, 11, 35, tzinfo=UTC)),
        ("2018-08-19 12:11:35 UTC", dt.datetime(2018, 8, 19, 12, 11, 35, tzinfo=UTC)),
        ("2018-08-19 12:11:35 America/New_York", dt.datetime(2018, 8, 19, 16, 11, 35, tzinfo=UTC)),
        ("2018-8-9 1:2:3+5", dt.datetime(2018, 8, 8, 20, 2, 3, tzinfo=UTC)),
        ("2018-08-19", dt.datetime(2018, 8, 19, tzinfo=UTC)),
        ("1700000000.25", dt.datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)),
    ],
)
def test_timestamps_in_csv_and_in_json_are_read_alike(load_source, text, moment):
    columns = table("x:TIMESTAMP")
    for kind, content in ((Csv, f"{text}\n"), (JsonLines, json.dumps({"x": text}))):
        loaded = load_source(kind, content).read(columns, named(columns))
        assert loaded.data.to_pydict() == {"x": [moment]}
    if " " in text or "T" in text:
        assert shape(load_source(JsonLines, json.dumps({"x": text})).schema()) == "x:TIMESTAMP"


def test_nothing_is_null_and_a_quoted_nothing_is_an_empty_string(load_source):
    columns = table("a:STRING,b:STRING,n:INT64")
    loaded = load_source(Csv, 'x,,\ny,"",""\n').read(columns, named(columns))
    assert loaded.data.to_pydict() == {"a": ["x", "y"], "b": [None, ""], "n": [None, None]}
    marked = load_source(Csv, "NA,,1\n", nullMarker="NA").read(columns, named(columns))
    assert marked.data.to_pydict() == {"a": [None], "b": [""], "n": [1]}


def test_rows_of_another_length_are_errors_unless_the_job_takes_them(load_source):
    columns = table("a:INT64,b:STRING")
    content = "1,x\n2\n3,y,z\n"
    with pytest.raises(JobError) as failed:
        load_source(Csv, content).read(columns, named(columns))
    assert [detail.split("message: ")[1] for detail in failed.value.details[1:]] == [
        "CSV table references column position 1, but line 2 contains only 1 columns.",
        "Too many values in line 3. Found 3 column(s) while expected 2.",
    ]
    loaded = load_source(Csv, content, allowJaggedRows=True, ignoreUnknownValues=True).read(
        columns, named(columns)
    )
    assert sorted(loaded.data.to_pydict()["a"]) == [1, 2, 3]
    assert set(loaded.data.to_pydict()["b"]) == {"x", None, "y"}


def test_bad_rows_are_left_out_up_to_a_limit(load_source):
    columns = table("a:INT64")
    loaded = load_source(Csv, "1\nx\n2,3\n4\n", maxBadRecords=2).read(columns, named(columns))
    assert (loaded.data.to_pydict(), loaded.bad) == ({"a": [1, 4]}, 2)
    with pytest.raises(JobError, match="Rows: 4; errors: 2") as failed:
        load_source(Csv, "1\nx\n2,3\n4\n", maxBadRecords=1).read(columns, named(columns))
    assert failed.value.details[0].endswith("errors: 2; max bad: 1; error percent: 0")


def test_required_columns_want_values(load_source):
    columns = table("a:STRING:REQUIRED,b:STRING")
    with pytest.raises(JobError) as failed:
        load_source(Csv, "x,y\n,z\n").read(columns, named(columns))
    assert failed.value.details[1].endswith("Required column value for column index: 0 is missing in row 2")


def test_newlines_in_quotes_must_be_allowed(load_source):
    columns = table("a:STRING,b:INT64")
    content = '"x\ny",1\n'
    with pytest.raises(JobError) as failed:
        load_source(Csv, content).read(columns, named(columns))
    assert failed.value.details[1].endswith('Missing close quote character (") in row 1')
    loaded = load_source(Csv, content, allowQuotedNewlines=True).read(columns, named(columns))
    assert loaded.data.to_pydict() == {"a": ["x\ny"], "b": [1]}


def test_csv_has_no_nested_and_no_repeated_columns(load_source):
    nested = table([{"name": "x", "type": "RECORD", "fields": [{"name": "y", "type": "STRING"}]}])
    with pytest.raises(JobError, match=r"Cannot load CSV data with a nested schema\. Field: x"):
        load_source(Csv, "a\n").read(nested, named(nested))
    repeated = table("x:STRING:REPEATED")
    with pytest.raises(JobError, match=r"Cannot load CSV data with a repeated field\. Field: x"):
        load_source(Csv, "a\n").read(repeated, named(repeated))


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "UTF-16LE"])
def test_encodings_and_compression(load_source, encoding):
    columns = table("a:STRING")
    data = gzip.compress("é\n".encode(encoding))
    loaded = load_source(Csv, data, encoding=encoding).read(columns, named(columns))
    assert loaded.data.to_pydict() == {"a": ["é"]}


def test_points_in_time_are_parsed_strictly():
    assert rows.civil_time("2026-01-02 03:04") == dt.datetime(2026, 1, 2, 3, 4)
    for text in ("2026-01-02 03:04 Nowhere/Else", "2026-02-30", "x", "2026-01-02 25:00"):
        with pytest.raises(ValueError):  # noqa: PT011
            rows.timestamp(text)

from __future__ import annotations

import gzip

import pyarrow as pa
import pytest

from common.csv_files import CsvError, Dialect, dialect, dialect_of, read_first, read_table, read_texts

NAMES = ("Time", "V1", "Amount")


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (b"Time,V1,Amount\n0,-1.5,149.62\n", Dialect(NAMES)),
        (b'"Time","V1","Amount"\r\n0,-1.5,"149.62"\r\n', Dialect(NAMES)),
        (b"\xef\xbb\xbfTime,V1,Amount\n0,1,2\n", Dialect(NAMES)),
        (b"Time;V1;Amount\n0;-1,5;149,62\n", Dialect(NAMES, ";", ",")),
        (b'"Time";"V1";"Amount"\n"0";"-1,5";"149,62"\n', Dialect(NAMES, ";", ",")),
        (b"Time;V1;Amount\n0;-1.5;149.62\n", Dialect(NAMES, ";")),
        (b"Time\tV1\tAmount\n0\t1\t2\n", Dialect(NAMES, "\t")),
        (b'"a;b;c;d",V1\n1,2\n', Dialect(("a;b;c;d", "V1"))),
        (b"Time,V1,Amount", Dialect(NAMES)),
    ],
)
def test_the_first_bytes_tell_the_dialect(content, written):
    assert dialect_of(content, "rows.csv") == written


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"0,1.5,2\n3,4,5\n", "expected the names of the columns in the first line, got '0,1.5,2'"),
        (b"", "expected the names of the columns in the first line, got ''"),
        (b"Time,Betr\xe4ge\n1,2\n", "the names of the columns are not UTF-8"),
        ("Time,V1\n".encode("utf-16"), "is UTF-16; convert it with iconv"),
    ],
)
def test_a_file_without_names_of_columns_is_named(content, words):
    with pytest.raises(CsvError, match=f"rows.csv.*{words}"):
        dialect_of(content, "rows.csv")


def test_a_table_has_numbers_whatever_the_dialect(tmp_path):
    plain, other = tmp_path / "plain.csv", tmp_path / "other.csv.gz"
    plain.write_bytes(b"Time,V1\n0,-1.5\n1,2\n")
    other.write_bytes(gzip.compress(b'"Time";"V1"\r\n"0";"-1,5"\r\n"1";"2"\r\n'))
    assert read_table(str(plain)).to_pydict() == {"Time": [0, 1], "V1": [-1.5, 2.0]}
    assert read_table(str(other)).to_pydict() == {"Time": [0, 1], "V1": [-1.5, 2.0]}


def test_texts_come_as_they_are_and_rows_of_another_width_apart(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,V1,note\n007,1e3,"two\nlines"\na,b\n\xff,,x\n1,2,3,4\n"",null,y\n')
    broken = []
    batches = read_texts(str(path), dialect_of(path.read_bytes(), str(path)), ["id", "V1"], broken.append)
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == [
        {"id": b"007", "V1": b"1e3"},
        {"id": b"\xff", "V1": None},
        {"id": None, "V1": None},
    ]
    assert [(row.actual_columns, row.text) for row in broken] == [(2, "a,b"), (4, "1,2,3,4")]


@pytest.mark.parametrize("missing", ["", '""', "null", "NULL", '"null"'])
def test_a_missing_value_is_null_for_training_as_it_is_for_a_batch_job(tmp_path, missing):
    path = tmp_path / "rows.csv"
    path.write_text(f"account_id,amount,country\na,1.5,NA\n{missing},{missing},{missing}\n")
    names = ["account_id", "amount", "country"]
    (batch,) = read_texts(str(path), dialect_of(path.read_bytes(), str(path)), names, pytest.fail)
    assert batch.to_pylist() == [dict(zip(names, (b"a", b"1.5", b"NA"), strict=True)), dict.fromkeys(names)]
    rows = [dict(zip(names, ("a", 1.5, "NA"), strict=True)), dict.fromkeys(names)]
    assert read_table(str(path)).to_pylist() == rows
    assert read_first(str(path), 9).to_pylist() == rows


def texts(path: str) -> list[pa.RecordBatch]:
    return list(read_texts(path, dialect(path), ["id"], lambda row: None))


@pytest.mark.parametrize("read", [texts, read_table, lambda path: read_first(path, 2_000_000)])
@pytest.mark.parametrize("row", ['"1,2', '1,"2', '1,"2""'])
@pytest.mark.parametrize("lines", [0, 1, 20, 1_500_000])
def test_a_quote_that_is_not_closed_is_an_error_that_names_the_file(tmp_path, lines, row, read):
    """Not a row that takes all that follow with it."""
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(f"id,V1\n5,6\n{row}\n".encode() + b"3,4\n" * lines, 1))
    with pytest.raises(CsvError) as error:
        read(str(path))
    assert f"{path}: cannot be read as CSV: " in str(error.value)
    assert str(error.value).endswith("; is there a quote that is not closed?")


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("read", [texts, read_table, lambda path: read_first(path, 9)])
def test_a_file_of_names_alone_has_no_rows(tmp_path, read, end):
    path = tmp_path / "rows.csv"
    path.write_text(f"id,note{end}")
    found = read(str(path))
    parts = found if isinstance(found, list) else [found]
    assert [part.num_rows for part in parts] == [0] * len(parts)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("last", ['3,"a\nb"', '3,"a ""quote"""', '3,5" wide', '"3",', "3,"])
@pytest.mark.parametrize("form", ["{},{}", "{};{}"])
def test_a_quote_that_is_closed_is_none(tmp_path, last, end, form):
    path = tmp_path / "rows.csv"
    path.write_bytes((form.format("id", "note") + f"\n1,x\n{last}{end}".replace(",", form[2])).encode())
    assert [row["id"] for batch in texts(str(path)) for row in batch.to_pylist()] == [b"1", b"3"]
    assert read_table(str(path))["id"].to_pylist() == [1, 3] == read_first(str(path), 9)["id"].to_pylist()


@pytest.mark.parametrize("categories", [[], ["city"]])
def test_a_value_that_is_not_utf_8_does_not_have_the_file_refused(tmp_path, categories):
    path = tmp_path / "rows.csv"
    path.write_bytes("city,code\nMünchen,1\nBern,2\n".encode("latin-1"))
    for table in (read_table(str(path), categories), read_first(str(path), 9, categories)):
        assert table.schema == pa.schema({"city": pa.string(), "code": pa.int64()})
        assert table["city"].chunk(0).view(pa.binary()).to_pylist() == [b"M\xfcnchen", b"Bern"]
        assert table["code"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    "read", [read_table, lambda path: list(read_texts(path, dialect(path), ["id"], print))]
)
def test_a_row_of_another_width_that_is_not_utf_8_is_an_error_that_does_not_quote_it(tmp_path, read):
    path = tmp_path / "rows.csv"
    path.write_bytes("id,city\n1,Bern\nMünchen\n".encode("latin-1"))
    with pytest.raises(CsvError) as error:
        read(str(path))
    assert "Expected 2 columns, got 1; " in str(error.value)
    assert "nchen" not in str(error.value)


def test_a_row_of_another_width_with_a_value_of_several_lines_is_no_open_quote(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,city\n1,"a\nb",2\n3,Bern\n')
    broken = []
    (batch,) = read_texts(str(path), dialect(str(path)), ["id"], lambda row: broken.append(row.text))
    assert broken == ['1,"a\nb",2']
    assert batch.to_pylist() == [{"id": b"3"}]


def test_a_date_with_points_is_no_number_with_one():
    written = dialect_of(b"when;amount\n01.05.2026 00:41:22;38,42\n31.12.2026;1,5\n", "rows.csv")
    assert (written.delimiter, written.decimal_point) == (";", ",")
    assert dialect_of(b"when;amount\n01.05.2026;38.42\n", "rows.csv").decimal_point == "."
    assert dialect_of(b"when;amount\n01.05.2026;38,42\n02.05.2026;38.42\n", "rows.csv").decimal_point == "."

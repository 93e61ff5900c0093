from __future__ import annotations

import datetime as dt

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from common.csv_files import CsvError
from features.ulb import FEATURES
from transforms import metrics
from transforms.columnar import source_columns
from transforms.csv_source import ParseCsv, ReadCsv, csv_schema, read_rows
from transforms.message import MessageRules
from transforms.shares import Range

LAUNCHED = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
COLUMNS = source_columns(MessageRules())
NUMBERS = frozenset(FEATURES)
HEADER = ",".join(["transaction_id", *FEATURES, "Class"])


def line(key: str, amount: str = "9.5") -> str:
    return ",".join([key, *["1.5"] * (len(FEATURES) - 1), amount, "0"])


def rows_of(path, **kwargs) -> list[dict]:
    return [
        row
        for rows in read_rows(Range(str(path), 0, None), COLUMNS, NUMBERS, **kwargs)
        for row in rows.batch.to_pylist()
    ]


def test_the_columns_of_a_transaction_are_read_with_numbers_as_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([HEADER, line("007"), line("b", "1e2"), ""]))
    rows = rows_of(path)
    assert [(row["transaction_id"], row["Amount"], row["V1"]) for row in rows] == [
        ("007", 9.5, 1.5),
        ("b", 100.0, 1.5),
    ]
    assert "Class" not in rows[0]
    assert [len(read.batch) for read in read_rows(Range(str(path), 0, None), COLUMNS, NUMBERS, 1)] == [1, 1]


def test_decimal_commas_are_points(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([HEADER, line("a")]).replace(",", ";").replace(".", ",") + "\n")
    assert rows_of(path)[0]["Amount"] == 9.5


def test_a_value_that_is_no_number_stays_as_it_is_for_its_row_to_be_rejected(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([HEADER, line("a", "free"), line("b")]))
    assert [row["Amount"] for row in rows_of(path)] == [b"free", b"9.5"]


@pytest.mark.parametrize("odd", ["NaN", "-Infinity", "+1", "\u00a02"])
@pytest.mark.parametrize("other", ["9.5", "free"])
def test_what_is_no_number_elsewhere_is_none_here_whatever_stands_beside_it(tmp_path, odd, other):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([HEADER, line("a", odd), line("b", other)]))
    assert rows_of(path)[0]["Amount"] == odd.encode()


def test_decimal_commas_are_points_beside_a_value_that_is_no_number(tmp_path):
    path = tmp_path / "rows.csv"
    lines = "\n".join([HEADER, line("a", "free"), line("b")])
    path.write_text(lines.replace(",", ";").replace(".", ",") + "\n")
    assert [row["Amount"] for row in rows_of(path)] == [b"free", b"9.5"]


def test_keys_of_directories_are_columns(tmp_path):
    place = tmp_path / "account_id=acc-7" / "day=1"
    place.mkdir(parents=True)
    (place / "rows.csv").write_text("\n".join([HEADER, line("a")]))
    (row,) = rows_of(place / "rows.csv")
    assert row["account_id"] == "acc-7"
    assert "day" not in row


def test_a_file_of_other_columns_is_named(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CsvError, match=r"rows\.csv: no column of a transaction; it has a, b"):
        rows_of(tmp_path / "rows.csv")
    assert csv_schema(str(tmp_path / "rows.csv")) == pa.schema([("a", pa.string()), ("b", pa.string())])


def test_every_line_is_scored_or_a_dead_letter(tmp_path):
    (tmp_path / "one.csv").write_text("\n".join([HEADER, line("a"), "1,2", line("b")]))
    (tmp_path / "two.csv").write_text("\n".join([HEADER, line("c") + ",7"]))
    p = beam.Pipeline("FnApiRunner")
    parsed = p | ReadCsv(f"{tmp_path}/*.csv", COLUMNS, NUMBERS) | ParseCsv(LAUNCHED)
    ids = parsed.transactions | beam.FlatMap(lambda batch: batch["transaction_id"].to_pylist())
    letters = parsed.dead_letters | beam.FlatMap(lambda batch: batch.to_pylist())
    assert_that(ids, equal_to(["a", "b"]), "ids")
    told = letters | beam.Map(
        lambda letter: (letter["errorMessage"], letter["payloadBytes"], letter["stage"])
    )
    expected = [
        ("line: 2 columns, not 32", b"1,2", "parse"),
        ("line: 33 columns, not 32", (line("c") + ",7").encode(), "parse"),
    ]
    assert_that(told, equal_to(expected), "letters")
    result = p.run()
    result.wait_until_finish()
    totals = metrics.totals(result)
    assert (totals[metrics.ROWS_IN], totals[metrics.DEAD_LETTERS]) == (4, 2)

"""Rows as tables, JSON and CSV, with what a stranger may write into them."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re

import pytest

from common.command import CommandError, command
from common.options import OptionError
from common.output import print_record, print_rows, safe_text

NOW = dt.datetime(2026, 3, 8, 12, 0, tzinfo=dt.UTC)
HOSTILE = [
    {"id": "a\x1b[31mred", "note": "=cmd|' /C calc'!A0"},
    {"id": "b\nc", "note": "@x"},
    {"id": "\u202eevil", "note": "[bold]x[/bold]"},
]


def test_a_table_in_a_pipe_is_plain_text(capsys):
    rows = [
        {"name": "a", "score": 12.5, "at": NOW, "n": 3},
        {"name": None, "score": 1234.25, "at": NOW, "n": 40},
    ]
    print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "a" in line.split()[0]] == [
        ["name", "score", "at", "n"],
        ["a", "12.5", "2026-03-08", "12:00:00", "3"],
    ]
    assert lines[-1].split() == ["-", "1,234.25", "2026-03-08", "12:00:00", "40"]
    assert not any(line != line.rstrip() for line in lines)


def test_a_long_cell_stays_on_its_line(capsys):
    print_rows([{"id": "x" * 500}])
    assert "x" * 500 in capsys.readouterr().out.splitlines()


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of so many columns."""

    def set_width(columns):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))

    return set_width


FEATURES = [f"customer_behaviour_indicator_{i}" for i in range(60)]


def test_a_narrow_terminal_folds_texts_and_names_and_no_number_or_time(terminal, capsys):
    terminal(90)
    texts = [{"feature": name, "next_one": name, "last_one": name} for name in FEATURES]
    print_rows([row | {"at": NOW, "outside_percent": 1234.125} for row in texts])
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 90
    assert out.count("2026-03-08 12:00:00") == out.count("1,234.125") == len(FEATURES)
    assert "customer_behaviour_indicator_59" not in out  # over two lines


def test_a_terminal_too_narrow_for_a_table_has_a_line_for_each_field(terminal, capsys):
    row = {f"feature_{i}": name for i, name in enumerate(FEATURES[:5])} | {"at": NOW, "score": 2.75}
    terminal(80)
    print_rows([row, row | {"at": None}])
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[0].split() == ["feature_0", FEATURES[0]]
    assert first.splitlines()[-2:] == ["at         2026-03-08 12:00:00", "score      2.75"]
    assert second.splitlines()[-2:] == ["at         -", "score      2.75"]
    terminal(250)
    print_rows([row])
    assert " ".join([*FEATURES[:5], "2026-03-08"]) in " ".join(capsys.readouterr().out.split())


def test_the_name_of_a_column_ends_its_lines_at_underscores(terminal, capsys):
    terminal(30)
    print_rows([{"very_long_heading_of_a_column": 1, "b": "z"}])
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert [line.split() for line in lines[:2]] == [["very_long_heading_of_a_"], ["column", "b"]]


@pytest.mark.parametrize("columns", [30, 200])
def test_hostile_names_of_columns_are_escaped_and_wide_ones_are_measured(terminal, capsys, columns):
    terminal(columns)
    print_rows([{"a\x1b[2J\n": 10**20, "\u6f22\u5b57": 10**20}])
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert not any("\x1b" in line for line in lines)
    assert sum("a\\x1b[2J\\n" in line for line in lines) == 1
    if columns == 30:  # a block: both values begin in the same column of the terminal
        assert [line.index("1000") for line in lines] == [12, 10]


@pytest.mark.parametrize(
    "character", ["\u061c", "\xad", "\u180e", "\u206a", "\ufffa", "\U000e0041", "\ud800"]
)
def test_marks_that_reorder_or_hide_text_and_half_a_pair_are_escaped(character):
    escape = character.encode("unicode_escape").decode()
    assert safe_text(f"a{character}b") == f"a{escape}b"
    safe_text(f"a{character}b").encode()


def test_csv_names_of_columns_are_no_formulas(capsys):
    print_rows([{"=cmd": 1}], "csv")
    assert capsys.readouterr().out.splitlines() == ["'=cmd", "1"]


def test_no_rows(capsys):
    print_rows([])
    assert capsys.readouterr().out == "No rows.\n"
    print_rows([], "json")
    assert json.loads(capsys.readouterr().out) == []
    print_rows([], "csv")
    assert capsys.readouterr().out == ""


def test_json_and_csv(capsys):
    rows = [{"at": NOW, "n": 1, "text": "a,b"}]
    print_rows(rows, "json")
    assert json.loads(capsys.readouterr().out) == [{"at": "2026-03-08T12:00:00+00:00", "n": 1, "text": "a,b"}]
    print_rows(rows, "csv")
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["at", "n", "text"],
        ["2026-03-08T12:00:00+00:00", "1", "a,b"],
    ]


def test_a_terminal_obeys_nothing_in_a_cell(capsys):
    print_rows(HOSTILE)
    shown = capsys.readouterr().out
    assert not set("\x1b\u202e") & set(shown)
    assert "a\\x1b[31mred" in shown
    assert "b\\nc" in shown
    assert "[bold]x[/bold]" in shown
    assert safe_text("plain äöü €") == "plain äöü €"


def test_a_spreadsheet_runs_nothing_in_a_cell(capsys):
    print_rows(HOSTILE, "csv")
    cells = [row["note"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert cells == ["'=cmd|' /C calc'!A0", "'@x", "[bold]x[/bold]"]


def test_a_record(capsys):
    record = {"read": 3, "topic": "t"}
    print_record(record)
    assert capsys.readouterr().out == "read   3\ntopic  t\n"
    print_record(record, "json")
    assert json.loads(capsys.readouterr().out) == record
    print_record(record, "csv")
    assert capsys.readouterr().out.splitlines() == ["field,value", "read,3", "topic,t"]


@pytest.mark.parametrize("kind", [CommandError, OptionError])
def test_an_error_does_not_drive_the_terminal(kind, capsys):
    @command
    def main() -> int:
        raise kind("field \x1b]0;owned\x07\u202e is missing\nsecond line")

    assert main() in (1, 2)
    assert capsys.readouterr().err == "error: field \\x1b]0;owned\\x07\\u202e is missing\nsecond line\n"

"""Drives the table of values in docs/messages.md through each way in, and through a replay of letters."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import re
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.ulb import FEATURES
from model import data, handler
from model.serving.request import BadRequestError, RequestParser
from operations.dead_letters import Letter, message
from transforms.columnar import SourceColumnsError, check_columns, to_transactions
from transforms.csv_source import read_rows
from transforms.files import RowGroups, read_row_groups
from transforms.message import MessageColumns, MessageRules, Parsed, parse_messages
from transforms.scores import transaction_messages
from transforms.shares import Range

NOW = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
RULES = MessageRules(default_time=NOW)
NEVER = MessageRules(default_time=NOW, max_age=dt.timedelta(0), max_lead=dt.timedelta(0))
"""No time but that of the launch is within these bounds."""
PAGE = Path(__file__).parents[2] / "docs" / "messages.md"
COLUMNS = {"feature": ("V7",), "id, account": ("transaction_id", "account_id"), "time": ("event_time",)}
NOTHING = object()


class Case(NamedTuple):
    """A cell of the table: a value for a column, in JSON and in an Arrow type, and what it is read as."""

    column: str
    value: Any
    kind: str | None
    expected: Any
    is_refused: bool = False


def cases() -> list[Case]:
    """Reads the table."""
    table = PAGE.read_text(encoding="utf-8").partition("## Values")[2].partition("## Fields")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    found = []
    for field, values, kinds, result in rows:
        texts = [json.loads(text) for text in re.findall("`([^`]+)`", values)]
        accepted, _, refused = kinds.partition("refused:")
        for column in COLUMNS[field]:
            for value in texts:
                read_as = re.fullmatch("`([^`]+)`", result)
                expected = json.loads(read_as[1]) if read_as else value if "same" in result else None
                expected = NOTHING if "rejected" in result else expected
                found.append(Case(column, value, None, expected))
                found += [Case(column, value, kind, expected) for kind in re.findall("`([^`]+)`", accepted)]
                found += [
                    Case(column, value, kind, NOTHING, True) for kind in re.findall("`([^`]+)`", refused)
                ]
    return found


CASES = cases()
VALID = [case for case in CASES if case.expected is not NOTHING]
REJECTED = [case for case in CASES if case.expected is NOTHING and not case.is_refused]


def name_of(case: Case) -> str:
    return f"{case.column}-{json.dumps(case.value)}-{case.kind or 'JSON'}"


def json_row(case: Case) -> dict[str, Any]:
    row = {"transaction_id": "t-0", "account_id": "a-0", "event_time": "2026-11-25T00:00:00Z"}
    return row | {name: i + 0.5 for i, name in enumerate(FEATURES)} | {case.column: case.value}


def array(value: Any, kind: str) -> pa.Array:
    """A column of one row that holds a value of JSON in an Arrow type."""
    if kind == "dictionary":
        return pa.array([value]).dictionary_encode()
    if kind == "uuid":
        return pa.array([uuid.UUID(value).bytes], pa.uuid())
    if kind == "fixed_size_binary[16]":
        return pa.array([uuid.UUID(value).bytes], pa.binary(16))
    if kind == "date32[day]":
        return pa.array([NOW.date()])
    if match := re.fullmatch(r"decimal(\d+)\((\d+), (\d+)\)", kind):
        make = {"128": pa.decimal128, "256": pa.decimal256}[match[1]]
        return pa.array([decimal.Decimal(str(value))], make(int(match[2]), int(match[3])))
    if match := re.fullmatch(r"timestamp\[(\w+)\]", kind):
        return pa.array([value], pa.timestamp(match[1]))
    plain = value.encode() if isinstance(value, str) and kind == "binary" else value
    if isinstance(value, (int, float)) and kind == "double":
        plain = float(value)
    if isinstance(value, (int, float)) and kind == "bool":
        plain = bool(value)
    return pa.array([plain], {"float": "float32", "double": "float64", "bool": "bool"}.get(kind, kind))


def batch_of(case: Case, path: Path) -> pa.RecordBatch:
    """The row of a case, read from a Parquet file."""
    assert case.kind is not None
    columns = {name: pa.array([value]) for name, value in json_row(case).items() if name != case.column}
    pq.write_table(pa.table(columns | {case.column: array(case.value, case.kind)}), path)
    (batch,) = read_row_groups(RowGroups(str(path), (0,), 1))
    return batch


def parsed(case: Case, path: Path, rules: MessageRules = RULES) -> Parsed:
    """A case by its way: a JSON message, or a columnar batch."""
    if case.kind is None:
        return parse_messages(MessageColumns([orjson.dumps(json_row(case))]), rules)
    return to_transactions(batch_of(case, path), NOW, rules)


def replayed(letters: pa.RecordBatch, rules: MessageRules = RULES) -> Parsed:
    """Parses dead letters as a replay sends them."""
    rows = [
        Letter("k", row["timestamp"], row["stage"], row["errorMessage"], 0, row["payloadBytes"], {})
        for row in letters.to_pylist()
    ]
    messages = [message(row) for row in rows]
    payloads = [payload for payload, _ in messages]
    return parse_messages(MessageColumns(payloads, [attributes for _, attributes in messages]), rules)


def cell(transactions: pa.RecordBatch, column: str) -> Any:
    (row,) = transactions.to_pylist()
    return row["features"][FEATURES.index(column)] if column in FEATURES else row[column]


@pytest.mark.parametrize("case", VALID, ids=name_of)
def test_a_value_is_read_the_same_way_whatever_brings_it(case, tmp_path):
    result = parsed(case, tmp_path / "rows.parquet")
    assert result.dead_letters.column("errorMessage").to_pylist() == []
    value = cell(result.transactions, case.column)
    if case.column == "event_time":
        missing = case.expected is None
        assert value == (NOW if missing else dt.datetime.fromisoformat(case.expected))
        assert result.transactions.column("event_time_derived").to_pylist() == [missing]
        assert result.times_defaulted == missing
    elif case.column == "transaction_id" and case.expected is None:
        assert re.fullmatch("[0-9a-f]{32}", value)
        assert result.ids_derived == 1
    else:
        assert value == case.expected
        assert (result.ids_derived, result.times_defaulted) == (0, 0)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind == "string" and case.value not in (None, "")], ids=name_of
)
def test_a_text_in_csv_is_read_as_one_in_a_column_of_text(case, tmp_path):
    path = tmp_path / "rows.csv"
    row = json_row(case)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([row, row.values()])
    (read,) = read_rows(Range(str(path), 0, None), list(row), frozenset(FEATURES))
    from_csv = to_transactions(read.batch, NOW)
    from_column = parsed(case, tmp_path / "rows.parquet")
    assert from_csv.transactions.equals(from_column.transactions)
    # The reasons differ: a number of CSV is no text.
    fields = [
        [reason.partition(" is ")[0] for reason in result.dead_letters.column("errorMessage").to_pylist()]
        for result in (from_csv, from_column)
    ]
    assert fields[0] == fields[1]
    assert len(fields[0]) == (case.expected is NOTHING)


@pytest.mark.parametrize("case", VALID, ids=name_of)
def test_a_letter_of_a_valid_row_gives_the_same_row_when_its_cause_is_fixed(case, tmp_path):
    right = parsed(case, tmp_path / "rows.parquet")
    refused = parsed(case, tmp_path / "rows.parquet", NEVER)
    if refused.transactions.num_rows:  # without a time of its own it takes that of the launch
        assert case.column == "event_time"
        assert case.expected is None
    elif case.kind is None and case.column == "transaction_id" and case.expected is None:
        assert replayed(refused.dead_letters).transactions.num_rows == 1  # its id is that of its message
    else:
        assert replayed(refused.dead_letters).transactions.equals(right.transactions)
    unscored = parse_messages(MessageColumns(transaction_messages(right.transactions)), RULES)
    assert unscored.transactions.equals(right.transactions)


@pytest.mark.parametrize("case", REJECTED, ids=name_of)
def test_a_rejected_value_is_rejected_again_for_the_same_reason(case, tmp_path):
    result = parsed(case, tmp_path / "rows.parquet")
    (reason,) = result.dead_letters.column("errorMessage").to_pylist()
    assert reason.startswith(
        f"features: {case.column} is " if case.column in FEATURES else f"{case.column}: "
    )
    assert result.transactions.num_rows == 0
    again = replayed(result.dead_letters)
    assert again.transactions.num_rows == 0
    assert again.dead_letters.column("errorMessage").to_pylist() == [reason]


@pytest.mark.parametrize("case", [case for case in CASES if case.is_refused], ids=name_of)
def test_a_column_of_a_refused_type_is_named_before_there_are_rows(case, tmp_path):
    batch = batch_of(case, tmp_path / "rows.parquet")
    with pytest.raises(SourceColumnsError, match=f"Column '{case.column}' is {re.escape(case.kind)}, not a"):
        check_columns(batch.schema)


@pytest.mark.parametrize("case", [case for case in CASES if case.column == "V7" and case.kind], ids=name_of)
def test_training_reads_features_by_the_same_rules(case, tmp_path):
    table = pa.Table.from_batches([batch_of(case, tmp_path / "rows.parquet")])
    if case.expected is NOTHING:
        with pytest.raises(data.DataError, match="V7"):
            data.from_arrow(table, "rows.parquet")
    else:
        features = data.from_arrow(table, "rows.parquet").features
        assert features[0, FEATURES.index("V7")] == np.float32(case.expected)


@pytest.mark.parametrize("form", ["list", "names", "message"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.column == "V7" and case.kind is None], ids=name_of
)
def test_servers_read_features_by_the_same_rules(case, form):
    row = json_row(case)
    values = [row[name] for name in FEATURES]
    instance = {"list": values, "names": row, "message": {"features": values}}[form]
    body = orjson.dumps({"instances": [instance]})
    if case.expected is NOTHING:
        with pytest.raises(BadRequestError) as caught:
            RequestParser(FEATURES).parse(body)
        assert caught.value.field == "V7"
        with pytest.raises(ValueError, match="V7: "):
            handler._numbers(instance, FEATURES)
    else:
        scored = RequestParser(FEATURES).parse(body).features[0, FEATURES.index("V7")]
        assert scored == np.float32(case.expected)
        assert handler._numbers(instance, FEATURES)[FEATURES.index("V7")] == case.expected


@pytest.mark.parametrize("kind", ["s", "us"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Brussels"])
def test_a_timestamp_is_utc_where_it_has_no_zone(kind, zone, tmp_path):
    moment = dt.datetime(2026, 11, 25, 9, 18, 26, tzinfo=dt.UTC)
    times = pa.array([moment], pa.timestamp(kind, zone)) if zone else pa.array([moment.replace(tzinfo=None)])
    row = {name: pa.array([1.0]) for name in FEATURES} | {"event_time": times}
    parsed = to_transactions(pa.RecordBatch.from_pydict(row), NOW)
    assert parsed.transactions.column("event_time").to_pylist() == [moment]


def test_the_table_has_all_ways():
    assert len(CASES) > 120
    kinds = {case.kind for case in CASES}
    assert {None, "uuid", "string_view", "binary", "decimal128(38, 9)", "timestamp[us]", "bool"} <= kinds

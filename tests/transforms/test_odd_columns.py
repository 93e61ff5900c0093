"""Columns of types and values that Python, JSON or another way into the pipelines does not have."""

from __future__ import annotations

import dataclasses
import decimal
import uuid

import numpy as np
import orjson
import pyarrow as pa
import pytest

from features.declaration import FeatureSpec
from features.guess import guess
from features.preview import preview
from tests.transforms.column_cases import NOW, SPEC, learnt_rules, parsed_of, table_of
from transforms.columnar import SourceColumnsError, check_columns
from transforms.message import MessageColumns, MessageRules, parse_messages


@pytest.fixture(scope="module")
def rules() -> MessageRules:
    return learnt_rules()


def ticks(kind: pa.DataType, *values: int) -> pa.Array:
    return pa.array(values, pa.int64()).view(kind)


SECOND = 1_772_362_800  # 2026-03-01T11:00:00Z


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (ticks(pa.timestamp("ns"), SECOND * 10**9 + 1), "2026-03-01 11:00:00.000000001"),
        (ticks(pa.timestamp("us"), 3 * 10**17), "11476-08-15 05:20:00.000000"),
        (ticks(pa.timestamp("us", "Mars/Olympus"), SECOND), str(SECOND)),
        (ticks(pa.time64("ns"), 1), "00:00:00.000000001"),
        (ticks(pa.duration("ns"), 1), "1"),
        (pa.array([10**7], pa.int32()).view(pa.date32()), "29349-01-26"),
        (ticks(pa.timestamp("us"), 3 * 10**17).dictionary_encode(), "11476-08-15 05:20:00.000000"),
    ],
    ids=str,
)
def test_what_passes_through_may_have_any_type(note, text, rules):
    table = table_of(note=note, nested=pa.StructArray.from_arrays([note], ["at"]))
    passing = dataclasses.replace(rules, pass_through=("note", "nested"))
    check_columns(table.schema, passing)
    (passed,) = parsed_of(table, passing).transactions["pass_through"].to_pylist()
    assert orjson.loads(passed) == {"note": text, "nested": {"at": text}}


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        (pa.array(["true", "yes", "", None, "maybe"]), [True, True, False, False]),
        (pa.array([True, False, None]), [True, False, False]),
        (pa.array([1, 0, 5]), [True, False]),
        (pa.array([1.0, 0.3]), [True]),
    ],
    ids=str,
)
@pytest.mark.parametrize("default", [False, True])
def test_whether_a_time_was_derived_is_read_as_booleans_are(values, accepted, default, rules):
    table = table_of(event_time_derived=values)
    if default:
        rules = MessageRules()
        ones = {name: pa.array(np.ones(len(values))) for name in rules.encoding.spec.names}
        table = pa.table({"transaction_id": table["id"], "event_time_derived": values} | ones)
        table = table.append_column("event_time", pa.array([NOW] * len(values)))
    parsed = parsed_of(table, rules)
    assert parsed.transactions["event_time_derived"].to_pylist() == accepted
    reasons = parsed.dead_letters["errorMessage"].to_pylist()
    assert all(reason.startswith("event_time_derived: ") for reason in reasons)
    assert all(reason.endswith(", not true or false") for reason in reasons)


def test_a_column_that_cannot_say_so_is_named_before_the_start(rules):
    table = table_of(event_time_derived=pa.array([[True]]))
    with pytest.raises(SourceColumnsError, match="Column 'event_time_derived' is list"):
        check_columns(table.schema, rules)


def test_an_empty_text_of_a_dictionary_is_a_missing_value(rules):
    table = table_of(x=pa.array(["1", "", "2"]).dictionary_encode())
    parsed = parsed_of(table, rules)
    assert parsed.transactions.column("inputs").field("x").to_pylist() == [1.0, None, 2.0]


@pytest.mark.parametrize("paid", [pa.array(["1e400"]), pa.array([np.inf])], ids=str)
def test_an_infinite_amount_is_rejected_as_it_is_in_a_message(paid, rules):
    got = "a text" if paid.type == pa.string() else "inf"
    assert parsed_of(table_of(paid=paid), rules).dead_letters["errorMessage"].to_pylist() == [
        f"paid: expected a finite number within float32, got {got}"
    ]


@pytest.mark.parametrize(
    ("unit", "far"),
    [
        ("s", SECOND + 2**58),
        ("s", SECOND + 2**62),
        ("ms", SECOND * 1000 + 2**61),
        ("s", -(2**63)),
        ("ms", -(2**63)),
    ],
)
def test_a_time_far_away_does_not_wrap(unit, far, rules):
    now = SECOND * (1000 if unit == "ms" else 1)
    parsed = parsed_of(table_of(when=ticks(pa.timestamp(unit), now, far)), rules)
    assert parsed.transactions["transaction_id"].to_pylist() == ["t0"]
    (reason,) = parsed.dead_letters["errorMessage"].to_pylist()
    assert reason.startswith("event_time: expected a time")


@pytest.mark.parametrize("form", ["any", "seconds"])
def test_nan_is_a_missing_time_in_every_form(form, rules):
    spec = SPEC.to_json() | {"event_time": {"from": "when", "format": form}}
    told = FeatureSpec.from_json(spec)
    changed = dataclasses.replace(
        rules, roles=told.roles, encoding=dataclasses.replace(rules.encoding, spec=told)
    )
    parsed = parsed_of(table_of(when=pa.array([float("nan"), float(SECOND)])), changed)
    assert parsed.times_defaulted == 1
    assert parsed.transactions["event_time_derived"].to_pylist() == [True, False]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("known", pa.array([decimal.Decimal("1.0")], pa.decimal128(9, 1))),
        ("known", pa.array([decimal.Decimal("0E-9")], pa.decimal128(38, 9))),
        ("city", pa.array([uuid.UUID(int=7).bytes], pa.binary(16)).dictionary_encode()),
    ],
    ids=str,
)
def test_the_letter_of_a_row_has_its_other_values_as_they_were_scored(name, values, rules):
    good = parsed_of(table_of(**{name: values}), rules).transactions
    assert good.num_rows == 1
    (letter,) = (
        parsed_of(table_of(**{name: values, "x": pa.array(["free"])}), rules)
        .dead_letters["payloadBytes"]
        .to_pylist()
    )
    mended = parse_messages(
        MessageColumns([orjson.dumps(orjson.loads(letter) | {"x": "2"})]), rules
    ).transactions
    assert mended.column("inputs").equals(good.column("inputs"))


@pytest.mark.parametrize(
    "text", ["11:00:00.9999999Z", "11:00:00.1234565Z", "11:00:00.12345649Z", "23:59:59.9999995Z"]
)
def test_times_of_more_than_six_decimals_are_rounded_alike(text, rules):
    when = f"2026-03-01T{text}"
    column = parsed_of(table_of(when=pa.array([when])), rules).transactions["event_time"]
    message = {key: value.decode() for key, value in {"who": b"a", "city": b"NZ", "known": b"true"}.items()}
    payload = orjson.dumps(message | {"transaction_id": "t", "when": when, "paid": 1.5, "x": 2})
    assert parse_messages(MessageColumns([payload]), rules).transactions["event_time"].equals(column)


@pytest.mark.parametrize(
    "column",
    [
        ticks(pa.timestamp("ns"), *range(20)),
        ticks(pa.timestamp("us"), *(10**18 + i for i in range(20))),
        pa.array([[i] for i in range(20)]),
        pa.array([[("a", i)] for i in range(20)], pa.map_(pa.string(), pa.int64())),
        ticks(pa.duration("ns"), *range(20)),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_is_no_feature_does_not_stop_a_guess_or_a_check(column):
    table = table_of(city=pa.array(["NZ", "DE"] * 10), other=column)
    guess(table, "rows.parquet")
    preview(SPEC, table)

"""Columns whose texts are not all UTF-8, as Parquet files of other writers have them; numbers like texts."""

from __future__ import annotations

import dataclasses

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.column_cases import GOOD, learnt_rules, parsed_of, table_of
from transforms.message import MessageColumns, MessageRules, parse_messages

LATIN = "München".encode("latin-1")
TYPES = {
    "text": lambda values: values.view(pa.string()),
    "large text": lambda values: values.cast(pa.large_binary()).view(pa.large_string()),
    "dictionary": lambda values: values.view(pa.string()).dictionary_encode(),
    "bytes": lambda values: values,
    "dictionary of bytes": lambda values: values.dictionary_encode(),
    "view": lambda values: values.cast(pa.binary_view()),
}


@pytest.fixture(scope="module")
def rules() -> MessageRules:
    return learnt_rules()


@pytest.mark.parametrize("form", TYPES)
@pytest.mark.parametrize("name", GOOD)
def test_a_row_whose_text_is_not_utf_8_is_rejected_alone(name, form, rules):
    good = b"t1" if name == "id" else GOOD[name]
    column = TYPES[form](pa.array([LATIN, good, good.replace(b"t1", b"t2")]))
    parsed = parsed_of(table_of(**{name: column}), rules)
    assert parsed.transactions["transaction_id"].to_pylist() == ["t1", "t2"]
    (reason,) = parsed.dead_letters["errorMessage"].to_pylist()
    assert "not UTF-8" in reason
    (payload,) = parsed.dead_letters["payloadBytes"].to_pylist()
    key = {"id": "transaction_id", "who": "account_id", "when": "event_time"}.get(name, name)
    assert orjson.loads(payload)[key] == {"base64": "TfxuY2hlbg=="}


def test_parquet_gives_such_texts_as_its_writer_named_them(rules, tmp_path):
    """A file gives what the other tests build by hand."""
    city = pa.array([LATIN, b"NZ", b"DE"]).view(pa.string())
    pq.write_table(table_of(city=city), tmp_path / "rows.parquet")
    read = pq.read_table(tmp_path / "rows.parquet")
    assert read.schema.field("city").type == pa.string()
    assert parsed_of(read, rules).dead_letters["errorMessage"].to_pylist() == [
        "city: expected a text or a whole number, got bytes that are not UTF-8"
    ]


@pytest.mark.parametrize("form", TYPES)
def test_the_default_table_rejects_the_row_alone(form):
    ids = TYPES[form](pa.array([LATIN, b"t1"]))
    names = MessageRules().encoding.spec.names
    table = pa.table({"transaction_id": ids} | {name: pa.array([1.0, 2.0]) for name in names})
    parsed = parsed_of(table, MessageRules())
    assert parsed.transactions["transaction_id"].to_pylist() == ["t1"]
    assert parsed.dead_letters["errorMessage"].to_pylist() == [
        "transaction_id: not UTF-8 (invalid start byte at byte 1)"
    ]


@pytest.mark.parametrize(
    ("value", "sent", "got"),
    [
        (np.inf, {"number": "Infinity"}, "inf"),
        (-np.inf, {"number": "-Infinity"}, "-inf"),
        (1.5, 1.5, "1.5"),
        (np.nan, None, "null"),
        (None, None, "null"),
    ],
)
def test_a_number_that_is_no_category_stays_none_when_it_is_sent_again(value, sent, got, rules):
    """Infinity as a text would be a city."""
    parsed = parsed_of(table_of(city=pa.array([value, 5.0])), rules)
    assert parsed.transactions["transaction_id"].to_pylist() == ["t1"]
    (payload,) = parsed.dead_letters["payloadBytes"].to_pylist()
    assert orjson.loads(payload).get("city") == sent
    assert parsed.dead_letters["errorMessage"].to_pylist() == [
        f"city: expected a text or a whole number, got {got}"
    ]


def test_a_missing_number_of_a_row_that_is_rejected_stays_missing(rules):
    table = table_of(city=pa.array([1.5]), x=pa.array([np.nan]))
    (payload,) = parsed_of(table, rules).dead_letters["payloadBytes"].to_pylist()
    mended = orjson.loads(payload) | {"city": "NZ"}
    assert parse_messages(MessageColumns([orjson.dumps(mended)]), rules).transactions.num_rows == 1


@pytest.mark.parametrize("form", ["text", "large text", "dictionary", "nested"])
def test_what_passes_through_shows_such_bytes(form, rules):
    notes = pa.array([LATIN, b"Bern"])
    if form == "nested":
        texts = notes.view(pa.string())
        lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts)
        column = pa.StructArray.from_arrays([texts, lists, notes], ["a", "b", "raw"])
    else:
        column = TYPES[form](notes)
    parsed = parsed_of(table_of(note=column), dataclasses.replace(rules, pass_through=("note",)))
    shown, plain = "M\\xfcnchen", "Bern"
    assert [orjson.loads(each)["note"] for each in parsed.transactions["pass_through"].to_pylist()] == (
        [{"a": shown, "b": [shown], "raw": "TfxuY2hlbg=="}, {"a": plain, "b": [plain], "raw": "QmVybg=="}]
        if form == "nested"
        else [shown, plain]
    )

"""Times in a pattern of the user's own, and words for true and false, in messages and columns."""

from __future__ import annotations

import datetime as dt

import orjson
import pyarrow as pa

from features.declaration import FeatureSpec
from transforms.columnar import to_transactions
from transforms.forms import Encoding
from transforms.message import MessageColumns, MessageRules, parse_messages

GERMAN = FeatureSpec.from_json(
    {
        "event_time": {"from": "Datum", "format": "%d.%m.%Y %H:%M"},
        "amount": "Betrag",
        "features": [
            {"name": "Betrag", "kind": "number"},
            {"name": "Karte", "kind": "boolean"},
            {"name": "hour", "kind": "time_of_day"},
        ],
    }
)
"""A spec of a German export."""


def rules_of(spec: FeatureSpec) -> MessageRules:
    """Rules that take any event time."""
    wide = dt.timedelta(days=9999)
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    return MessageRules(now, max_lead=wide, max_age=wide, roles=spec.roles, encoding=Encoding(spec))


def test_times_of_a_pattern_and_words_are_the_same_in_messages_and_columns():
    rows = [
        {"Betrag": 1.5, "Karte": "ja", "Datum": "31.12.2026 14:05", "transaction_id": "a"},
        {"Betrag": 2.5, "Karte": "Nein", "Datum": "1.2.2026 5:03", "transaction_id": "b"},
        {"Betrag": 3.5, "Karte": "wahr", "Datum": "2026-02-01T05:03:00+00:00", "transaction_id": "c"},
        {"Betrag": 4.5, "Karte": "vielleicht", "Datum": "1.2.2026 5:03", "transaction_id": "d"},
        {"Betrag": 5.5, "Karte": "ja", "Datum": "31.02.2026 14:05", "transaction_id": "e"},
        {"Betrag": 6.5, "Karte": "ja", "Datum": "1798725900", "transaction_id": "f"},
    ]
    rules = rules_of(GERMAN)
    by_message = parse_messages(MessageColumns([orjson.dumps(row) for row in rows]), rules)
    by_column = to_transactions(pa.RecordBatch.from_pylist(rows), dt.datetime.now(dt.UTC), rules)
    for parsed in (by_message, by_column):
        kept = parsed.transactions
        assert kept["transaction_id"].to_pylist() == ["a", "b", "c"]
        assert kept["event_time"].to_pylist() == [
            dt.datetime(2026, 12, 31, 14, 5, tzinfo=dt.UTC),
            *[dt.datetime(2026, 2, 1, 5, 3, tzinfo=dt.UTC)] * 2,
        ]
        assert [row["Karte"] for row in kept["inputs"].to_pylist()] == [True, False, True]
        time = "expected a time such as 31.12.2026 14:05 (%d.%m.%Y %H:%M), got a text"
        reasons = parsed.dead_letters["errorMessage"].to_pylist()
        assert reasons[0] == "Karte: expected true or false, got a text"
        assert [reason.partition(": ")[2] for reason in reasons[1:]] == [time] * 2
    assert by_message.transactions["features"].equals(by_column.transactions["features"])
    # A dead letter has the time as RFC 3339, or as it came: sent again it is read, or refused, alike.
    again = parse_messages(MessageColumns(by_column.dead_letters["payloadBytes"].to_pylist()), rules)
    assert again.dead_letters.num_rows == 3


def test_a_spec_of_numbers_with_a_pattern_reads_it_as_well():
    content = {
        "event_time": GERMAN.to_json()["event_time"],
        "features": [{"name": "Betrag", "kind": "number"}],
    }
    rules = rules_of(FeatureSpec.from_json(content))
    parsed = parse_messages(MessageColumns([b'{"Betrag": 1.5, "Datum": "31.12.2027 14:05"}']), rules)
    assert parsed.transactions["event_time"].to_pylist() == [dt.datetime(2027, 12, 31, 14, 5, tzinfo=dt.UTC)]

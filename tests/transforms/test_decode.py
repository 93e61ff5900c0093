"""Messages that need more than the usual look: arrays, envelopes, other names of id, account and time."""

from __future__ import annotations

import json

import pytest

from common.limits import MAX_BATCH_BYTES
from features.roles import Roles
from features.ulb import FEATURES
from tests.transforms.test_message import NOW, RULES, VALUES, accepted, message, rejected
from transforms.message import MessageColumns, MessageRules, derived_id, parse_messages, parse_parts


def test_an_array_is_its_transactions_each_for_itself():
    elements = [message(transaction_id="a"), message(transaction_id=...), b"7", b"[{}]", b'{"id": 1}']
    array = b" [" + b", ".join(elements) + b"] "
    columns = MessageColumns([message(), array], [{}, {"k": "v"}], ["16", "17"], [None, NOW])
    parsed = parse_messages(columns, RULES)
    rows = parsed.transactions.to_pylist()
    assert [row["transaction_id"] for row in rows] == ["tx-1", "a", derived_id(elements[1], "17/1")]
    assert {row["event_time"].hour for row in rows} == {11}
    letters = parsed.dead_letters.to_pylist()
    assert [letter["payloadBytes"] for letter in letters] == elements[2:]
    assert [letter["errorMessage"] for letter in letters] == [
        "payload: 7, not an object or an array of objects",
        "payload: an array within an array, not an object",
        "features: absent, and as named keys incomplete: Time, V1, V2, V3, V4 and 25 more missing; the keys "
        "are id",
    ]
    assert [letter["attributes"] for letter in letters] == [
        [{"key": "k", "value": "v"}, {"key": "message_id", "value": f"17/{i}"}] for i in (2, 3, 4)
    ]
    assert parsed.ids_derived == 1


def test_a_large_array_comes_in_parts_that_are_bounded_by_rows_and_by_bytes():
    small = b"[" + b",".join([b"{}"] * 3_000) + b"]"
    parts = list(parse_parts(MessageColumns([small, message()]), RULES))
    assert [part.dead_letters.num_rows for part in parts] == [0, 1024, 1024, 952]
    assert [part.transactions.num_rows for part in parts] == [1, 0, 0, 0]
    heavy = {str(i): "x" * 1024 for i in range(100)}
    parts = list(parse_parts(MessageColumns([small], [heavy], ["1"], [NOW]), RULES))
    assert sum(part.dead_letters.num_rows for part in parts) == 3_000
    assert max(part.dead_letters.nbytes for part in parts) < 2 * MAX_BATCH_BYTES


@pytest.mark.parametrize("given", [None, [], "30 numbers", 7, {}])
def test_features_that_are_no_list_count_as_absent_beside_named_ones(given):
    named = dict(zip(FEATURES, VALUES, strict=True))
    assert accepted(json.dumps(named | {"features": given}).encode())["features"] == VALUES
    assert "29 values, not 30" in rejected(json.dumps(named | {"features": VALUES[:29]}).encode())


def test_an_envelope_is_rejected_with_its_keys():
    reason = rejected(json.dumps({"data": json.loads(message()), "schema": "v1"}).encode())
    assert reason.endswith("the keys are data, schema")
    many = rejected(json.dumps({f"key_{i:03}" + "x" * 100: i for i in range(100)}).encode())
    assert many.endswith("and 88 more")
    assert len(many) < 700


OWN = Roles("transactionId", "Card", "timestamp")


def test_id_account_and_time_come_from_the_keys_that_the_roles_name():
    rules = MessageRules(NOW, roles=OWN)
    own = {"transactionId": "t-9", "Card": "c-9", "timestamp": "2026-03-01T10:00:00Z"}
    for values in (VALUES, list(map(str, VALUES))):  # read by the strict decoder, and value by value
        row = accepted(message(**own, event_time_derived=True, features=values), rules)
        assert (row["transaction_id"], row["account_id"], row["event_time"].hour) == ("t-9", "c-9", 10)
        assert row["event_time_derived"] is False
        # As a dead letter has them, and as a replay adds a time.
        row = accepted(message(timestamp=None, event_time_derived=True, features=values), rules)
        assert (row["transaction_id"], row["account_id"], row["event_time"].hour) == ("tx-1", "acc-1", 11)
        assert row["event_time_derived"] is True
    assert rejected(message(timestamp="soon"), rules).startswith("timestamp: a text that is no time")
    assert accepted(message(**own, event_time="soon"), rules)["event_time"].hour == 10


def test_ids_and_times_that_were_made_up_are_counted_without_rejected_rows():
    payloads = [message(), message(transaction_id=...), message(event_time=None)]
    payloads += [message(transaction_id=..., event_time=..., features=[1e39] * 30)]
    parsed = parse_messages(MessageColumns(payloads), RULES)
    assert (parsed.ids_derived, parsed.times_defaulted) == (1, 1)


def test_an_attribute_message_id_of_the_publisher_stays_beside_that_of_the_message():
    parsed = parse_messages(MessageColumns([b"{"], [{"message_id": "theirs"}], ["17"]), RULES)
    (row,) = parsed.dead_letters.to_pylist()
    assert row["attributes"] == [
        {"key": "goog_message_id", "value": "17"},
        {"key": "message_id", "value": "theirs"},
    ]

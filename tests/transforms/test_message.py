"""Every rule of the table in transforms/message.py."""

import datetime as dt
import json
import math

import numpy as np
import pytest
from google.cloud.pubsub_v1.types import PubsubMessage
from hypothesis import example, given
from hypothesis import strategies as st

from features.ulb import FEATURES
from transforms.dead_letter import MAX_PAYLOAD_BYTES
from transforms.decode import MAX_LINE_BYTES
from transforms.message import MessageColumns, MessageRules, derived_id, parse_messages
from transforms.schema import ERROR_RECORDS, TRANSACTIONS

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
EARLY = "is more than --max_event_age_days=3650 before its publication"
LATE = "is more than --max_event_lead_seconds=86400 after its publication"
RULES = MessageRules(default_time=NOW)
VALUES = [float(i) for i in range(30)]


def message(**changes):
    body = {
        "transaction_id": "tx-1",
        "account_id": "acc-1",
        "event_time": "2026-03-01T11:00:00Z",
        "features": VALUES,
    }
    body.update(changes)
    return json.dumps({key: value for key, value in body.items() if value is not ...}).encode()


def with_feature(text, index=0):
    """A message whose feature at `index` is the raw JSON `text`."""
    values = [str(value) for value in VALUES]
    values[index] = text
    return b'{"transaction_id": "tx-1", "features": [' + ",".join(values).encode() + b"]}"


def accepted(payload, rules=RULES, **columns):
    parsed = parse_messages(MessageColumns([payload], **columns), rules)
    assert parsed.dead_letters.column("errorMessage").to_pylist() == []
    return parsed.transactions.to_pylist()[0]


def rejected(payload, rules=RULES, **columns):
    parsed = parse_messages(MessageColumns([payload], **columns), rules)
    assert parsed.transactions.num_rows == 0
    (row,) = parsed.dead_letters.to_pylist()
    assert row["payloadBytes"] == payload
    assert row["stage"] == "parse"
    return row["errorMessage"]


def test_a_message_becomes_a_row():
    assert accepted(message()) == {
        "transaction_id": "tx-1",
        "account_id": "acc-1",
        "event_time": dt.datetime(2026, 3, 1, 11, 0, tzinfo=dt.UTC),
        "event_time_derived": False,
        "features": VALUES,
        "message_id": None,
        "publish_time": None,
        "read_at": None,
        "pass_through": None,
        "source": None,
    }


def test_schemas_of_both_outputs():
    parsed = parse_messages(MessageColumns([message(), b""]), RULES)
    assert parsed.transactions.schema.equals(TRANSACTIONS, check_metadata=True)
    assert parsed.dead_letters.schema.equals(ERROR_RECORDS, check_metadata=True)


def test_an_empty_batch_gives_two_empty_batches():
    parsed = parse_messages(MessageColumns([]), RULES)
    assert (parsed.transactions.num_rows, parsed.dead_letters.num_rows) == (0, 0)


def test_integers_count_as_numbers():
    assert accepted(message(features=list(range(30))))["features"] == VALUES


def test_named_features():
    row = accepted(
        json.dumps(dict(zip(FEATURES, VALUES, strict=True)) | {"Class": 1, "account_id": "a"}).encode()
    )
    assert row["features"] == VALUES
    assert row["account_id"] == "a"


def test_a_list_wins_over_named_features():
    body = dict.fromkeys(FEATURES, 7.0) | {"features": VALUES}
    assert accepted(json.dumps(body).encode())["features"] == VALUES


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (with_feature("NaN", 3), "payload: not JSON"),
        (with_feature("Infinity", 3), "payload: not JSON"),
        (with_feature("1e999", 3), "features: V3 is inf, not a finite float32"),
        (with_feature("-1e999", 0), "features: Time is -inf, not a finite float32"),
        (
            with_feature("1" + "0" * 400, 29),
            "features: Amount is an integer of many digits, not a finite float32",
        ),
        (with_feature("1" + "0" * 5000, 29), "features: Amount is inf, not a finite float32"),
        (with_feature("1e39", 3), "features: V3 is 1e+39, not a finite float32"),
        (with_feature("true", 1), "features: V1 is true, not a finite float32"),
        (with_feature('"1,5"', 29), "features: Amount is a text, not a finite float32"),
        (with_feature("null", 2), "features: V2 is null, not a finite float32"),
        (with_feature("[1]", 2), "features: V2 is a list, not a finite float32"),
        (message(features=VALUES[:29]), "features: 29 values, not 30"),
        (message(features=[*VALUES, 1.0]), "features: 31 values, not 30"),
        (
            message(features="1,2,3"),
            "features: no list of 30 numbers, and as named keys incomplete: Time, V1",
        ),
        (message(features=None), "features: no list of 30 numbers, and as named keys incomplete: Time, V1"),
        (
            message(features=...),
            "features: absent, and as named keys incomplete: Time, V1, V2, V3, V4 and 25 more missing; the "
            "keys are transaction_id, account_id, event_time",
        ),
        (
            json.dumps({name: 1 for name in FEATURES if name != "V17"}).encode(),
            "features: absent, and as named keys incomplete: V17 missing; the keys are Time, V1, V2",
        ),
        (
            json.dumps(dict.fromkeys(FEATURES, 1) | {"V5": "x"}).encode(),
            "features: V5 is a text, not a finite float32",
        ),
        (b"", "payload: not JSON (Input data was truncated)"),
        (message()[:-20], "payload: not JSON (Input data was truncated)"),
        (b"hello", "payload: not JSON"),
        (b"[]", "payload: a list, not an object or an array of objects"),
        (b"null", "payload: null, not an object"),
        (b"12", "payload: 12, not an object"),
        (message() + message(), "payload: not JSON"),
        (message().decode().encode("utf-16"), "payload: not UTF-8"),
        (message(merchant="X").replace(b"X", b"\xff"), "payload: not UTF-8 (invalid start byte"),
        (message(transaction_id="\ud800"), "payload: not JSON"),
        (message(transaction_id=""), "transaction_id: 0 characters, not 1 to 256"),
        (message(transaction_id="x" * 257), "transaction_id: 257 characters, not 1 to 256"),
        (message(transaction_id=1.0), "transaction_id: 1.0, not a text or an integer"),
        (message(account_id=True), "account_id: true, not a text or an integer"),
        (message(account_id=10**300), "account_id: an integer of many digits, not a text"),
        (message(event_time_derived=1), "event_time_derived: 1, not true or false"),
        (message(event_time=12), f"event_time: 1970-01-01T00:00:12+00:00 {EARLY}"),
        (message(event_time=1e30), "event_time: 1e+30 that is no time of the calendar"),
        (message(event_time="2026-03-01"), "event_time: a text that is no time; expected RFC 3339"),
        (message(event_time="yesterday"), "event_time: a text that is no time; expected RFC 3339"),
        (message(event_time="2026-02-30T11:00:00Z"), "event_time: a text that is no time of the calendar"),
        (message(event_time="2026-03-02T12:00:01Z"), f"event_time: 2026-03-02T12:00:01+00:00 {LATE}"),
        (message(event_time="2015-01-01T00:00:00Z"), f"event_time: 2015-01-01T00:00:00+00:00 {EARLY}"),
        (message(event_time="0001-01-01T00:00:00+23:59"), f"event_time: 0001-01-01T00:00:00+23:59 {EARLY}"),
        (message(event_time="9999-12-31T23:59:59-23:59"), f"event_time: 9999-12-31T23:59:59-23:59 {LATE}"),
        # As deep as a message can be: how deep the decoder reads is up to the interpreter.
        (b'{"a":' + b"[" * 32_000 + b"]" * 32_000 + b"}", "payload: nested too deeply"),
        (b"[" * 60_000, "payload: "),
    ],
)
def test_a_bad_message_is_rejected_with_the_field(payload, reason):
    assert reason in rejected(payload)


def test_the_last_of_a_key_that_comes_twice_counts():
    twice = b'{"account_id": "first", "account_id": "second", "features": [1], ' + message(account_id=...)[1:]
    assert accepted(twice)["account_id"] == "second"
    assert accepted(twice)["features"] == VALUES


def test_ten_megabytes_are_rejected_unread_and_kept_cut():
    payload = b'{"x": "' + b"a" * 10_000_000 + b'"}'
    parsed = parse_messages(MessageColumns([payload]), RULES)
    (row,) = parsed.dead_letters.to_pylist()
    assert row["errorMessage"] == (
        "payload: 10000009 bytes, over the limit of 65536 (payload cut from 10000009 bytes)"
    )
    assert row["payloadBytes"] == payload[:MAX_PAYLOAD_BYTES]


@pytest.mark.parametrize(("max_bytes", "limit"), [(65536, 65536), (2**30, 16777215)])
def test_a_line_that_its_reader_cut_is_rejected_without_a_claim_about_its_length(max_bytes, limit):
    cut = b" " * (MAX_LINE_BYTES - len(message())) + message()  # even where what is left is a transaction
    parsed = parse_messages(MessageColumns([cut]), MessageRules(NOW, max_bytes=max_bytes))
    (row,) = parsed.dead_letters.to_pylist()
    assert row["errorMessage"] == (
        f"payload: at least 16777216 bytes, over the limit of {limit} (payload cut from 16777216 bytes)"
    )
    assert row["payloadBytes"] == cut[:MAX_PAYLOAD_BYTES]


def test_the_limit_in_bytes_is_exact():
    payload = message(merchant="m")
    assert accepted(payload, MessageRules(NOW, max_bytes=len(payload)))["transaction_id"] == "tx-1"
    assert "over the limit" in rejected(payload, MessageRules(NOW, max_bytes=len(payload) - 1))


def test_a_payload_that_is_not_text_is_kept_as_bytes_alone():
    parsed = parse_messages(MessageColumns([b"\xff\x00"]), RULES)
    (row,) = parsed.dead_letters.to_pylist()
    assert row["payloadString"] is None
    assert row["payloadBytes"] == b"\xff\x00"


def test_no_event_time_takes_the_publish_time_then_the_default():
    published = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
    payload = message(event_time=...)
    assert accepted(payload, publish_times=[published])["event_time"] == published
    assert accepted(payload, publish_times=[None])["event_time"] == NOW


@pytest.mark.parametrize(
    ("changes", "attributes", "derived"),
    [
        ({}, {}, False),
        ({}, {"ts": "1772361000000"}, False),
        ({"event_time": ...}, {"ts": "1772361000000"}, False),
        ({"event_time": ...}, {}, True),
        ({"event_time": None}, {}, True),
        ({"event_time": ..., "event_time_derived": False}, {}, True),
        ({"event_time_derived": True}, {}, True),  # as a replay sends it
        ({"event_time_derived": None}, {}, False),
        ({"event_time_derived": True}, {"ts": "1772361000000"}, False),
    ],
)
def test_a_row_says_whether_its_event_time_is_its_own(changes, attributes, derived):
    rules = MessageRules(NOW, event_time_attribute="ts")
    assert accepted(message(**changes), rules, attributes=[attributes])["event_time_derived"] is derived


def test_publish_times_with_nanoseconds_and_without_a_zone():
    """Google's client gives the first; Arrow takes the second in UTC, as this parser does."""
    whole = dt.datetime(2026, 2, 1, 1, 2, 3, 456_789)
    precise = PubsubMessage(publish_time={"seconds": 1_769_907_723, "nanos": 456_789_999}).publish_time
    assert precise.nanosecond == 456_789_999
    for published in (precise, whole):
        assert accepted(message(event_time=...), publish_times=[published])["event_time"] == whole.replace(
            tzinfo=dt.UTC
        )


def test_bounds_of_event_time_count_from_the_publish_time():
    published = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    late = message(event_time="2020-01-02T00:00:00Z")
    assert accepted(late, publish_times=[published])["transaction_id"] == "tx-1"
    later = message(event_time="2020-01-02T00:00:00.000001Z")
    assert LATE in rejected(later, publish_times=[published])


def test_limits_beyond_the_calendar_limit_nothing():
    rules = MessageRules(NOW, max_lead=dt.timedelta.max, max_age=dt.timedelta.max)
    for text in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        assert accepted(message(event_time=text), rules)["event_time"] == dt.datetime.fromisoformat(text)
    wide_behind = MessageRules(NOW, max_age=dt.timedelta.max)
    assert LATE in rejected(message(event_time="2026-03-02T12:00:01Z"), wide_behind)


@pytest.mark.parametrize("text", ["2026-03-01T10:30:00Z", "2026-03-01T11:30:00+01:00", "1772361000000"])
def test_event_time_from_an_attribute(text):
    rules = MessageRules(NOW, event_time_attribute="ts")
    row = accepted(message(), rules, attributes=[{"ts": text}])
    assert row["event_time"] == dt.datetime(2026, 3, 1, 10, 30, tzinfo=dt.UTC)
    assert accepted(message(), rules, attributes=[{}])["event_time"].hour == 11


@pytest.mark.parametrize("text", ["", "soon", "9" * 30, "²", "2026-03-01"])
def test_a_bad_event_time_attribute_is_rejected(text):
    rules = MessageRules(NOW, event_time_attribute="ts")
    assert "attribute ts: " in rejected(message(), rules, attributes=[{"ts": text}])


def test_a_missing_id_is_the_same_for_a_redelivery_and_differs_between_messages():
    payload = message(transaction_id=...)
    first = accepted(payload, message_ids=["17"])["transaction_id"]
    assert first == accepted(payload, message_ids=["17"])["transaction_id"] == derived_id(payload, "17")
    assert first != accepted(payload, message_ids=["18"])["transaction_id"]
    assert first != accepted(payload + b" ", message_ids=["17"])["transaction_id"]


def test_a_bad_message_never_costs_its_neighbours():
    payloads = [message(transaction_id=f"tx-{i}") for i in range(100)]
    payloads[10], payloads[50], payloads[99] = b"{", with_feature("1e39"), b"\xff"
    parsed = parse_messages(MessageColumns(payloads, message_ids=[str(i) for i in range(100)]), RULES)
    assert parsed.transactions.column("transaction_id").to_pylist() == [
        f"tx-{i}" for i in range(100) if i not in (10, 50, 99)
    ]
    assert parsed.dead_letters.column("payloadBytes").to_pylist() == [
        payloads[10],
        payloads[50],
        payloads[99],
    ]
    assert [row["attributes"] for row in parsed.dead_letters.to_pylist()] == [
        [{"key": "message_id", "value": str(i)}] for i in (10, 50, 99)
    ]


def test_attempts_of_a_replayed_message_are_kept():
    attributes = [{"dead_letter_attempt": "2", "x": "y"}, {"dead_letter_attempt": "many"}]
    parsed = parse_messages(MessageColumns([b"{", b"{"], attributes=attributes), RULES)
    assert parsed.dead_letters.column("attempt").to_pylist() == [2, 0]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=32) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=40,
)
KEYS = st.sampled_from(["features", "transaction_id", "event_time", "account_id", "Time", "V1", "x"])


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_are_accepted_or_rejected_never_lost(payloads):
    parsed = parse_messages(MessageColumns(payloads), RULES)
    assert parsed.transactions.num_rows + parsed.dead_letters.num_rows == len(payloads)


@given(st.dictionaries(KEYS, JSON_VALUES))
def test_any_json_object_is_accepted_or_rejected_never_lost(body):
    parsed = parse_messages(MessageColumns([json.dumps(body).encode()]), RULES)
    assert parsed.transactions.num_rows + parsed.dead_letters.num_rows == 1


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=30, max_size=30))
@example([3.4028234663852886e38] * 30)
@example([-0.0] * 30)
def test_finite_float32_features_survive_exactly(values):
    assert accepted(message(features=values))["features"] == values


@given(st.lists(st.floats() | st.integers(-(10**40), 10**40), min_size=30, max_size=30))
def test_a_row_is_accepted_exactly_when_all_features_are_finite_float32(values):
    with np.errstate(over="ignore"):
        fits = all(math.isfinite(value) and np.isfinite(np.float32(value)) for value in values)
    parsed = parse_messages(MessageColumns([message(features=values)]), RULES)
    assert parsed.transactions.num_rows == (1 if fits else 0)


@given(st.text(), st.text(min_size=1, max_size=256))
def test_texts_survive_exactly(extra, identifier):
    payload = json.dumps({"transaction_id": identifier, "extra": extra, "features": VALUES}).encode()
    parsed = parse_messages(MessageColumns([payload]), RULES)
    if parsed.transactions.num_rows:
        assert parsed.transactions.column("transaction_id").to_pylist() == [identifier]
    else:  # only a lone surrogate, which is no Unicode text, may be refused
        assert any("\ud800" <= char <= "\udfff" for char in identifier + extra)

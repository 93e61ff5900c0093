"""Payloads and attributes: literal, reproducible, and each good one accepted by the parser."""

import datetime as dt
import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ulb import FEATURES
from model.synthetic import frauds
from model.synthetic.generator import TransactionGenerator
from publisher import malformed
from publisher.messages import MessageSource, default_start_time
from publisher.ulb import ULB
from transforms.message import MessageColumns as Incoming
from transforms.message import MessageRules, parse_messages

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
RULES = MessageRules(default_time=START + dt.timedelta(days=2))


def source(**arguments):
    generator = TransactionGenerator(seed=2, fraud_share=arguments.pop("fraud_share", 0.05), cycle=5_000)
    return MessageSource(generator, **{"start_time": START, **arguments})


def column(messages, name):
    return messages.about.column(name).to_pylist()


def times(messages):
    return [json.loads(payload)["event_time"] for payload in messages.payloads]


def test_a_payload_has_exactly_these_fields():
    messages = source().take(100)
    for i, payload in enumerate(messages.payloads):
        document = json.loads(payload)
        assert list(document) == ["transaction_id", "account_id", "merchant", "event_time", "features"]
        assert document["transaction_id"] == messages.about["transaction_id"][i].as_py()
        assert document["account_id"] == messages.about["account_id"][i].as_py()
        assert document["merchant"] == messages.about["merchant"][i].as_py()
        assert document["features"] == messages.about["features"][i].as_py()
        assert len(document["features"]) == len(FEATURES)
    assert 400 < np.mean([len(payload) for payload in messages.payloads]) < 500


def test_the_kind_is_an_attribute_and_not_in_the_payload():
    messages = source().take(2_000)
    planted = [i for i, kind in enumerate(column(messages, "planted_kind")) if kind]
    assert {messages.attributes[i]["planted_kind"] for i in planted} == set(frauds.KINDS)
    assert all("planted_kind" not in messages.attributes[i] for i in range(2_000) if i not in planted)
    text = b"".join(messages.payloads)
    assert not any(name.encode() in text for name in ("planted", *frauds.KINDS))


def test_simulated_event_time_is_start_plus_elapsed():
    messages = source().take(1_000)
    for text, elapsed, attributes in zip(
        times(messages), source().generator.transactions(1_000).elapsed, messages.attributes, strict=True
    ):
        assert text.endswith("Z")
        moment = dt.datetime.fromisoformat(text)
        assert 0 <= elapsed - (moment - START).total_seconds() < 0.001
        assert attributes["event_time"] == text
    assert times(messages) == sorted(times(messages))


def test_event_time_now_is_the_clock():
    before = dt.datetime.now(dt.UTC) - dt.timedelta(milliseconds=1)
    messages = source(start_time=None).take(10)
    after = dt.datetime.now(dt.UTC)
    assert all(before <= dt.datetime.fromisoformat(time) <= after for time in times(messages))
    assert json.loads(messages.payloads[3])["event_time"] == times(messages)[3]


def test_a_start_time_in_another_zone():
    zone = dt.timezone(dt.timedelta(hours=2))
    assert source(start_time=START.astimezone(zone)).take(50).payloads == source().take(50).payloads


def test_the_default_start_ends_a_cycle_today():
    now = dt.datetime(2026, 3, 10, 15, 30, tzinfo=dt.UTC)
    assert default_start_time(now) == dt.datetime(2026, 3, 8, tzinfo=dt.UTC)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 1_500), min_size=1, max_size=5))
def test_portions_do_not_matter(sizes):
    whole = source(malformed_share=0.1).take(sum(sizes))
    parted = source(malformed_share=0.1)
    parts = [parted.take(size) for size in sizes]
    assert whole.payloads == [payload for part in parts for payload in part.payloads]
    assert whole.attributes == [row for part in parts for row in part.attributes]


def test_share_and_kinds_of_malformed_messages():
    messages = source(malformed_share=0.2).take(20_000)
    kinds = [kind for kind in column(messages, "malformed_kind") if kind]
    assert len(kinds) / 20_000 == pytest.approx(0.2, abs=0.015)
    names, counts = np.unique(kinds, return_counts=True)
    assert set(names) == set(ULB.malformed)
    np.testing.assert_allclose(counts, len(kinds) / len(names), rtol=0.35)
    for kind, planted, attributes in zip(
        column(messages, "malformed_kind"), column(messages, "planted_kind"), messages.attributes, strict=True
    ):
        assert attributes.get("malformed_kind") == kind
        assert attributes.get("planted_kind") == planted
        assert not (kind and planted)


def test_a_message_is_spoiled_without_touching_its_neighbours():
    good, mixed = source().take(3_000), source(malformed_share=0.1).take(3_000)
    for i in range(3_000):
        if mixed.about["malformed_kind"][i].as_py() is None:
            assert mixed.payloads[i] == good.payloads[i]


def test_the_parser_takes_the_good_ones_and_rejects_the_others():
    messages = source(malformed_share=0.3).take(5_000)
    parsed = parse_messages(Incoming(messages.payloads, messages.attributes), RULES)
    good = messages.well_formed()
    assert parsed.transactions.column("transaction_id").to_pylist() == column(good, "transaction_id")
    assert parsed.transactions.column("account_id").to_pylist() == column(good, "account_id")
    np.testing.assert_array_equal(
        parsed.transactions.column("features").flatten().to_numpy().reshape(-1, 30),
        good.about["features"].flatten().to_numpy().reshape(-1, 30).astype(np.float32),
    )
    rejected = parsed.dead_letters.column("payloadBytes").to_pylist()
    spoiled = [
        p for p, kind in zip(messages.payloads, column(messages, "malformed_kind"), strict=True) if kind
    ]
    assert rejected == spoiled


@pytest.mark.parametrize("name", ULB.malformed)
def test_every_malformed_kind_is_rejected_and_fits_on_a_line(name):
    messages = source(malformed_share=1.0, malformed_kinds=[name]).take(60)
    parsed = parse_messages(Incoming(messages.payloads, messages.attributes), RULES)
    assert parsed.transactions.num_rows == 0
    assert parsed.dead_letters.num_rows == 60
    # By the rule that the kind breaks, not by another.
    reasons = parsed.dead_letters.column("errorMessage").to_pylist()
    assert all(any(word in reason for word in REASONS[name]) for reason in reasons), reasons[:3]
    for payload, identifier, attributes in zip(
        messages.payloads, column(messages, "transaction_id"), messages.attributes, strict=True
    ):
        assert not set(b"\r\n") & set(payload)
        assert identifier == readable_id(payload)
        assert all(len(value) <= 1024 for value in attributes.values())


REASONS = {
    "not_json": ["not JSON"],
    "truncated_json": ["not JSON"],
    "wrong_utf8": ["not UTF-8"],
    "empty": ["not JSON"],
    "wrong_type_root": ["not an object or an array of objects"],
    "no_features": ["features: absent"],
    "missing_feature": ["29 values, not 30"],
    "extra_feature": ["31 values, not 30"],
    "nan_literal": ["not JSON"],
    "infinite": ["finite float32", "out of range"],
    "boolean_feature": ["is true, not", "is false, not"],
    "string_number": ["is a text, not"],
    "null_feature": ["is null, not"],
    "nested_bomb": ["is a list, not", "nested too deeply"],
    "oversize": ["over the limit of 65536"],
    "wrong_type_id": ["transaction_id: "],
    "bad_event_time": ["event_time: a text that is no time"],
    "future_event_time": ["event_time: 2999-12-31"],
    "ancient_event_time": ["event_time: 1999-12-31"],
}


def readable_id(payload):
    """The id of a payload as a forgiving reader sees it."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    identifier = document.get("transaction_id") if isinstance(document, dict) else None
    return identifier if isinstance(identifier, str) else None


def test_a_truncated_message_is_never_whole():
    document = orjson.loads(source().take(1).payloads[0])
    make = malformed.KINDS["truncated_json"].make
    lengths = {len(make(document, np.random.default_rng(seed))) for seed in range(2_000)}
    assert min(lengths) >= 1
    assert max(lengths) < len(orjson.dumps(document))


def test_event_time_attributes_of_malformed_messages():
    messages = source(malformed_share=1.0).take(1_000)
    kinds = [malformed.KINDS[name] for name in column(messages, "malformed_kind")]
    for kind, moment, attributes in zip(
        kinds, column(messages, "event_time"), messages.attributes, strict=True
    ):
        text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert attributes.get("event_time") == (text if kind.has_time else None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"malformed_kinds": ["rot13"]}, "malformed_kinds: no kind rot13; there are not_json"),
        ({"malformed_share": 1.5}, "malformed_share: 1.5"),
        ({"malformed_share": 0.1, "malformed_kinds": []}, "malformed_kinds: name at least one"),
        ({"start_time": dt.datetime(2026, 1, 1)}, "has no time zone"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        source(**arguments)

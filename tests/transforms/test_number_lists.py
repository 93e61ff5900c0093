"""Lists of numbers that are read at once: the same values and reasons as message by message."""

from __future__ import annotations

import datetime as dt
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.roles import Roles
from features.ulb import FEATURES
from tests.transforms.test_message import NOW, VALUES, message
from transforms.message import MessageColumns, MessageRules, Parsed, parse_messages
from transforms.number_lists import AT_ONCE, LEAST_MESSAGES, read_lists

WIDTH = len(FEATURES)
UNUSUAL = [
    message(features=VALUES[:-1]),
    message(features=[*VALUES, 1.0]),
    message(features=[*VALUES[:-1], None]),
    message(features=[*VALUES[:-1], "2.5"]),
    message(features=[*VALUES[:-1], "x"]),
    message(features=[*VALUES[:-2], [1.0, 2.0]]),
    message(features=[*VALUES[:-1], [1.0]]),
    message(features=[*VALUES[:-1], {"a": 1.0}]),
    message(features=[*VALUES[:-1], True]),
    message(features=[*VALUES[:-1], 1e39]),
    message(features=[*VALUES[:-1], 10**30]),
    message(features=[]),
    message(features=7),
    message(features=None),
    message(features=..., **dict(zip(FEATURES, VALUES, strict=True))),
    message(features=[*VALUES[:-1], None], event_time="1900-01-01T00:00:00Z"),
    message(features=[*VALUES[:-1], 1e39], event_time="1900-01-01T00:00:00Z"),
    message(event_time="1900-01-01T00:00:00Z"),
    message(event_time=1_772_362_800),
    message(transaction_id=7),
    message(transaction_id=..., merchant="Café"),
    message(transaction_id="x" * 300, features=[1.0]),
    message().replace(b"1", b"01", 1),
    message()[:-3],
    message()[:-1] + b', "features": [1]}',
    b'{"features": [1], ' + message()[1:],
    b'{"features": "x", ' + message()[1:],
    message(other={"features": [1.0] * WIDTH}, features=...),
    b"[" + message() + b"," + message(features=[1.0]) + b"]",
    message(merchant="x" * 70_000),
    b"\xff" + message(),
]
"""Messages of which some are accepted, and some rejected, each for a reason of its own."""


def one_by_one(payloads: list[bytes], rules: MessageRules) -> Parsed:
    """Parses each message for itself, which reads its list with the message."""
    parts = [parse_messages(MessageColumns([payload]), rules) for payload in payloads]
    return Parsed(
        pa.concat_batches([part.transactions for part in parts]),
        pa.concat_batches([part.dead_letters for part in parts]),
        sum(part.ids_derived for part in parts),
        sum(part.times_defaulted for part in parts),
    )


def assert_same(payloads: list[bytes], rules: MessageRules) -> None:
    together, apart = parse_messages(MessageColumns(payloads), rules), one_by_one(payloads, rules)
    key = "transaction_id"
    assert sorted(together.transactions[key].to_pylist()) == sorted(apart.transactions[key].to_pylist())
    for name in ("transactions", "dead_letters"):
        rows, expected = (sorted(map(repr, without_time(getattr(each, name)))) for each in (together, apart))
        assert rows == expected
    assert together[2:] == apart[2:]


def without_time(batch: pa.RecordBatch) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "timestamp"} for row in batch.to_pylist()]


@pytest.mark.parametrize("roles", [Roles(), Roles("id", "card", "at")])
def test_an_unusual_message_gets_what_it_gets_alone_and_so_do_its_neighbours(roles):
    rules = MessageRules(NOW, roles=roles)
    usual = [message(transaction_id=f"t-{i}", features=[i + 0.1, *VALUES[1:]]) for i in range(3 * AT_ONCE)]
    for unusual in UNUSUAL:
        assert_same([*usual[:100], unusual, *usual[100:]], rules)
    assert_same([*usual, *UNUSUAL], rules)
    assert_same(UNUSUAL * 3, rules)


def test_a_list_is_read_at_once_only_where_all_are_of_so_many_numbers():
    assert read_lists([b"[1,2]", b"[ -0.0 , 1e5 ]"], 2).tolist() == [[1.0, 2.0], [-0.0, 1e5]]
    for text in (
        b"[1]",
        b"[1,2,3]",
        b"[[1,2]]",
        b"[[1],2]",
        b"[1,[2]]",
        b"[1,null]",
        b'["1",2]',
        b"[]",
        b"7",
    ):
        assert read_lists([b"[1,2]", text], 2) is None
        assert read_lists([text], 2) is None
    assert read_lists([b"[1,2,3]", b"[4]"], 2) is None
    assert read_lists([b"[1,[2]", b"3],4]"], 2) is None


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=20).map(lambda value: f"{value:f}"),
    st.sampled_from(["-0", "-0.0", "1E5", "1e+5", "4.9406564584124654e-324", "1e-400", "0." + "1" * 400]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_numbers_are_the_same_to_the_bit(rows):
    head = ",".join(map(repr, VALUES[3:]))
    payloads = [
        b'{"transaction_id": "%d", "event_time": "2026-03-01T11:00:00Z", "features": [%s, %s]}'
        % (i, ",".join(rows[i % len(rows)]).encode(), head.encode())
        for i in range(LEAST_MESSAGES)
    ]
    together, apart = (parse(payloads, MessageRules(NOW)) for parse in (whole, one_by_one))
    assert bits(together.transactions) == bits(apart.transactions)
    assert sorted(map(repr, without_time(together.dead_letters))) == sorted(
        map(repr, without_time(apart.dead_letters))
    )


def whole(payloads: list[bytes], rules: MessageRules) -> Parsed:
    return parse_messages(MessageColumns(payloads), rules)


def bits(batch: pa.RecordBatch) -> bytes:
    return batch["features"].flatten().to_numpy().tobytes()


def test_times_have_their_bounds_whatever_the_publish_time():
    moments = [NOW + dt.timedelta(hours=hours) for hours in (-30, -24, -1, 0, 1, 24, 30)] * 6
    published = [NOW + dt.timedelta(hours=i % 3) if i % 5 else None for i in range(len(moments))]
    rules = MessageRules(NOW, max_age=dt.timedelta(hours=24), max_lead=dt.timedelta(hours=24))
    payloads = [
        json.dumps({"transaction_id": str(i), "event_time": moment.isoformat(), "features": VALUES}).encode()
        for i, moment in enumerate(moments)
    ]
    parsed = parse_messages(MessageColumns(payloads, None, None, published), rules)
    inside = [
        str(i)
        for i, (moment, at) in enumerate(zip(moments, published, strict=True))
        if abs(moment - (at or NOW)) <= dt.timedelta(hours=24)
    ]
    assert parsed.transactions["transaction_id"].to_pylist() == inside
    assert parsed.dead_letters.num_rows == len(moments) - len(inside)

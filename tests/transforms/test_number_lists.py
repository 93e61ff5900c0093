"""Lists of numbers that are read at once: the same values and reasons as message by message."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.arrow import EVENT_TIME
from features.roles import Roles
from features.ulb import FEATURES
from tests.transforms.test_message import NOW, VALUES, message
from transforms.decode import decoder
from transforms.message import MessageColumns, MessageRules, Parsed, parse_messages
from transforms.number_lists import (
    AT_ONCE,
    BETWEEN,
    LEAST_MESSAGES,
    LEAST_TEXTS,
    block_decoder,
    read_lists,
    read_times,
)

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
    message(merchant="x").replace(b'"x"', b'"\xff"'),
    message(merchant="x", tags=[]).replace(b'"x"', b'"\xff"'),
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


def read_all(lists: list[bytes], width: int) -> Any:
    return read_lists(BETWEEN.join(lists), len(lists), width)


def test_lists_are_read_at_once_only_where_all_are_of_so_many_numbers():
    assert read_all([b"1,2", b" -0.0 , 1e5 "], 2).tolist() == [[1.0, 2.0], [-0.0, 1e5]]
    assert read_all([b"7", b"8"], 1).tolist() == [[7.0], [8.0]]
    for text in (
        b"1",
        b"1,2,3",
        b"1,null",
        b'"1",2',
        b'1,{"a":2}',
        b"1,2,",
        b",1,2",
        b"1,02",
        b"",
        b" ",
    ):
        assert read_all([b"1,2", text], 2) is None
        assert read_all([text], 2) is None
    assert read_all([b"1,2,3", b"4"], 2) is None
    # The bound behind each list is a number as well.
    assert read_all([b"1e99,2", b"1,2"], 2) is None
    assert read_all([b"1", b"1e99,2,3"], 2) is None
    assert read_all([b"1,2,1e99", b"4"], 2) is None
    assert read_all([b"1e99"], 1) is None
    for _ in range(2):  # the parser is used again after an error
        assert read_all([b"1,2}"], 2) is None
        first, second = (read_all([b"%d,2" % n], 2) for n in (3, 4))
        assert (first.tolist(), second.tolist()) == ([[3.0, 2.0]], [[4.0, 2.0]])


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


TOKENS = [
    b"{",
    b'"transaction_id"',
    b":",
    b'"t"',
    b",",
    b'"features"',
    b":",
    b"[",
    b"1",
    b",",
    b"2.5",
    b"]",
    b"}",
]
"""A message."""
PIECES = [*TOKENS, b'"x"', b"[]", b"3", b"1e99", b"null", b" ", b"\n", b'"', b"\\", "é".encode()]
PIECES += [b'"features":[],', b'"features":[3,4],', b',"features":[3,4]', b'"x":[5,6],', b',"x":[5,6]']


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    tokens = list(TOKENS)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(tokens) - 1))
        tokens[at : at + draw(st.integers(0, 2))] = draw(st.lists(st.sampled_from(PIECES), max_size=2))
        tokens = tokens or [b""]
    return b"".join(tokens)


@settings(max_examples=600, deadline=None)
@given(st.lists(edited(), min_size=1, max_size=3))
@example([b'{"x":[1,2.5],"features":[]}'])
@example([b'{"features":[],"x":[1,2.5]}'])
@example([b'{"features":[1,2.5],"features":[]}'])
@example([b'{"features":[1', b"2.5]}"])
@example([b'{"features":[1,2.5,1e99,3]}', b'{"features":[4]}'])
@example([b'{"features":[1,2.5],"x":"[]"}', b'{"features":[3,4],"x":[[[]]]}'])
def test_messages_decoded_together_are_those_that_decode_alone(payloads):
    block = block_decoder(Roles(), 65_536, 2)(payloads)
    alone = decoder(("a", "b"), Roles(), 65_536)
    if block:
        rows = [alone(payload) for payload in payloads]
        assert [row.transaction_id for row in block.rows] == [row.transaction_id for row in rows]
        assert block.numbers.tolist() == [list(row.features) for row in rows]


def test_usual_messages_are_decoded_together_also_with_other_brackets():
    decode = block_decoder(Roles(), 65_536, 2)
    usual = b'{"features":[1,2.5]}'
    for payload in (
        usual,
        b' {"features": [ 1 , 2.5 ] , "x": {"y": 7}}\r',
        b'{"tags":["a",[]],"features" : [1, 2.5] }',
        b'{"features":[1,2.5],"tags":["a"]}',
        b'{"merchant":"[x","features":[1,2.5]}',
        b'{"merchant":"]","features":[1,2.5]}',
        b'{"features":[1,2.5],"merchant":"]"}',
    ):
        block = decode([usual, payload])
        assert block is not None, payload
        assert block.numbers.tolist() == [[1, 2.5]] * 2
    for features in (b"[[1,2.5]]", b"[1],[2.5]", b"[1,[2.5]]", b"[1,2.5", b"1,2.5]", b"7", b'"[1,2.5]"'):
        assert decode([usual, b'{"features":%b}' % features]) is None
        assert decode([b'{"features":%b,"tags":[]}' % features]) is None


def test_rows_keep_the_order_of_the_messages():
    payloads = [message(transaction_id=f"t-{i}") for i in range(5 * AT_ONCE)]
    for i in (3, AT_ONCE + 40, AT_ONCE + 41, 4 * AT_ONCE):
        payloads[i] = message(transaction_id=f"t-{i}", merchant="Café", features=[str(i), *VALUES[1:]])
    payloads[7] = b"not JSON"
    parsed = whole(payloads, MessageRules(NOW))
    expected = [f"t-{i}" for i in range(5 * AT_ONCE) if i != 7]
    assert parsed.transactions["transaction_id"].to_pylist() == expected
    assert parsed.transactions["features"][3].as_py()[0] == 3.0


TWO, ZONES = (
    st.integers(0, 99).map("{:02}".format),
    ["Z", "z", "", "+01:00", "-0130", "+01", "+24:00", " UTC"],
)
TIMES = st.one_of(
    st.datetimes(timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-5))])).map(
        dt.datetime.isoformat
    ),
    st.builds(
        "{}-{}-{}{}{}:{}{}{}{}".format,
        *(st.sampled_from(["2026", "0000", "0001", "9999", "1969", "026"]), TWO, TWO),
        st.sampled_from(["T", " ", "t"]),
        *(TWO, TWO, TWO.map(":{}".format) | st.just("")),
        st.sampled_from(["", ".5", ".123456", ".1234567", ".123456789", "."]),
        st.sampled_from(ZONES),
    ),
    st.builds(
        "2026-02-28{}09:18{}{}{}".format,
        st.sampled_from(["T", " ", "t"]),
        st.sampled_from([":26", ":60", ""]),
        st.sampled_from(["", ".5", ".123456", ".1234567", "."]),
        st.sampled_from(ZONES),
    ),
    st.sampled_from(["1795598306", "1795598306000", " 2026-11-25T09:18:26Z", "yesterday", "", "2026-11-25"]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=3))
def test_times_that_are_read_at_once_are_those_of_the_rules(texts):
    column = read_times(texts)
    if column is not None:
        decode = decoder(tuple(FEATURES), Roles(), 65_536)
        moments = [decode(message(event_time=text)).event_time for text in texts]
        assert column.equals(pa.array(moments, EVENT_TIME))


def test_usual_times_are_read_at_once():
    texts = ["2026-03-01T11:00:00Z", "2026-03-01T11:00:00.888Z", "2026-03-01T11:00:00.000001+01:00"]
    assert read_times(texts) is not None
    for other in ("2026-02-29T11:00:00Z", "2026-03-01T11:00+01:00", "0000-03-01T11:00:00Z", None):
        assert read_times([*texts, other]) is None
    moments = [
        NOW,
        NOW.astimezone(dt.timezone(dt.timedelta(hours=-5, minutes=30))),
        NOW.replace(microsecond=7),
    ]
    assert read_times([*texts, *moments])[3:].equals(pa.array(moments, EVENT_TIME))
    assert read_times([*texts, NOW.replace(tzinfo=None)]) is None
    assert read_times([texts[0], *moments]) is None
    assert read_times([]) is None


@pytest.mark.parametrize("roles", [Roles(), Roles("id", "card", "at")])
def test_an_unusual_time_gets_what_it_gets_alone_and_so_do_its_neighbours(roles):
    usual = [message(transaction_id=f"t-{i}") for i in range(LEAST_TEXTS)]
    times = [
        "2026-03-01 11:00:00+0100",
        "2026-03-01t11:00:00z",
        "2026-03-01T11:00:00.123456789Z",
        1_772_362_800,
    ]
    times += [
        "1900-01-01 00:00:00+01",
        "1900-01-01T00:00:00+01:00",
        "yesterday",
        "",
        None,
        True,
        "2026-02-30",
    ]
    unusual = [message(transaction_id=f"u-{i}", event_time=time) for i, time in enumerate(times)]
    for rules in (MessageRules(NOW, roles=roles), MessageRules(NOW, roles=roles, event_time_attribute="at")):
        for each in unusual:
            assert_same([*usual, each], rules)
        assert_same([*usual, *unusual], rules)


def test_times_are_texts_by_the_messages_and_not_by_the_rows_that_are_left():
    payloads = [message(transaction_id=f"t-{i}") for i in range(LEAST_TEXTS)]
    payloads[7] = b"not JSON"
    assert_same(payloads, MessageRules(NOW))


def test_an_attribute_goes_before_the_times_of_many_messages():
    payloads = [message(transaction_id=f"t-{i}") for i in range(LEAST_TEXTS)]
    payloads[-1] = message(event_time="yesterday")
    attributes = [{"at": "2026-03-01T10:00:00Z"} if i % 2 == 0 else {} for i in range(len(payloads))]
    rules = MessageRules(NOW, event_time_attribute="at")
    parsed = parse_messages(MessageColumns(payloads, attributes), rules)
    expected = read_times(["2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"]).to_pylist()
    assert parsed.transactions["event_time"].to_pylist()[:2] == expected
    alone = one_by_one(payloads[-1:], rules).dead_letters["errorMessage"]
    assert parsed.dead_letters["errorMessage"].equals(alone)


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

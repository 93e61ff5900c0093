"""Dead letters as messages: which can be sent again, and how; the statement that reads them."""

import datetime as dt

import orjson
import pytest

from model.synthetic.generator import TransactionGenerator
from operations.dead_letters import Letter, message, reason_to_keep, statement, with_event_time
from publisher.messages import MessageSource
from transforms.dead_letter import MAX_PAYLOAD_BYTES, dead_letters
from transforms.message import MessageColumns, MessageRules, parse_messages

MOMENT = dt.datetime(2026, 3, 8, 12, 0, 0, 250_000, tzinfo=dt.UTC)


def letter(**changes):
    values = {
        "key": "k",
        "timestamp": MOMENT,
        "stage": "parse",
        "reason": "payload: not JSON",
        "attempt": 0,
        "payload": b"{",
        "attributes": {},
    }
    return Letter(**(values | changes))


def transactions(count):
    """MessageColumns of the generator, as dicts."""
    source = MessageSource(TransactionGenerator(seed=3, cycle=1_000))
    return [orjson.loads(payload) for payload in source.take(count).payloads]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"stage": "score", "attempt": 2}, None),
        ({"stage": "sink"}, "stage sink: the payload is the row"),
        ({"payload": None}, "no payload"),
        ({"attempt": 3}, "attempts used up: --max_attempts=3"),
        ({"attributes": {str(i): "x" for i in range(100)}}, "attributes: 100 or more"),
    ],
)
def test_what_cannot_be_sent_has_a_reason(changes, why):
    reason = reason_to_keep(letter(**changes), 3)
    assert reason is None if why is None else reason.startswith(why)


def test_a_payload_that_was_cut_is_not_sent():
    (row,) = dead_letters([b" " * (MAX_PAYLOAD_BYTES + 1)], ["payload: too long"], "parse").to_pylist()
    cut = letter(reason=row["errorMessage"], payload=row["payloadBytes"])
    assert reason_to_keep(cut, 3).startswith("payload cut")


def test_a_message_counts_its_attempts_and_keeps_its_first_id():
    payload, first = message(
        letter(attributes={"planted_kind": "x", "message_id": "17", "googclient_a": "b"})
    )
    assert payload == b"{"
    assert first == {"planted_kind": "x", "original_message_id": "17", "dead_letter_attempt": "1"}
    _, second = message(letter(attempt=1, attributes=first | {"message_id": "42"}))
    assert second == {"planted_kind": "x", "original_message_id": "17", "dead_letter_attempt": "2"}


def test_a_message_without_event_time_keeps_the_time_of_its_rejection():
    (row,) = transactions(1)
    del row["event_time"]
    rules = MessageRules()
    for payload in (orjson.dumps(row), orjson.dumps(row | {"event_time": None}) + b" \r\n"):
        parsed = parse_messages(MessageColumns([with_event_time(payload, MOMENT)]), rules)
        assert parsed.transactions.column("event_time").to_pylist() == [MOMENT]
        assert parsed.transactions.column("event_time_derived").to_pylist() == [True]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"{}",
        b"[1]",
        b"\xff",
        b'"text"',
        b'{"event_time":"2026-01-01T00:00:00Z"}',
        b'{"event_time":7}',
        b'{"event_time_derived":7}',
    ],
)
def test_every_other_payload_stays_as_it_is(payload):
    assert with_event_time(payload, MOMENT) == payload


def test_the_statement_takes_a_part_or_a_pattern():
    part, parameters = statement("my-project.anomaly", MOMENT, "parse", "over the limit", noted=True)
    assert {each.name: each.value for each in parameters} == {
        "since": MOMENT,
        "stage": "parse",
        "reason": "over the limit",
    }
    assert "STRPOS(errorMessage, @reason) > 0" in part
    assert "stage = @stage" in part
    assert "letter NOT IN (SELECT letter FROM `my-project.anomaly.replayed_records`)" in part
    pattern, _ = statement("my-project.anomaly", MOMENT, None, "payload%", noted=False)
    assert "errorMessage LIKE @reason" in pattern
    assert "replayed_records" not in pattern


def test_an_attribute_message_id_of_the_publisher_is_sent_again():
    attributes = {"message_id": "theirs", "goog_message_id": "17"}
    _, sent = message(letter(attributes=attributes))
    assert sent == {"message_id": "theirs", "original_message_id": "17", "dead_letter_attempt": "1"}


@pytest.mark.parametrize("own", [97, 98, 99, 100])
def test_a_message_may_have_as_many_attributes_as_pubsub_takes(own):
    full = letter(attributes={str(i): "x" for i in range(own)} | {"message_id": "17", "googclient_a": "b"})
    assert (reason_to_keep(full, 3) is None) == (own < 100)
    _, sent = message(full)
    assert ("original_message_id" in sent) == (own < 99)
    again = letter(
        attributes={str(i): "x" for i in range(99)} | {"dead_letter_attempt": "1", "message_id": "4"}
    )
    assert reason_to_keep(again, 3) is None
    assert len(message(again)[1]) == 100

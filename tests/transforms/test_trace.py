"""Fields that pass through from a message or a column to scores, alerts, messages and dead letters."""

from __future__ import annotations

import datetime as dt
import json

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.testing.util import assert_that, is_not_empty

from common.options import OptionError
from features.declaration import FeatureSpec
from features.default import ULB
from features.ulb import FEATURES
from model.manifest import Manifest
from model.thresholds import ScoreQuantiles
from pipelines.options import MessageOptions
from tests.transforms.test_scores import RULES, outputs
from transforms.alert import alerts
from transforms.coder import RecordBatchCoder
from transforms.columnar import source_columns, to_transactions
from transforms.dead_letter import ATTEMPT_ATTRIBUTE
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.parse import Parse
from transforms.schema import TRANSACTIONS
from transforms.scores import assemble_scores, transaction_messages, unscored
from transforms.topics import row_messages

TIME = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
RULES_OF_A_LOAD_TEST = MessageRules(TIME, pass_through=("load_id", "card type"), trace_messages=True)


def message(more: bytes = b"", features: int = 30) -> bytes:
    return b'{"transaction_id":"t","features":%s%s}' % (json.dumps([1] * features).encode(), more)


def parsed(*payloads: bytes, rules: MessageRules = RULES_OF_A_LOAD_TEST) -> pa.RecordBatch:
    ids = [f"m-{i}" for i in range(len(payloads))]
    times = [TIME + dt.timedelta(seconds=i) for i in range(len(payloads))]
    return parse_messages(MessageColumns(payloads, None, ids, times), rules).transactions


@pytest.mark.parametrize(
    ("more", "passed"),
    [
        (b"", None),
        (b',"load_id":7', '{"load_id":7}'),
        (b',"load_id":null', '{"load_id":null}'),
        (b',"card type":"\xc3\xa9\\u00e9","load_id":1.50e3', '{"load_id":1.50e3,"card type":"é\\u00e9"}'),
        (b',"load_id":{"load_id":[1]},"other":2', '{"load_id":{"load_id":[1]}}'),
        (b',"load_id":12345678901234567890123', '{"load_id":12345678901234567890123}'),
        (b',"load_id":1,"load_id":2', '{"load_id":2}'),
    ],
)
def test_values_of_a_message_pass_as_they_came(more, passed):
    assert parsed(message(more)).column("pass_through").to_pylist() == [passed]


def test_nothing_is_traced_unless_the_rules_say_so():
    batch = parsed(message(b',"load_id":7'), rules=MessageRules(TIME))
    assert batch.select(["message_id", "publish_time", "pass_through"]).to_pylist() == [
        {"message_id": None, "publish_time": None, "pass_through": None}
    ]


def test_rows_keep_the_trace_of_their_own_message_where_others_are_rejected():
    not_finite = message(b',"load_id":1').replace(b"[1,", b"[1e39,")
    batch = parsed(message(b',"load_id":0'), not_finite, b"{}", message(b',"load_id":3'))
    assert batch.column("message_id").to_pylist() == ["m-0", "m-3"]
    assert batch.column("publish_time").to_pylist() == [TIME, TIME + dt.timedelta(seconds=3)]
    assert batch.column("pass_through").to_pylist() == ['{"load_id":0}', '{"load_id":3}']


def test_a_message_as_deep_as_the_decoder_takes_costs_no_neighbour():
    deep = b"[" * 100_000 + b"]" * 100_000
    rules = MessageRules(TIME, max_bytes=10**6, pass_through=("load_id",))
    for depth in (900, 990, 1_000, 1_010, 5_000):
        value = b"[" * depth + b"]" * depth
        assert parsed(message(b',"load_id":%s' % value), message(), rules=rules).num_rows >= 1
    assert parsed(message(b',"load_id":%s' % deep), message(), rules=rules).num_rows == 1


def test_a_trace_travels_into_scores_alerts_and_their_messages():
    batch = parsed(message(b',"load_id":{"a":1}'), message())
    scores = assemble_scores(batch, outputs([25.0, 30.0]), RULES, 1).scores
    alerted = alerts(scores)
    for rows in (scores, alerted):
        assert rows.column("message_id").to_pylist() == ["m-0", "m-1"]
        first, second = (json.loads(sent.data) for sent in row_messages(rows))
        assert (first["message_id"], first["pass_through"]) == ("m-0", {"load_id": {"a": 1}})
        assert first["publish_time"] == "2026-03-01T12:00:00+00:00"
        assert "pass_through" not in second
        assert not {"read_at", "stored_at"} & {*second}


@pytest.mark.parametrize(
    ("sent", "is_traced", "attributes"),
    [
        ({"source": "till"}, False, {"message_id": "17"}),
        ({"source": "till"}, True, {"source": "till", "message_id": "17"}),
        ({"message_id": "theirs"}, True, {"message_id": "theirs", "goog_message_id": "17"}),
        ({ATTEMPT_ATTRIBUTE: "2", "a": "b"}, False, {ATTEMPT_ATTRIBUTE: "2", "a": "b", "message_id": "17"}),
        ({}, True, {"message_id": "17"}),
    ],
)
def test_a_letter_of_scoring_has_the_id_of_its_message_and_the_attributes(sent, is_traced, attributes):
    rules = MessageRules(TIME, trace_messages=is_traced)
    columns = MessageColumns([b"{", message(b"")], [{"other": "x"}, sent], ["16", "17"], [TIME, TIME])
    batch = parse_messages(columns, rules).transactions
    coder = RecordBatchCoder()
    (letter,) = unscored(coder.decode(coder.encode(batch)), ["no score"]).to_pylist()
    assert {each["key"]: each["value"] for each in letter["attributes"]} == attributes
    assert letter["attempt"] == int(sent.get(ATTEMPT_ATTRIBUTE, 0))
    assert "source" not in json.loads(letter["payloadBytes"])


def test_a_row_that_cannot_be_scored_is_a_message_with_its_fields_again():
    more = b',"load_id":1e400,"card type":1'
    letter = unscored(parsed(message(more)), ["no score"])
    (payload,) = letter.column("payloadBytes").to_pylist()
    assert letter.column("attributes").to_pylist() == [[{"key": "message_id", "value": "m-0"}]]
    assert set(json.loads(payload)) == {
        *("transaction_id", "event_time", "event_time_derived", *FEATURES, "load_id", "card type")
    }
    assert parsed(payload).column("pass_through").equals(parsed(message(more)).column("pass_through"))


@pytest.mark.parametrize("names", [("features",), ("features", "load_id")])
def test_a_list_of_features_that_passed_through_is_not_in_a_dead_letter_beside_the_named_ones(names):
    rules = MessageRules(TIME, pass_through=names)
    batch = parsed(message(b',"load_id":1.50'), rules=rules)
    assert json.loads(batch["pass_through"][0].as_py())["features"] == [1] * 30
    (again,) = transaction_messages(batch)
    assert "features" not in json.loads(again)
    assert (b"1.50" in again) == ("load_id" in names)
    assert {name: json.loads(again)[name] for name in FEATURES} == dict.fromkeys(FEATURES, 1)
    columns = pa.record_batch({"features": [[1.0] * 30], "event_time": ["never"], "load_id": [1.5]})
    (letter,) = to_transactions(columns, TIME, rules).dead_letters.to_pylist()
    payload = json.loads(letter["payloadString"])
    assert "features" not in payload
    assert payload["V1"] == 1


def test_a_row_wins_over_a_field_of_its_name():
    rules = MessageRules(TIME, pass_through=("features", "transaction_id"))
    batch = parsed(message(), rules=rules)
    assert json.loads(batch.column("pass_through")[0].as_py()) == {
        "features": [1] * 30,
        "transaction_id": "t",
    }
    assert parsed(*transaction_messages(batch), rules=rules).column("transaction_id").to_pylist() == ["t"]


def test_columns_of_a_table_pass_as_json_also_into_dead_letters():
    columns = {name: [1.0, np.nan] for name in FEATURES} | {
        "load_id": pa.array([dt.datetime(2026, 3, 1), None]),
        "ignored": [1, 2],
    }
    rules = MessageRules(pass_through=("load_id", "absent"))
    parts = to_transactions(pa.RecordBatch.from_pydict(columns), TIME, rules)
    assert parts.transactions.column("pass_through").to_pylist() == ['{"load_id":"2026-03-01T00:00:00"}']
    (letter,) = parts.dead_letters.column("payloadBytes").to_pylist()
    assert json.loads(letter)["load_id"] is None
    assert "ignored" not in json.loads(letter)


def test_the_parser_notes_when_it_reads():
    with beam.Pipeline("FnApiRunner") as p:
        sent = PubsubMessage(message(), {}, "m-0", TIME)
        rows = p | beam.Create([[sent]]) | Parse(RULES_OF_A_LOAD_TEST)
        times = rows.transactions | beam.FlatMap(lambda batch: batch.column("read_at").to_pylist())
        recent = times | beam.Filter(lambda time: abs(dt.datetime.now(dt.UTC) - time).total_seconds() < 600)
        assert_that(recent, is_not_empty())


def test_an_empty_batch_has_the_columns():
    assert parsed(rules=RULES_OF_A_LOAD_TEST).schema.equals(TRANSACTIONS)


@pytest.mark.parametrize("text", [",", "a,", "a,a", ",a"])
def test_names_that_are_none_are_refused(text):
    with pytest.raises(OptionError, match="--pass_through: expected different names with a comma between"):
        MessageOptions(pass_through=text)


def test_the_option_names_the_fields():
    options = MessageOptions(pass_through="load_id,card type", trace_messages=True)
    rules = options.rules(manifest_of(ULB), default_time=TIME)
    assert (rules.pass_through, rules.trace_messages) == (("load_id", "card type"), True)


def manifest_of(spec: FeatureSpec) -> Manifest:
    return Manifest("m", "1", spec.names, {}, ScoreQuantiles((0.0, 1.0), (0.0, 1.0)), spec=spec)


SPEC = FeatureSpec.from_json(
    {
        "pass_through": ["shop.name", "channel"],
        "features": [
            {"name": "amount", "kind": "number"},
            {"name": "abroad", "from": "shop.abroad", "kind": "boolean"},
        ],
    }
)
SPEC_RULES = MessageOptions(pass_through="shop.size,channel").rules(manifest_of(SPEC), default_time=TIME)


def test_names_of_the_spec_and_the_option_pass_each_once():
    assert SPEC_RULES.pass_through == ("shop.name", "channel", "shop.size")


@pytest.mark.parametrize(
    ("more", "passed"),
    [
        (b',"shop":{"abroad":true,"name":"A","size":1.50,"x":0}', '{"shop":{"name":"A","size":1.50}}'),
        (b',"shop":{"abroad":true,"name":null},"channel":[1]', '{"shop":{"name":null},"channel":[1]}'),
        (b',"shop":{"abroad":false}', None),
    ],
)
def test_values_within_objects_pass_and_stand_there_again_in_a_dead_letter(more, passed):
    sent = b'{"transaction_id":"t","amount":7%s}' % more
    refused = b'{"amount":7,"channel":"x"}'  # by the spec, after the decoder took it
    batch = parsed(refused, sent, rules=SPEC_RULES)
    assert batch.column("pass_through").to_pylist() == [passed]
    again = parsed(*transaction_messages(batch, SPEC), rules=SPEC_RULES)
    # The message is another one; a dead letter has the id of the first as an attribute.
    assert again.drop_columns("source").equals(batch.drop_columns("source"))


def test_an_object_that_passes_whole_holds_what_is_named_within_it():
    rules = MessageOptions(pass_through="shop").rules(manifest_of(SPEC), default_time=TIME)
    batch = parsed(b'{"amount":7,"shop":{"abroad":true,"name":"A"},"channel":2}', rules=rules)
    assert batch.column("pass_through").to_pylist() == ['{"channel":2,"shop":{"abroad":true,"name":"A"}}']
    (again,) = transaction_messages(batch, SPEC)
    assert json.loads(again)["shop"] == {"abroad": True, "name": "A"}


def test_columns_within_structs_pass_and_stand_there_again_in_a_dead_letter():
    shops = [{"name": "A", "abroad": True, "x": 1}, {"name": "B", "abroad": False, "x": 2}]
    batch = pa.RecordBatch.from_pydict({"amount": ["free", "7"], "shop": shops, "CHANNEL": ["web", None]})
    parts = to_transactions(batch, TIME, SPEC_RULES)
    assert parts.transactions.column("pass_through").to_pylist() == ['{"shop":{"name":"B"},"channel":null}']
    (letter,) = parts.dead_letters.column("payloadBytes").to_pylist()
    assert json.loads(letter)["shop"] == {"name": "A", "abroad": True}
    assert json.loads(letter)["channel"] == "web"
    assert {"shop", "channel"} <= {*source_columns(SPEC_RULES)}

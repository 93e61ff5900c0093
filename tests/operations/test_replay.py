"""Replay of dead letters, the whole way on the emulators."""

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import signal

import orjson
import pytest
from google.cloud import pubsub_v1

from local.runner import LocalStreamingRunner, run_until_drained
from operations import replay
from operations.dead_letters import with_event_time
from pipelines import streaming
from publisher.pubsub import PubSubTopic
from tests.operations.test_dead_letters import transactions
from transforms import metrics, tables
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream
from transforms.dead_letter import dead_letters
from transforms.schema import ERROR_RECORDS


def options_of(local_stack, dataset, topic, *more):
    return [
        f"--dataset={local_stack.project}.{dataset}",
        f"--topic={topic}",
        f"--bigquery_endpoint={local_stack.bigquery}",
        "--format=json",
        "--quiet",
        *more,
    ]


def summary_of(capsys, argv, code=0):
    capsys.readouterr()
    assert replay.main(argv) == code
    return json.loads(capsys.readouterr().out)


def row_of(text, stage="parse", reason="payload: not JSON", attempt=0, moment=None):
    return {
        "timestamp": (moment or dt.datetime.now(dt.UTC)).isoformat(),
        "payloadString": text,
        "payloadBytes": base64.b64encode(text.encode()).decode(),
        "attributes": [{"key": "message_id", "value": text}],
        "errorMessage": reason,
        "stage": stage,
        "attempt": attempt,
    }


def pulled(subscription):
    found = []
    with pubsub_v1.SubscriberClient() as client:
        while messages := client.pull(
            subscription=subscription, max_messages=100, return_immediately=True
        ).received_messages:
            client.acknowledge(subscription=subscription, ack_ids=[each.ack_id for each in messages])
            found += [(each.message.data.decode(), dict(each.message.attributes)) for each in messages]
    return found


@pytest.fixture
def letters(local_stack, dataset, bigquery_client):
    """A dataset with five dead letters of the last hours, one of them stored twice, and an old one."""
    name = f"{local_stack.project}.{dataset}"
    tables.create_tables(bigquery_client, name)
    now = dt.datetime.now(dt.UTC)
    rows = [
        row_of("a", moment=now - dt.timedelta(hours=3)),
        row_of("b", reason="payload: 70000 bytes, over the limit of 65536"),
        row_of("c", stage="sink", reason="event_time: out of range"),
        row_of("d", attempt=1),
        row_of("e", stage="score", reason="anomaly_score: the model gave nan"),
        row_of("old", moment=now - dt.timedelta(days=9)),
    ]
    assert bigquery_client.insert_rows_json(f"{name}.error_records", [*rows, rows[0]]) == []


@pytest.mark.integration
def test_a_dry_run_sends_and_notes_nothing(local_stack, dataset, channel, letters, bigquery_client, capsys):
    argv = options_of(local_stack, dataset, channel.topic, "--dry_run")
    found = summary_of(capsys, argv)
    assert (found["read"], found["would_send"], found["left"]) == (5, 4, 1)
    assert {row["reason"] for row in found["letters"]} == {
        "payload: not JSON",
        "payload: 70000 bytes, over the limit of 65536",
        "anomaly_score: the model gave nan",
    }
    assert replay.main([*argv, "--format=table"]) == 0
    said = capsys.readouterr().out
    assert "would send  4 to projects/" in said
    assert "1  stage sink: the payload is the row" in said
    assert pulled(channel.subscription) == []
    names = {table.table_id for table in bigquery_client.list_tables(dataset)}
    assert tables.REPLAYED_TABLE not in names


@pytest.mark.integration
def test_no_letter_is_sent_twice(
    local_stack, dataset, channel, letters, bigquery_client, capsys, monkeypatch
):
    monkeypatch.setattr(replay, "PORTION_LETTERS", 2)
    argv = options_of(local_stack, dataset, channel.topic)
    first = summary_of(capsys, [*argv, "--reason=over the limit"])
    assert (first["read"], first["sent"], first["left"]) == (1, 1, 0)
    limited = summary_of(capsys, [*argv, "--limit=1", "--stage=parse", "--reason=payload: not%"])
    assert (limited["read"], limited["sent"]) == (1, 1)
    rest = summary_of(capsys, argv)
    assert (rest["read"], rest["sent"], rest["left"]) == (3, 2, 1)
    assert list(rest["left_by_reason"]) == [
        "stage sink: the payload is the row that BigQuery refused, not a message"
    ]
    again = summary_of(capsys, argv)
    assert (again["read"], again["sent"], again["left"]) == (1, 0, 1)
    found = dict(pulled(channel.subscription))
    assert sorted(found) == ["a", "b", "d", "e"]
    assert found["a"] == {"dead_letter_attempt": "1", "original_message_id": "a"}
    assert found["d"]["dead_letter_attempt"] == "2"
    notes = list(
        bigquery_client.query(f"SELECT * FROM `{local_stack.project}.{dataset}.replayed_records`").result()
    )
    assert sorted(note["attempt"] for note in notes) == [1, 1, 1, 2]
    assert {note["topic"] for note in notes} == {channel.topic}


@pytest.mark.integration
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_summary_and_what_was_sent_is_noted(
    local_stack, dataset, channel, letters, capsys, monkeypatch, number, code
):
    monkeypatch.setattr(replay, "PORTION_LETTERS", 1)
    argv = options_of(local_stack, dataset, channel.topic)
    send = PubSubTopic.send

    def send_and_stop(topic, messages):
        signal.raise_signal(number)
        return send(topic, messages)

    with monkeypatch.context() as changed:
        changed.setattr(PubSubTopic, "send", send_and_stop)
        stopped = summary_of(capsys, argv, code)
        assert stopped["sent"] == stopped["read"] == 1
        assert stopped["stopped"]
        assert replay.main([*argv, "--format=table"]) == code
        assert "the next run sends the rest" in capsys.readouterr().out
    rest = summary_of(capsys, argv)
    assert not rest["stopped"]
    assert sorted(text for text, _ in pulled(channel.subscription)) == ["a", "b", "d", "e"]


@pytest.mark.integration
def test_every_portion_of_a_large_replay_is_noted(
    local_stack, dataset, channel, bigquery_client, write_client, capsys
):
    count = 2 * replay.PORTION_LETTERS + 1
    name = f"{local_stack.project}.{dataset}"
    tables.create_tables(bigquery_client, name)
    payloads = [b"{%d" % i for i in range(count)]
    batch = dead_letters(payloads, ["payload: not JSON"] * count, "parse")
    appender = Appender(
        WriteChannel(lambda: write_client), default_stream(f"{name}.error_records"), ERROR_RECORDS
    )
    assert appender.append([batch]).rows == count
    appender.close()
    argv = options_of(local_stack, dataset, channel.topic)
    first = summary_of(capsys, argv)
    assert (first["read"], first["sent"], first["left"]) == (count, count, 0)
    assert summary_of(capsys, argv)["read"] == 0
    assert sorted(text for text, _ in pulled(channel.subscription)) == sorted(map(bytes.decode, payloads))


@pytest.mark.integration
def test_a_letter_is_one_whatever_the_order_of_its_attributes(
    local_stack, dataset, channel, bigquery_client, capsys
):
    """A message that was delivered twice, to two processes, by a version that kept the order of the map."""
    name = f"{local_stack.project}.{dataset}"
    tables.create_tables(bigquery_client, name)
    first = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=3)
    pairs = [{"key": "type", "value": "card"}, {"key": "message_id", "value": "1"}]
    rows = [
        row_of('{"a":1}', moment=first) | {"attributes": pairs},
        row_of('{"a":1}', moment=first + dt.timedelta(hours=1)) | {"attributes": pairs[::-1]},
    ]
    assert bigquery_client.insert_rows_json(f"{name}.error_records", rows) == []
    assert len(stored(bigquery_client, dataset, "error_records_latest")) == 1
    argv = options_of(local_stack, dataset, channel.topic)
    assert summary_of(capsys, argv)["sent"] == 1
    assert summary_of(capsys, argv)["read"] == 0
    ((text, attributes),) = pulled(channel.subscription)
    assert json.loads(text)["event_time"] == first.isoformat()  # of the first rejection
    assert attributes == {"type": "card", "original_message_id": "1", "dead_letter_attempt": "1"}


@pytest.mark.integration
def test_what_an_earlier_version_has_noted_is_not_sent_again(
    local_stack, dataset, channel, bigquery_client, capsys
):
    """Its hash was of the attributes as the letter has them, of one of two copies."""
    name = f"{local_stack.project}.{dataset}"
    tables.create_tables(bigquery_client, name, [*tables.TABLES, tables.replayed_records_table()])
    pairs = [{"key": "type", "value": "card"}, {"key": "message_id", "value": "1"}]
    row = row_of("{") | {"attributes": pairs}
    copy = row_of("{") | {"attributes": pairs[::-1]}
    assert bigquery_client.insert_rows_json(f"{name}.error_records", [row, copy]) == []
    key = ["parse", "payload: not JSON", 0, "ew==", json.dumps(pairs, separators=(",", ":"))]
    columns = json.dumps({f"key_{i}": part for i, part in enumerate(key)}, separators=(",", ":"))
    now = dt.datetime.now(dt.UTC).isoformat()
    noted = {"letter": hashlib.sha256(columns.encode()).hexdigest(), "attempt": 1, "topic": "t"}
    assert bigquery_client.insert_rows_json(f"{name}.replayed_records", [noted | {"replayed_at": now}]) == []
    assert summary_of(capsys, options_of(local_stack, dataset, channel.topic))["read"] == 0


@pytest.mark.integration
def test_what_the_topic_does_not_take_stays_for_the_next_run(local_stack, dataset, channel, letters, capsys):
    missing = f"projects/{local_stack.project}/topics/missing"
    failed = summary_of(capsys, options_of(local_stack, dataset, missing), code=1)
    assert (failed["read"], failed["sent"], failed["left"], failed["failed"]) == (5, 0, 5, 4)
    assert any("create it: gcloud pubsub topics create missing" in why for why in failed["left_by_reason"])
    assert summary_of(capsys, options_of(local_stack, dataset, channel.topic))["sent"] == 4


@pytest.mark.integration
def test_what_was_sent_and_could_not_be_noted_is_told_and_sent_again(
    local_stack, dataset, channel, letters, bigquery_client, capsys, monkeypatch
):
    argv = options_of(local_stack, dataset, channel.topic)
    spec = tables.replayed_records_table()
    monkeypatch.setattr(tables, "replayed_records_table", lambda: dataclasses.replace(spec, name="no.table"))
    monkeypatch.setattr(tables, "create_tables", lambda *_: None)
    bigquery_client.create_table(spec.table(f"{local_stack.project}.{dataset}"))
    assert replay.main(argv) == 1
    said = capsys.readouterr().err
    assert "4 letters were sent" in said
    assert "so that the next run sends them again" in said
    monkeypatch.undo()
    assert summary_of(capsys, argv)["sent"] == 4
    assert len(pulled(channel.subscription)) == 8


@pytest.mark.integration
def test_a_dataset_that_is_not_there_is_not_made(local_stack, channel, bigquery_client, capsys):
    assert replay.main(options_of(local_stack, "none", channel.topic)) == 1
    assert "anomaly resources create" in capsys.readouterr().err
    assert "none" not in {each.dataset_id for each in bigquery_client.list_datasets()}


def stream(local_stack, dataset, channel, model_dir, count, *more):
    """Runs the stream until `count` messages are through."""
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={model_dir}",
        f"--output_dataset={local_stack.project}.{dataset}",
        f"--bigquery_endpoint={local_stack.bigquery}",
        f"--bigquery_storage_endpoint={local_stack.bigquery_storage}",
        *more,
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())

    def is_done():
        totals = metrics.totals(result)
        return totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0) >= count

    run_until_drained(result, is_done, timeout=120)
    totals = metrics.totals(result)
    return totals.get(metrics.ROWS_SCORED, 0), totals.get(metrics.DEAD_LETTERS, 0)


@pytest.mark.integration
def test_what_was_rejected_is_scored_once_the_rules_are_relaxed(
    local_stack, dataset, channel, bigquery_client, model_dir, capsys
):
    rows = transactions(29)
    for row in rows[20:26]:
        row["note"] = "x" * 3_000
    bare = rows[25]
    for name in ("transaction_id", "event_time"):
        del bare[name]
    old = (dt.datetime.now(dt.UTC) - dt.timedelta(days=100)).isoformat()
    for row in rows[26:]:
        row["event_time"] = old
    payloads = [*map(orjson.dumps, rows), b"not JSON", b'{"features": []}']
    publisher = pubsub_v1.PublisherClient()
    for payload in payloads:
        publisher.publish(channel.topic, payload).result()

    strict = ["--max_message_bytes=1500", "--max_event_age_days=30"]
    assert stream(local_stack, dataset, channel, model_dir, 31, *strict) == (20, 11)
    rejected = {row["payloadBytes"]: row for row in stored(bigquery_client, dataset, "error_records_latest")}

    argv = options_of(local_stack, dataset, channel.topic)
    first = summary_of(capsys, argv)
    assert (first["read"], first["sent"], first["left"]) == (11, 11, 0)
    assert summary_of(capsys, argv)["read"] == 0

    assert stream(local_stack, dataset, channel, model_dir, 11) == (9, 2)
    scores = stored(bigquery_client, dataset, "scores_latest")
    errors = stored(bigquery_client, dataset, "error_records_latest")
    assert len(scores) == 29
    assert sorted(row["attempt"] for row in errors) == [0] * 11 + [1] * 2
    times = {row["account_id"]: row["event_time"] for row in scores if row["transaction_id"] not in ids(rows)}
    assert times == {bare["account_id"]: rejected[orjson.dumps(bare)]["timestamp"]}
    # What was JSON got the time of its rejection, so that it keeps that through every further attempt.
    moment = rejected[b'{"features": []}']["timestamp"]
    timed = with_event_time(b'{"features": []}', moment)
    assert {row["payloadBytes"] for row in errors if row["attempt"]} == {b"not JSON", timed}

    used_up = summary_of(capsys, [*argv, "--max_attempts=1"])
    assert (used_up["read"], used_up["sent"]) == (2, 0)
    assert used_up["left_by_reason"] == {"attempts used up: --max_attempts=1": 2}
    second = summary_of(capsys, argv)
    assert (second["read"], second["sent"], second["left"]) == (2, 2, 0)
    assert {attributes["dead_letter_attempt"] for _, attributes in pulled(channel.subscription)} == {"2"}
    assert summary_of(capsys, argv)["read"] == 0


def ids(rows):
    return {row.get("transaction_id") for row in rows}


def stored(client, dataset, view):
    return [dict(row) for row in client.query(f"SELECT * FROM `{client.project}.{dataset}.{view}`").result()]

"""Publishing to the real Pub/Sub emulator."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from google.cloud.pubsub_v1 import SubscriberClient

from model.synthetic.generator import TransactionGenerator
from publisher.messages import MessageSource
from publisher.publish import publish
from publisher.pubsub import PubSubTopic

pytestmark = [
    pytest.mark.integration,
    # Deprecated for its cost in production; here it is the way to ask whether anything is left.
    pytest.mark.filterwarnings("ignore:The return_immediately flag"),
]

ROOT = Path(__file__).parents[2]


def pull_all(subscription, expected):
    """The whole backlog, acknowledged: waits for `expected` messages, then looks for any beyond."""
    received = []
    with SubscriberClient() as subscriber:
        while True:
            complete = len(received) >= expected
            response = subscriber.pull(
                subscription=subscription, max_messages=1_000, return_immediately=complete, timeout=60
            )
            received += [message.message for message in response.received_messages]
            ids = [message.ack_id for message in response.received_messages]
            if ids:
                subscriber.acknowledge(subscription=subscription, ack_ids=ids)
            elif complete:
                return received


def start(*arguments):
    command = [sys.executable, "-m", "publisher", "--format", "json", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_everything_arrives_as_it_was_made(channel, tmp_path):
    generator = TransactionGenerator(seed=3, fraud_share=0.05, cycle=5_000)
    source = MessageSource(generator, malformed_share=0.05)
    tee, labels = tmp_path / "t.jsonl", tmp_path / "l.parquet"
    with PubSubTopic(channel.topic) as topic:
        summary = publish(source, topic, count=5_000, tee=tee, labels=labels)
    assert (summary.confirmed, summary.failed) == (5_000, 0)
    received = pull_all(channel.subscription, 5_000)
    assert Counter(message.data for message in received) == Counter(tee.read_bytes().split(b"\n")[:-1])
    kinds = Counter(message.attributes.get("planted_kind") for message in received)
    assert kinds == Counter(pq.read_table(labels)["planted_kind"].to_pylist())
    kinds = Counter(message.attributes.get("malformed_kind") for message in received)
    assert kinds == Counter(pq.read_table(labels)["malformed_kind"].to_pylist())
    good = [message for message in received if "malformed_kind" not in message.attributes]
    assert all(json.loads(m.data)["event_time"] == m.attributes["event_time"] for m in good)


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_the_lines_of_a_file_arrive_as_they_are(channel, tmp_path, name):
    lines = [b'{"transaction_id": "%d"}' % i for i in range(2_500)] + ["not JSON, and ünïcode".encode()]
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as file:
        file.write(b"\r\n".join([lines[0], b"", *lines[1:]]))
    process = start("--topic", channel.topic, "--input", tmp_path / name)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    summary = json.loads(output)
    assert (summary["sent"], summary["confirmed"], summary["stopped_by"]) == (2_501, 2_501, "source")
    received = pull_all(channel.subscription, 2_501)
    assert Counter(message.data for message in received) == Counter(lines)


def test_a_file_is_sent_as_it_is_or_not_at_all(channel, tmp_path):
    (tmp_path / "own.jsonl").write_text("{}\n")
    for flags, reason in (
        (
            ["--topic", channel.topic, "--seed=3", "--malformed_share=0.1"],
            "leave out --seed, --malformed_share",
        ),
        (["--jsonl", tmp_path / "copy.jsonl"], "--input: expected --topic"),
    ):
        process = start(*flags, "--input", tmp_path / "own.jsonl")
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 2
        assert reason in errors
    (tmp_path / "own.csv").write_text("Time,V1,V2,V3,Amount\n1,2,3,4,5\n")
    (tmp_path / "own.jsonl.gz").write_text("{}\n")
    for name, reason in (("own.csv", "it is CSV"), ("own.jsonl.gz", "it is not compressed by gzip")):
        process = start("--topic", channel.topic, "--input", tmp_path / name)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 2
        assert f"{name}: {reason}" in errors
    process = start("--topic", channel.topic, "--input", tmp_path / "none.jsonl")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "No such file or directory" in errors


def test_ctrl_c_loses_nothing(channel, tmp_path):
    tee = tmp_path / "t.jsonl"
    process = start("--topic", channel.topic, "--rate", 2_000, "--tee", tee)
    with SubscriberClient() as subscriber:
        first = subscriber.pull(request={"subscription": channel.subscription, "max_messages": 1}, timeout=60)
        ids = [message.ack_id for message in first.received_messages]
        subscriber.acknowledge(request={"subscription": channel.subscription, "ack_ids": ids})
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    summary = json.loads(output)
    assert summary["stopped_by"] == "signal"
    assert summary["confirmed"] == summary["sent"] > 0
    assert summary["failed"] == 0
    rest = pull_all(channel.subscription, summary["confirmed"] - len(ids))
    assert len(rest) + len(ids) == summary["confirmed"]
    assert tee.read_bytes().count(b"\n") == summary["confirmed"]


def test_a_topic_that_does_not_exist(pubsub_emulator):
    process = start("--topic", f"projects/{pubsub_emulator.project}/topics/nowhere", "--count", 10)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert json.loads(output)["failed"] == 10
    assert "topics/nowhere does not exist; create it: gcloud pubsub topics create nowhere" in errors

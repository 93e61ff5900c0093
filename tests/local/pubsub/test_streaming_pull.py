"""Streaming pull by Google's clients: the same of the embedded server and of gcloud's."""

import subprocess
import sys
import threading

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.pubsub_v1.types import StreamingPullRequest

from tests.local.pubsub.channel import payloads

pytestmark = pytest.mark.integration


def test_googles_subscriber_and_publisher(channel):
    count = 2_000
    publisher = pubsub_v1.PublisherClient()
    futures = [publisher.publish(channel.topic, str(number).encode(), n="x") for number in range(count)]
    assert len({future.result(timeout=60) for future in futures}) == count
    seen, lock, done = [], threading.Lock(), threading.Event()

    def receive(message):
        message.ack()
        with lock:
            seen.append(int(message.data))
            if len(set(seen)) == count:
                done.set()

    with pubsub_v1.SubscriberClient() as subscriber:
        pulling = subscriber.subscribe(
            channel.subscription, receive, flow_control=pubsub_v1.types.FlowControl(max_messages=100)
        )
        assert done.wait(120), f"{len(seen)} of {count}"
        pulling.cancel()
        pulling.result(timeout=30)
    publisher.stop()
    assert sorted(seen) == list(range(count))
    assert channel.left() == []


def stream(channel, *later, **settings):
    """Opens a streaming pull that stays open; `later` are requests after the first."""
    ended = threading.Event()

    def requests():
        yield StreamingPullRequest(
            subscription=channel.subscription, **{"stream_ack_deadline_seconds": 10, **settings}
        )
        yield from later
        ended.wait(60)

    return channel.subscriber.streaming_pull(requests=requests(), retry=None, timeout=60), ended


def test_a_stream_acknowledges_and_gives_back(channel):
    channel.publish(b"a", b"b")
    taken = channel.take(2)
    given_back = next(message for message in taken if message.message.data == b"b")
    answers, ended = stream(
        channel,
        StreamingPullRequest(
            ack_ids=[message.ack_id for message in taken if message is not given_back],
            modify_deadline_ack_ids=[given_back.ack_id],
            modify_deadline_seconds=[0],
        ),
    )
    assert payloads(next(answers).received_messages) == [b"b"]
    ended.set()
    answers.cancel()


@pytest.mark.parametrize(
    "settings",
    [
        {"stream_ack_deadline_seconds": 0},
        {"stream_ack_deadline_seconds": 601},
        {"modify_deadline_ack_ids": ["a"]},
    ],
)
def test_a_stream_with_a_wrong_request_is_refused(settings, channel):
    answers, ended = stream(channel, **settings)
    with pytest.raises(exceptions.InvalidArgument):
        next(answers)
    ended.set()


def test_the_messages_of_a_reader_that_crashes_come_again(channel):
    """A process is killed while it holds messages, by pull and by streaming pull."""
    program = """
import sys, time
from google.cloud import pubsub_v1
from google.pubsub_v1.types import StreamingPullRequest
subscriber = pubsub_v1.SubscriberClient()
held = len(subscriber.pull(subscription=sys.argv[1], max_messages=1).received_messages)
def requests():
    yield StreamingPullRequest(subscription=sys.argv[1], stream_ack_deadline_seconds=10)
    time.sleep(600)
for answer in subscriber.streaming_pull(requests=requests()):
    held += len(answer.received_messages)
    if held == 3:
        print("held", held, flush=True)
"""
    channel.publish(b"a", b"b", b"c")
    command = [sys.executable, "-c", program, channel.subscription]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout.readline() == "held 3\n"
            assert channel.pull() == []
        finally:
            reader.kill()
    received = set()
    while len(received) < 3:  # each lease ends at its own time
        messages = channel.take(1)
        channel.acknowledge(messages)
        received |= set(payloads(messages))
    assert received == {b"a", b"b", b"c"}

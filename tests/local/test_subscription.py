"""Pulls of many and of large messages from the Pub/Sub of the local stack."""

import time

import grpc
import pytest

from common.pubsub import publisher_client, subscriber_client
from local.subscription import Subscription
from tests.local.runner_cases import left_in, publish

pytestmark = pytest.mark.integration

LIMIT = 4 * 1024**2
"""Of an answer, by gRPC's default."""


@pytest.mark.parametrize(("count", "size"), [(300, 45_000), (1, 9_500_000)])
def test_answers_over_the_default_limit_of_grpc_arrive(channel, count, size, caplog):
    payloads = [b"%06d" % i + bytes(size - 6) for i in range(count)]
    publisher = publisher_client()
    for future in [publisher.publish(channel.topic, payload) for payload in payloads]:
        future.result(timeout=60)
    publisher.transport.close()
    with subscriber_client() as client:
        subscription = Subscription(client, channel.subscription, None, max_messages=count)
        subscription.open()
        pulled = []
        deadline = time.monotonic() + 60
        while len({received.message.message_id for received in pulled}) < count:
            assert time.monotonic() < deadline, f"{len(pulled)} of {count}: {caplog.text}"
            pulled += subscription.pull()
        subscription.acknowledge()
        subscription.close()
    assert {received.message.data for received in pulled} == set(payloads)
    assert sum(map(len, payloads)) > LIMIT
    assert caplog.text == ""


@pytest.fixture
def subscription(channel):
    with subscriber_client() as client:
        subscription = Subscription(client, channel.subscription, None, max_messages=1000)
        subscription.open()
        yield subscription
        subscription.close()


def test_a_pull_that_has_taken_all_does_not_ask_for_more(channel, subscription, monkeypatch):
    publish(channel.topic, [b"a", b"b", b"c"])
    answers = []

    def pull_once(count):
        answers.append(Subscription._pull_once(subscription, count))
        return answers[-1]

    monkeypatch.setattr(subscription, "_pull_once", pull_once)
    assert len(subscription.pull()) == 3
    assert [len(answer) for answer in answers] == [3]


def test_what_is_acknowledged_right_before_the_end_does_not_come_again(channel, subscription):
    publish(channel.topic, [b"a", b"b"])
    assert len(subscription.pull()) == 2
    subscription.acknowledge()
    subscription.close()
    assert left_in(channel.subscription) == []


class Lost(grpc.RpcError):
    def result(self):
        raise self


def test_an_acknowledgement_that_was_lost_is_repeated(channel, subscription, caplog):
    publish(channel.topic, [b"a"])
    (received,) = subscription.pull()
    subscription._pulled.clear()
    subscription._acknowledging.append(([received.ack_id], Lost("no answer")))
    subscription.acknowledge()
    subscription.close()
    assert left_in(channel.subscription) == []
    assert "Could not acknowledge messages, will try again: no answer" in caplog.text

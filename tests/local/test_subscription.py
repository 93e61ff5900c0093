"""Pulls of many and of large messages from the Pub/Sub of the local stack."""

import socket
import threading
import time

import grpc
import pytest
from google.api_core.exceptions import DeadlineExceeded, ServiceUnavailable

from common.pubsub import EMULATOR_VARIABLE, publisher_client, subscriber_client
from local.subscription import Subscription, close_all
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


@pytest.fixture(params=["refuses", "is silent"])
def gone(request, monkeypatch):
    """Makes clients of a Pub/Sub that was killed, or that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(EMULATOR_VARIABLE, f"127.0.0.1:{server.getsockname()[1]}")
        if request.param == "refuses":
            server.close()
        yield request.param


def holding(client, number=0):
    """Makes a subscription that has pulled a message, and renews its lease."""
    subscription = Subscription(client, f"projects/project/subscriptions/sub-{number}", "topic", 1)
    subscription._pulled.append((time.monotonic(), ["ack-id"]))
    subscription._renewer = threading.Thread(target=subscription._renew, daemon=True)
    subscription._renewer.start()
    return subscription


def test_the_end_waits_once_for_a_pubsub_that_is_gone_however_much_is_to_do(gone, monkeypatch, caplog):
    monkeypatch.setattr("local.subscription._RENEW_SECONDS", 0.5)
    with subscriber_client() as client:
        subscriptions = [holding(client, number) for number in range(4)]
        problem = DeadlineExceeded if gone == "is silent" else ServiceUnavailable
        with pytest.raises(problem):  # while it runs, a renewal is one try: the next comes soon
            subscriptions[0]._set_deadlines(30, timeout=0.5)
        end = threading.Thread(target=close_all, args=[subscriptions], daemon=True)
        end.start()
        end.join(15)  # 3 s for all; a limit of 3 s for each step of each would take 20
        assert not end.is_alive()
    assert all(f"Could not clean up {subscription.name}" in caplog.text for subscription in subscriptions)


@pytest.mark.parametrize("gone", ["refuses"], indirect=True)
def test_an_acknowledgement_that_is_repeated_ends_with_the_pipeline(gone, caplog):
    with subscriber_client() as client:
        subscription = holding(client)
        subscription.acknowledge()
        confirm = threading.Thread(target=subscription.confirm, daemon=True)
        confirm.start()
        confirm.join(1)
        assert confirm.is_alive()  # an outage is waited out
        subscription.stop()
        confirm.join(15)
        assert not confirm.is_alive()
    assert "Could not acknowledge messages, they come again: 503" in caplog.text

"""Pulls of many and of large messages from the Pub/Sub of the local stack."""

import time

import pytest

from common.pubsub import publisher_client, subscriber_client
from local.subscription import Subscription

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

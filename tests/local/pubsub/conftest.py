"""Fixtures of the tests of Pub/Sub on this machine: both servers, and a channel on them."""

import uuid

import pytest

from common.pubsub import publisher_client, subscriber_client
from local import pubsub
from local.stack import LocalStack
from tests.local.pubsub.channel import ONCE, PROJECT, Channel


@pytest.fixture(scope="module", params=["embedded", "gcloud"])
def server(request):
    """The name of a running server of Pub/Sub; the environment points at it."""
    if request.param == "gcloud" and pubsub.missing():
        pytest.skip(" ".join(pubsub.missing()))
    with LocalStack(pubsub=request.param, bigquery=False) as stack, stack.endpoints.activate():
        yield request.param


@pytest.fixture
def make(server):
    """Makes a channel; keywords are settings of the subscription."""
    publisher, subscriber = publisher_client(), subscriber_client()

    def channel(**settings):
        name = f"test-{uuid.uuid4().hex[:12]}"
        topic, subscription = f"{PROJECT}/topics/{name}", f"{PROJECT}/subscriptions/{name}"
        publisher.create_topic(name=topic, **ONCE)
        request = {"name": subscription, "topic": topic, "ack_deadline_seconds": 10, **settings}
        subscriber.create_subscription(request=request, **ONCE)
        return Channel(publisher, subscriber, topic, subscription)

    yield channel
    subscriber.close()
    publisher.transport.close()


@pytest.fixture
def channel(make):
    return make()

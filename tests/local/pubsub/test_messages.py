"""Pub/Sub on this machine, by Google's clients: the same behaviour of the embedded server and of gcloud's.

What the two cannot share is in `test_embedded`.
"""

import datetime as dt
import threading
import time

import pytest
from google.api_core import exceptions
from google.pubsub_v1 import PublisherClient, types

from tests.local.pubsub.channel import ONCE, Channel, payloads

pytestmark = pytest.mark.integration


# Messages ------------------------------------------------------------------------------------------------


def test_a_message_comes_as_it_was_published(channel):
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    published = [
        {"data": b"\x00\xff", "attributes": {"ü": "€", "empty": ""}, "ordering_key": "k"},
        {"attributes": {"no": "data"}},
        b"plain",
    ]
    ids = channel.publish(*published)
    received = channel.take(3)
    assert len(set(ids)) == 3
    assert [message.message.message_id for message in received] == ids
    first, second, third = (message.message for message in received)
    assert (first.data, dict(first.attributes), first.ordering_key) == (
        b"\x00\xff",
        {"ü": "€", "empty": ""},
        "k",
    )
    assert (second.data, dict(second.attributes)) == (b"", {"no": "data"})
    assert third.data == b"plain"
    assert all(message.delivery_attempt == 0 for message in received)  # without a dead-letter policy
    for message in received:
        assert before < message.message.publish_time < dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)


def test_every_subscription_gets_what_is_published_after_its_creation(channel):
    channel.publish(b"early")
    other = f"{channel.subscription}-2"
    channel.subscriber.create_subscription(name=other, topic=channel.topic, **ONCE)
    channel.publish(b"late")
    second = Channel(channel.publisher, channel.subscriber, channel.topic, other)
    assert sorted(channel.left()) == [b"early", b"late"]
    assert second.left() == [b"late"]


@pytest.mark.parametrize("messages", [[], [{}], [{"ordering_key": "k"}], [b"x", {}], [b"x"] * 1001])
def test_a_request_that_breaks_a_rule_publishes_nothing(messages, channel):
    with pytest.raises(exceptions.InvalidArgument):
        channel.publish(*messages)
    assert channel.left() == []


def test_hostile_sizes(channel, server):
    """10 MB come whole; what is larger is refused; the server goes on."""
    large = b"x" * 10_000_000
    channel.publish(large)
    received = channel.take(1)
    assert payloads(received) == [large]
    channel.acknowledge(received)
    # gcloud's emulator does not answer. The third is more than the server reads.
    refusals = [exceptions.InvalidArgument, exceptions.InvalidArgument, exceptions.ResourceExhausted]
    sizes = [[11_000_000], [6_000_000] * 2, [9_000_000] * 15]
    for refusal, each in zip(refusals, sizes, strict=True):
        made = [{"data": b"x" * size} for size in each]
        with pytest.raises(refusal if server == "embedded" else exceptions.DeadlineExceeded):
            PublisherClient.publish(
                channel.publisher,
                topic=channel.topic,
                messages=made,
                retry=None,
                timeout=30 if server == "embedded" else 3,
            )
    channel.publish(b"small")
    assert channel.left() == [b"small"]


def test_20_000_messages_come_once_each(channel):
    count, per_request = 20_000, 500
    for start in range(0, count, per_request):
        channel.publish(*(str(number).encode() for number in range(start, start + per_request)))
    seen = []
    while len(seen) < count:
        messages = channel.pull(1000, wait=True)
        channel.acknowledge(messages)
        seen += payloads(messages)
    assert sorted(map(int, seen)) == list(range(count))
    assert channel.left() == []


# Leases --------------------------------------------------------------------------------------------------


def test_a_lease_hides_a_message_until_it_is_given_back(channel):
    channel.publish(b"a", b"b")
    first = channel.take(2)
    assert channel.left() == []
    channel.lease(first[:1], 0)
    (again,) = channel.take(1)
    assert again.message == first[0].message
    assert again.ack_id != first[0].ack_id
    channel.acknowledge([first[1], again])
    assert channel.left() == []


def test_a_lease_that_expires_brings_the_message_again_and_one_that_is_renewed_does_not(channel):
    channel.publish(b"left", b"renewed")
    left, renewed = channel.take(2)
    channel.lease([renewed], 60)
    (again,) = channel.take(1)  # after 10 s
    assert again.message == left.message
    channel.acknowledge([left])  # late: another delivery has begun
    channel.lease([again], 0)
    (third,) = channel.take(1)
    channel.acknowledge([third, renewed])
    assert channel.left() == []


def test_a_message_that_comes_ends_the_wait_of_a_pull(channel):
    timer = threading.Timer(0.5, channel.publish, [b"late"])
    timer.start()
    assert payloads(channel.take(1)) == [b"late"]
    timer.join()


def test_an_empty_pull(channel):
    assert channel.pull() == []
    request = types.PullRequest(subscription=channel.subscription, max_messages=1)
    # Empty, and no error at the deadline, which would end Beam's direct runner.
    assert not channel.subscriber.transport.pull(request, timeout=2).received_messages
    request = types.PullRequest(subscription=channel.subscription, max_messages=0)
    with pytest.raises(Exception, match="max_messages"):
        channel.subscriber.transport.pull(request, timeout=30)


def test_ack_ids_that_are_none_are_refused(channel):
    # gcloud's emulator repeats the id in the status, and gRPC drops one over 8 KiB by lot.
    for ids in ([], ["bogus"], ["x" * 3_000], [f"{channel.subscription}:"]):
        with pytest.raises(exceptions.InvalidArgument):
            channel.subscriber.acknowledge(subscription=channel.subscription, ack_ids=ids, **ONCE)
        with pytest.raises(exceptions.InvalidArgument):
            channel.subscriber.modify_ack_deadline(
                subscription=channel.subscription, ack_ids=ids, ack_deadline_seconds=10, **ONCE
            )
    channel.publish(b"x")
    (message,) = channel.take(1)
    other = f"{channel.subscription}-2"
    channel.subscriber.create_subscription(name=other, topic=channel.topic, **ONCE)
    with pytest.raises(exceptions.InvalidArgument):
        channel.subscriber.acknowledge(subscription=other, ack_ids=[message.ack_id], **ONCE)
    with pytest.raises(exceptions.InvalidArgument):
        channel.lease([message], -1)


# Policies ------------------------------------------------------------------------------------------------


def test_a_message_that_nobody_acknowledges_goes_to_the_dead_letter_topic(make):
    dead = make()
    channel = make(dead_letter_policy={"dead_letter_topic": dead.topic, "max_delivery_attempts": 5})
    (number,) = channel.publish({"data": b"poison", "attributes": {"a": "b"}, "ordering_key": "k"})
    for attempt in range(1, 6):
        (message,) = channel.take(1)
        assert message.delivery_attempt == attempt
        channel.lease([message], 0)
    assert channel.left() == []
    (buried,) = dead.take(1)
    assert (buried.message.data, buried.message.ordering_key) == (b"poison", "k")
    assert buried.message.message_id != number
    attributes = dict(buried.message.attributes)
    published = dt.datetime.fromisoformat(attributes.pop("CloudPubSubDeadLetterSourceTopicPublishTime"))
    assert abs(published - message.message.publish_time) < dt.timedelta(milliseconds=1)
    assert attributes == {
        "a": "b",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": channel.subscription.split("/")[-1],
        "CloudPubSubDeadLetterSourceSubscriptionProject": "local-project",
    }


def test_a_key_has_its_messages_in_order_and_out_once_at_a_time(make):
    channel = make(enable_message_ordering=True)
    channel.publish(*({"data": data, "ordering_key": "k"} for data in (b"a", b"b", b"c")), b"free")
    first = [message for message in channel.take(4) if message.message.ordering_key]
    assert payloads(first) == [b"a", b"b", b"c"]
    channel.publish({"data": b"d", "ordering_key": "k"}, {"data": b"e", "ordering_key": "other"})
    assert channel.left() == [b"e"]
    channel.acknowledge(first)
    assert channel.left() == [b"d"]


def test_exactly_once_refuses_an_id_that_has_been_settled(make):
    channel = make(enable_exactly_once_delivery=True)
    channel.publish(b"x")
    messages = channel.take(1)
    channel.acknowledge(messages)
    with pytest.raises(exceptions.InvalidArgument) as error:
        channel.acknowledge(messages)
    assert "PERMANENT_FAILURE_INVALID_ACK_ID" in str(error.value.details)


# Seek ----------------------------------------------------------------------------------------------------


def test_a_seek_to_a_time(make):
    channel = make(retain_acked_messages=True)
    channel.publish(b"one")
    time.sleep(0.3)
    middle = dt.datetime.now(dt.UTC)
    time.sleep(0.3)
    channel.publish(b"two", b"three")
    channel.acknowledge(channel.take(3))
    channel.seek(middle)
    assert channel.left() == [b"two", b"three"]
    channel.seek(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))  # leased ones as well
    assert channel.left() == [b"one", b"two", b"three"]
    channel.seek(dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    assert channel.left() == []


def test_a_seek_brings_no_acknowledged_message_that_was_not_to_be_kept(channel):
    channel.publish(b"one", b"two")
    channel.acknowledge(channel.take(2)[:1])
    channel.seek(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    assert channel.left() == [b"two"]

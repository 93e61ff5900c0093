"""Pub/Sub on this machine, by Google's clients: the same behaviour of the embedded server and of gcloud's.

What the two cannot share is in `test_pubsub_embedded`.
"""

import datetime as dt
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient, types
from google.pubsub_v1.types import StreamingPullRequest

from common.pubsub import publisher_client, subscriber_client
from local import pubsub
from local.stack import LocalStack

pytestmark = pytest.mark.integration

PROJECT = "projects/local-project"
NOWHERE = f"{PROJECT}/topics/nowhere"
NO_SUBSCRIPTION = f"{PROJECT}/subscriptions/nowhere"
ONCE = {"retry": None, "timeout": 30}


@pytest.fixture(scope="module", params=["embedded", "gcloud"])
def server(request):
    """The name of a running server of Pub/Sub; the environment points at it."""
    if request.param == "gcloud" and pubsub.missing():
        pytest.skip(" ".join(pubsub.missing()))
    with LocalStack(pubsub=request.param, bigquery=False) as stack, stack.endpoints.activate():
        yield request.param


@dataclass
class Channel:
    """A topic and its subscription, with short calls."""

    publisher: PublisherClient
    subscriber: pubsub_v1.SubscriberClient
    topic: str
    subscription: str

    def publish(self, *messages):
        made = [{"data": message} if isinstance(message, bytes) else message for message in messages]
        # The request itself, without the client's own batching thread.
        answer = PublisherClient.publish(self.publisher, topic=self.topic, messages=made, **ONCE)
        return list(answer.message_ids)

    def pull(self, count=100, wait=False):
        request = types.PullRequest(
            subscription=self.subscription, max_messages=count, return_immediately=not wait
        )
        return list(self.subscriber.transport.pull(request, timeout=30).received_messages)

    def take(self, count):
        """Pulls until so many messages have come."""
        messages = []
        while len(messages) < count:
            messages += self.pull(wait=True)
        return messages

    def left(self):
        """The payloads that come within a moment."""
        deadline = time.monotonic() + 1
        messages = []
        while time.monotonic() < deadline:
            messages += self.pull()
            time.sleep(0.05)
        return payloads(messages)

    def acknowledge(self, messages):
        ids = [message.ack_id for message in messages]
        self.subscriber.acknowledge(subscription=self.subscription, ack_ids=ids, **ONCE)

    def lease(self, messages, seconds):
        ids = [message.ack_id for message in messages]
        self.subscriber.modify_ack_deadline(
            subscription=self.subscription, ack_ids=ids, ack_deadline_seconds=seconds, **ONCE
        )

    def seek(self, moment):
        self.subscriber.seek(request={"subscription": self.subscription, "time": moment}, **ONCE)


def payloads(messages):
    return [message.message.data for message in messages]


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


# Topics and subscriptions --------------------------------------------------------------------------------


def test_topics_are_made_shown_listed_and_deleted(channel):
    publisher = channel.publisher
    assert publisher.get_topic(topic=channel.topic, **ONCE).name == channel.topic
    with pytest.raises(exceptions.AlreadyExists):
        publisher.create_topic(name=channel.topic, **ONCE)
    listed = [topic.name for topic in publisher.list_topics(project=PROJECT, **ONCE)]
    assert channel.topic in listed
    pages = publisher.list_topics(request={"project": PROJECT, "page_size": 1}, **ONCE).pages
    assert [page.topics[0].name for page in pages] == listed
    names = list(publisher.list_topic_subscriptions(topic=channel.topic, **ONCE))
    assert names == [channel.subscription]
    publisher.delete_topic(topic=channel.topic, **ONCE)
    with pytest.raises(exceptions.NotFound):
        publisher.get_topic(topic=channel.topic, **ONCE)
    with pytest.raises(exceptions.NotFound):
        channel.publish(b"x")


def test_subscriptions_are_made_shown_listed_changed_and_deleted(make):
    channel = make(labels={"a": "b"})
    subscriber, name = channel.subscriber, channel.subscription
    with pytest.raises(exceptions.AlreadyExists):
        subscriber.create_subscription(name=name, topic=channel.topic, **ONCE)
    shown = subscriber.get_subscription(subscription=name, **ONCE)
    assert (shown.topic, shown.ack_deadline_seconds, dict(shown.labels)) == (channel.topic, 10, {"a": "b"})
    assert shown.message_retention_duration == dt.timedelta(days=7)
    request = {
        "subscription": {"name": name, "ack_deadline_seconds": 33},
        "update_mask": {"paths": ["ack_deadline_seconds"]},
    }
    assert subscriber.update_subscription(request=request, **ONCE).ack_deadline_seconds == 33
    assert name in [found.name for found in subscriber.list_subscriptions(project=PROJECT, **ONCE)]
    subscriber.delete_subscription(subscription=name, **ONCE)
    with pytest.raises(exceptions.NotFound):
        subscriber.get_subscription(subscription=name, **ONCE)


def test_a_subscription_outlives_its_topic_and_is_not_of_a_new_one(channel):
    channel.publish(b"before")
    channel.publisher.delete_topic(topic=channel.topic, **ONCE)
    channel.publisher.create_topic(name=channel.topic, **ONCE)
    channel.publish(b"after")
    shown = channel.subscriber.get_subscription(subscription=channel.subscription, **ONCE)
    assert shown.topic == "_deleted-topic_"
    assert channel.left() == [b"before"]


NO_NAMES = ("xy", "1abc", "a b c", "goog-x", "x" * 256)


@pytest.mark.parametrize("name", ["topic", *(f"{PROJECT}/topics/{name}" for name in NO_NAMES)])
def test_a_name_that_breaks_a_rule_is_refused(name, channel):
    with pytest.raises(exceptions.InvalidArgument):
        channel.publisher.create_topic(name=name, **ONCE)
    with pytest.raises(exceptions.InvalidArgument):
        channel.subscriber.create_subscription(
            name=name.replace("/topics/", "/subscriptions/"), topic=channel.topic, **ONCE
        )


def test_what_does_not_exist_is_not_found(channel):
    publisher, subscriber = channel.publisher, channel.subscriber
    calls = [
        lambda: publisher.delete_topic(topic=NOWHERE, **ONCE),
        lambda: subscriber.create_subscription(name=NO_SUBSCRIPTION, topic=NOWHERE, **ONCE),
        lambda: subscriber.delete_subscription(subscription=NO_SUBSCRIPTION, **ONCE),
        lambda: subscriber.pull(subscription=NO_SUBSCRIPTION, max_messages=1, **ONCE),
        lambda: subscriber.acknowledge(subscription=NO_SUBSCRIPTION, ack_ids=["x"], **ONCE),
        lambda: subscriber.seek(request={"subscription": NO_SUBSCRIPTION, "time": dt.datetime.now()}, **ONCE),
        lambda: make_dead(channel, NOWHERE, 5),
    ]
    for call in calls:
        with pytest.raises(exceptions.NotFound):
            call()


def make_dead(channel, topic, attempts):
    policy = {"dead_letter_topic": topic, "max_delivery_attempts": attempts}
    request = {"name": f"{channel.subscription}-2", "topic": channel.topic, "dead_letter_policy": policy}
    return channel.subscriber.create_subscription(request=request, **ONCE)


def test_settings_out_of_bounds_are_refused(channel):
    name, create = f"{channel.subscription}-2", channel.subscriber.create_subscription
    for settings in (
        {"ack_deadline_seconds": 601},
        {"ack_deadline_seconds": -1},
        {"message_retention_duration": dt.timedelta(minutes=9)},
        {"message_retention_duration": dt.timedelta(days=32)},
    ):
        with pytest.raises(exceptions.InvalidArgument):
            create(request={"name": name, "topic": channel.topic, **settings}, **ONCE)
    for attempts in (4, 101):
        with pytest.raises(exceptions.BadRequest):  # Google's says OUT_OF_RANGE
            make_dead(channel, channel.topic, attempts)
    for paths in ([], ["nonsense"], ["topic"]):
        with pytest.raises(exceptions.InvalidArgument):
            channel.subscriber.update_subscription(
                subscription={"name": channel.subscription}, update_mask={"paths": paths}, **ONCE
            )
    with pytest.raises(exceptions.InvalidArgument):
        channel.subscriber.seek(request={"subscription": channel.subscription}, **ONCE)


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


# Streaming pull ------------------------------------------------------------------------------------------


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

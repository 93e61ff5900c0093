"""The embedded Pub/Sub where it does more than gcloud's emulator, and its state without a process."""

import asyncio
import threading
import tracemalloc

import grpc
import pytest
from google.api_core import exceptions
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1 import PublisherClient, types
from google.pubsub_v1.types import StreamingPullRequest

from common.pubsub import publisher_client, subscriber_client
from local import topics
from local.process import LocalStackError
from local.pubsub import EmbeddedPubSub
from local.pubsub_queue import ANSWER_BYTES, Reader
from local.pubsub_rules import RefusalError
from local.pubsub_server import Service

TOPIC = "projects/local-project/topics/topic"
DEAD = "projects/local-project/topics/dead"
NAME = "projects/local-project/subscriptions/subscription"


def pb(kind, /, **fields):
    return getattr(types, kind).pb()(**fields)


class World:
    """The service without a process, with a clock that stands still."""

    def __init__(self, most_bytes=10_000_000, topic=None, **settings):
        self.now = 1_000_000.0
        self.service = Service(most_bytes, lambda: self.now)
        self.service.create_topic(pb("Topic", name=TOPIC, **(topic or {})))
        self.service.create_topic(pb("Topic", name=DEAD))
        self.service.create_subscription(pb("Subscription", name=NAME, topic=TOPIC, **settings))

    @property
    def queue(self):
        return self.service.queue(NAME)

    def publish(self, *data, key=""):
        messages = [pb("PubsubMessage", data=each, ordering_key=key) for each in data]
        return self.service.publish(pb("PublishRequest", topic=TOPIC, messages=messages)).message_ids

    def take(self, most=100, reader=None):
        return self.queue.take(most, reader)

    def give_back(self, *messages):
        self.queue.modify_deadlines([message.ack_id for message in messages], [0] * len(messages))

    def acknowledge(self, *messages):
        self.queue.acknowledge([message.ack_id for message in messages])

    def seek(self, moment):
        time = Timestamp()
        time.FromMicroseconds(int(moment * 1e6))
        self.service.seek(pb("SeekRequest", subscription=NAME, time=time))


def data(messages):
    return [message.message.data for message in messages]


def refusal(call):
    with pytest.raises(RefusalError) as error:
        call()
    return error.value


# Order and redelivery ------------------------------------------------------------------------------------


def test_what_comes_again_comes_in_its_old_place():
    world = World()
    world.publish(b"a", b"b", b"c")
    a, b = world.take(2)
    world.give_back(b, a)
    assert data(world.take()) == [b"a", b"b", b"c"]


def test_a_key_is_given_back_from_one_message_on():
    """Of one key, a message that comes again brings the later ones with it, and nothing overtakes it."""
    world = World(enable_message_ordering=True)
    world.publish(b"a", b"b", b"c", key="k")
    a, b, _ = world.take()
    world.publish(b"d", key="k")
    world.publish(b"other", key="l")
    world.give_back(b)
    assert data(world.take()) == [b"other"]  # a is out
    world.acknowledge(a)
    assert data(world.take()) == [b"b", b"c", b"d"]


def test_a_key_waits_for_its_message_that_pauses():
    world = World(
        enable_message_ordering=True,
        retry_policy={"minimum_backoff": Duration(seconds=5), "maximum_backoff": Duration(seconds=5)},
    )
    world.publish(b"a", b"b", key="k")
    world.give_back(*world.take(1))
    world.publish(b"c", key="k")
    assert world.take() == []
    world.now += 5
    assert data(world.take()) == [b"a", b"b", b"c"]


def test_the_pause_of_a_retry_policy_grows_to_its_limit():
    backoff = {"minimum_backoff": Duration(seconds=10), "maximum_backoff": Duration(seconds=30)}
    world = World(retry_policy=backoff)
    world.publish(b"a")
    for pause in (10, 20, 30, 30):
        world.give_back(*world.take())
        world.now += pause - 0.5
        assert world.take() == []
        world.now += 0.5
    assert data(world.take()) == [b"a"]


def test_a_lease_lasts_as_long_as_its_last_renewal():
    world = World(ack_deadline_seconds=20)
    world.publish(b"a")
    (message,) = world.take()
    world.now += 19
    world.queue.modify_deadlines([message.ack_id], [100])
    world.now += 99
    assert world.take() == []
    world.queue.modify_deadlines([message.ack_id], [10])  # shorter
    world.now += 10
    (again,) = world.take()
    world.queue.modify_deadlines([message.ack_id], [0])  # of the old delivery
    assert world.take() == []
    world.now += 20
    world.acknowledge(again)  # late, but not delivered anew
    assert world.take() == []


def test_a_dead_letter_topic_that_is_gone_loses_no_message():
    world = World(dead_letter_policy={"dead_letter_topic": DEAD, "max_delivery_attempts": 5})
    world.publish(b"a")
    world.service.delete_topic(pb("DeleteTopicRequest", topic=DEAD))
    for attempt in range(1, 8):
        (message,) = world.take()
        assert message.delivery_attempt == attempt
        world.give_back(message)
    world.service.create_topic(pb("Topic", name=DEAD))
    world.give_back(*world.take())
    assert world.take() == []


# What is kept --------------------------------------------------------------------------------------------


def test_what_is_full_refuses_and_says_what_to_do():
    world = World(most_bytes=14_000)
    world.publish(*[b"x" * 1_000] * 9)
    error = refusal(lambda: world.publish(b"x" * 1_000))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"wait in {NAME}: pull and acknowledge its messages, seek it to now, or delete it" in str(error)
    world.acknowledge(*world.take(1))
    world.publish(b"x" * 1_000)
    assert len(world.take()) == 9


def test_small_messages_count_with_the_memory_that_they_take():
    world = World()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            world.publish(*[b"x"] * 1_000)
        world.take(10_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = after - before
    assert 0.5 * held < world.queue.bytes < 2 * held


def test_a_topic_that_nobody_reads_keeps_nothing():
    world = World(most_bytes=10_000)
    world.service.delete_subscription(pb("DeleteSubscriptionRequest", subscription=NAME))
    for _ in range(20):
        world.publish(b"x" * 1_000)


@pytest.mark.parametrize("by", ["subscription", "topic"])
def test_acknowledged_messages_are_kept_for_a_seek_while_there_is_room(by):
    retention = {"message_retention_duration": Duration(seconds=86_400)}
    world = World(
        most_bytes=14_000,
        topic=retention if by == "topic" else None,
        retain_acked_messages=by == "subscription",
    )
    for number in range(30):
        world.now += 1
        world.publish(str(number).encode() + b"x" * 1_000)
        world.acknowledge(*world.take())
    assert world.queue.bytes <= 14_000
    world.seek(0)
    kept = data(world.take())
    assert 5 <= len(kept) < 10
    assert kept[-1].startswith(b"29x")


def test_what_is_older_than_the_retention_is_dropped():
    world = World(message_retention_duration=Duration(seconds=600))
    world.publish(b"old")
    world.take()
    world.now += 400
    world.publish(b"new")
    world.now += 201
    assert data(world.take()) == [b"new"]
    assert world.queue.bytes < 600


def test_an_answer_is_bounded_by_bytes():
    world = World(most_bytes=100_000_000)
    for _ in range(3):
        world.publish(*[b"x" * 1_000_000] * 4)
    world.publish(b"y" * 9_000_000)
    taken = []
    while len(taken) < 13:
        messages = world.take()
        assert len(messages) == 1 or sum(map(len, data(messages))) <= ANSWER_BYTES
        taken += messages
    assert world.take() == []


def test_a_stream_keeps_to_its_limits():
    world = World()
    world.publish(*[b"x" * 100] * 20)
    by_count, by_bytes = Reader(10, most_messages=5), Reader(10, most_bytes=150)
    first = world.take(by_count.room(1000), by_count)
    assert len(first) == 5
    assert by_count.room(1000) == 0
    world.acknowledge(*first[:2])
    assert by_count.room(1000) == 2
    world.now += 10  # the leases end
    assert len(world.take(0)) == 0
    assert by_count.room(1000) == 5
    world.take(1, by_bytes)
    assert by_bytes.room(1000) == 1000
    world.take(1, by_bytes)
    assert by_bytes.room(1000) == 0


def test_ids_of_messages_are_not_given_again_after_a_new_start():
    assert int(World().publish(b"a")[0]) > 1e15


# What it does not have -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("filter", 'attributes.a = "b"'),
        ("push_config", {"push_endpoint": "http://127.0.0.1:1"}),
        ("bigquery_config", {"table": "a.b.c"}),
        ("cloud_storage_config", {"bucket": "b"}),
    ],
)
def test_a_setting_that_is_not_served_is_refused(field, value):
    error = refusal(lambda: World(**{field: value}))
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert ("push" if field == "push_config" else field) in str(error)


@pytest.mark.parametrize(
    "attributes",
    [{"": "x"}, {"k" * 257: "x"}, {"goog-x": "x"}, {"k": "x" * 1025}, {str(n): "x" for n in range(101)}],
)
def test_attributes_that_break_a_limit_are_refused(attributes):
    message = pb("PubsubMessage", data=b"x", attributes=attributes)
    request = pb("PublishRequest", topic=TOPIC, messages=[message])
    error = refusal(lambda: World().service.publish(request))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "attributes" in str(error)


def test_a_stream_ends_when_its_subscription_is_deleted():
    world = World()

    async def requests():
        yield pb("StreamingPullRequest", subscription=NAME, stream_ack_deadline_seconds=10)
        world.service.delete_subscription(pb("DeleteSubscriptionRequest", subscription=NAME))
        await asyncio.sleep(60)

    async def read():
        return [answer async for answer in world.service.streaming_pull(requests())]

    assert refusal(lambda: asyncio.run(read())).code is grpc.StatusCode.NOT_FOUND


# The process ---------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A server of its own, which keeps 1 MB."""
    emulator = EmbeddedPubSub(most_bytes=1_000_000)
    emulator.launch()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator.wait())
    yield emulator
    emulator.stop()


@pytest.mark.integration
def test_methods_that_it_does_not_have_are_unimplemented(server):
    topic = topics.create_topic("local-project", "topic")
    with publisher_client() as publisher, subscriber_client() as subscriber:
        for call in (
            lambda: publisher.update_topic(topic={"name": topic}, update_mask={"paths": ["labels"]}),
            lambda: publisher.detach_subscription(request={"subscription": NAME}),
            lambda: subscriber.create_snapshot(name="projects/p/snapshots/s", subscription=NAME),
        ):
            with pytest.raises(exceptions.MethodNotImplemented):
                call()


@pytest.mark.integration
def test_values_that_protobuf_refuses_are_invalid_arguments(server):
    topic = topics.create_topic("local-project", "topic")
    subscription = topics.create_subscription("local-project", "subscription", topic)
    with subscriber_client() as subscriber:
        for call in (
            lambda: subscriber.seek({"subscription": subscription, "time": Timestamp(seconds=-(10**18))}),
            lambda: subscriber.update_subscription(
                subscription={"name": subscription}, update_mask={"paths": ["labels.a"]}
            ),
        ):
            with pytest.raises(exceptions.InvalidArgument, match="Invalid argument: "):
                call()


@pytest.mark.integration
def test_a_server_that_is_full_answers_publishers_so(server):
    topic = topics.create_topic("local-project", "topic")
    subscription = topics.create_subscription("local-project", "subscription", topic)
    with publisher_client() as publisher:
        request = {"topic": topic, "messages": [{"data": b"x" * 900_000}]}
        PublisherClient.publish(publisher, request=request)
        with pytest.raises(exceptions.ResourceExhausted, match="keeps at most 1,000,000 bytes"):
            PublisherClient.publish(publisher, request=request, retry=None)
        assert len(topics.take(subscription, bool)) == 1
        PublisherClient.publish(publisher, request=request, retry=None)


@pytest.mark.integration
def test_a_stream_that_is_full_goes_on_when_a_message_is_acknowledged(server):
    topic = topics.create_topic("local-project", "topic")
    subscription = topics.create_subscription("local-project", "subscription", topic)
    with publisher_client() as publisher, subscriber_client() as subscriber:
        PublisherClient.publish(publisher, request={"topic": topic, "messages": [{"data": b"x"}] * 20})
        first = StreamingPullRequest(
            subscription=subscription, stream_ack_deadline_seconds=60, max_outstanding_messages=5
        )
        asked = iter([first])
        answers = subscriber.streaming_pull(requests=_open(asked), retry=None, timeout=60)
        seen = 0
        for answer in answers:
            assert len(answer.received_messages) <= 5
            seen += len(answer.received_messages)
            if seen == 20:
                break
            ids = [message.ack_id for message in answer.received_messages]
            subscriber.acknowledge(subscription=subscription, ack_ids=ids)
        answers.cancel()


def _open(requests):
    """Sends requests, and keeps the stream open."""
    yield from requests
    threading.Event().wait(60)


@pytest.mark.integration
def test_a_port_that_is_taken_is_reported(server):
    second = EmbeddedPubSub(port=server.port)
    second.launch()
    with pytest.raises(
        LocalStackError, match=r"The embedded Pub/Sub ended(.|\n)*127.0.0.1:" + str(server.port)
    ):
        second.wait()

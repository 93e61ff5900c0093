"""The embedded Pub/Sub: google.pubsub.v1 over gRPC in one process, in memory, with Python alone.

    python -m local.pubsub_server --work_dir=DIR

It has the methods of `METHODS` and the settings of `TOPIC_FIELDS` and `SUBSCRIPTION_FIELDS`. It refuses all
others with UNIMPLEMENTED, such as schemas, snapshots, filters and push. The port is written to
DIR/ready.json. The message types are those of google-cloud-pubsub.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1 import types
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from common.command import Parser, command
from common.options import add_options, option, read_options
from local import pubsub_rules as rules
from local.process import HOST, write_ready
from local.pubsub_queue import Message, Queue, Reader
from local.pubsub_rules import RefusalError, refuse

MOST_BYTES: Final = 512 * 1024 * 1024
"""Default of the bytes of messages that are kept."""
_LARGEST_FRAME: Final = 128 * 1024 * 1024
_PULL_SECONDS: Final = 60.0
_MARGIN_SECONDS: Final = 1.0
_MOST_PULLED: Final = 1000
_STOP_SECONDS: Final = 0.5


@dataclass(eq=False)
class Service:
    """Topics and subscriptions, and the methods of google.pubsub.v1 on them.

    Attributes:
      most_bytes: The most bytes of messages that are kept, each counted once a subscription.
      clock: Returns the seconds since 1970.
    """

    most_bytes: int = MOST_BYTES
    clock: Callable[[], float] = time.time
    topics: dict[str, Any] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    # Not from 1: after a new start, no message has the id of an earlier one.
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(time.time_ns() // 1000))

    def create_topic(self, topic: Any) -> Any:
        """Makes a topic."""
        rules.check_new(topic.name, "topics", self.topics)
        rules.check_fields(topic, rules.TOPIC_FIELDS)
        self.topics[topic.name] = topic
        return topic

    def get_topic(self, request: Any) -> Any:
        """Returns a topic."""
        return rules.find(request.topic, "topics", self.topics)

    def delete_topic(self, request: Any) -> Any:
        """Removes a topic; its subscriptions keep their messages."""
        rules.find(request.topic, "topics", self.topics)
        del self.topics[request.topic]
        for queue in self._queues_of(request.topic):
            queue.settings.topic = "_deleted-topic_"
        return Empty()

    def list_topics(self, request: Any) -> Any:
        """Lists the topics of a project."""
        topics, token = rules.page(request, f"{request.project}/topics/", self.topics)
        return types.ListTopicsResponse.pb()(topics=topics, next_page_token=token)

    def list_topic_subscriptions(self, request: Any) -> Any:
        """Lists the names of the subscriptions of a topic."""
        rules.find(request.topic, "topics", self.topics)
        queues = {queue.settings.name: queue.settings.name for queue in self._queues_of(request.topic)}
        names, token = rules.page(request, "", queues)
        return types.ListTopicSubscriptionsResponse.pb()(subscriptions=names, next_page_token=token)

    def publish(self, request: Any) -> Any:
        """Puts messages into the queues of a topic."""
        rules.find(request.topic, "topics", self.topics)
        rules.check_messages(request)
        ids = self._put(request.topic, request.messages, self._make_room)
        return types.PublishResponse.pb()(message_ids=ids)

    def _put(self, topic: str, messages: Sequence[Any], admit: Callable[[int], None]) -> list[str]:
        now = self.clock()
        stamp = Timestamp()
        stamp.FromMicroseconds(int(now * 1e6))
        stored = []
        for message in messages:
            number = next(self.numbers)
            message.message_id = str(number)
            message.publish_time.CopyFrom(stamp)
            stored.append(Message(number, message.SerializeToString(), message.ordering_key, now))
        queues = self._queues_of(topic)
        admit(sum(message.size for message in stored) * len(queues))
        for queue in queues:
            queue.put(stored)
        return [str(message.number) for message in stored]

    def _make_room(self, size: int) -> None:
        """Drops messages that are kept for a seek alone, where `size` bytes have no room.

        Raises:
          RefusalError: the messages that nobody has acknowledged leave no room.
        """
        kept = sum(queue.bytes for queue in self.queues.values())
        for queue in self.queues.values():
            while kept + size > self.most_bytes and (dropped := queue.forget()):
                kept -= dropped
        if size and kept + size > self.most_bytes:
            fullest = max(self.queues.values(), key=lambda queue: queue.bytes)
            raise RefusalError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The embedded Pub/Sub keeps at most {self.most_bytes:,} bytes, and has {kept:,}, of which "
                f"{fullest.bytes:,} wait in {fullest.settings.name}: pull and acknowledge its messages, seek "
                "it to now, or delete it",
            )

    def _queues_of(self, topic: str) -> list[Queue]:
        return [queue for queue in self.queues.values() if queue.settings.topic == topic]

    def create_subscription(self, subscription: Any) -> Any:
        """Makes a subscription, which gets what is published from now on."""
        rules.check_new(subscription.name, "subscriptions", self.queues)
        topic = rules.find(subscription.topic, "topics", self.topics)
        rules.complete(subscription, self.topics)
        if topic.HasField("message_retention_duration"):
            subscription.topic_message_retention_duration.CopyFrom(topic.message_retention_duration)
        self.queues[subscription.name] = Queue(subscription, self.clock, self._bury)
        return subscription

    def _bury(self, queue: Queue, message: Message, attempts: int) -> bool:
        """Publishes a message to the dead-letter topic, where it exists, with the attributes of Google."""
        topic = queue.settings.dead_letter_policy.dead_letter_topic
        if topic not in self.topics:
            return False
        dead = types.PubsubMessage.pb().FromString(message.data)
        _, project, _, name = queue.settings.name.split("/")
        dead.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(attempts)
        dead.attributes["CloudPubSubDeadLetterSourceSubscription"] = name
        dead.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = project
        dead.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = dead.publish_time.ToJsonString()
        self._put(topic, [dead], lambda size: None)
        return True

    def queue(self, name: str) -> Queue:
        """Returns the queue of a subscription."""
        queue: Queue = rules.find(name, "subscriptions", self.queues)
        return queue

    def get_subscription(self, request: Any) -> Any:
        """Returns a subscription."""
        return self.queue(request.subscription).settings

    def update_subscription(self, request: Any) -> Any:
        """Changes the settings that the mask names."""
        queue = self.queue(request.subscription.name)
        changed = rules.merge(queue.settings, request)
        rules.complete(changed, self.topics)
        queue.settings.CopyFrom(changed)
        return queue.settings

    def list_subscriptions(self, request: Any) -> Any:
        """Lists the subscriptions of a project."""
        queues, token = rules.page(request, f"{request.project}/subscriptions/", self.queues)
        settings = [queue.settings for queue in queues]
        return types.ListSubscriptionsResponse.pb()(subscriptions=settings, next_page_token=token)

    def delete_subscription(self, request: Any) -> Any:
        """Removes a subscription with its messages."""
        queue = self.queue(request.subscription)
        del self.queues[request.subscription]
        queue.wake()
        return Empty()

    async def pull(self, request: Any, seconds: float | None) -> Any:
        """Takes messages; waits for the first, unless the request says not to.

        Args:
          request: of the client.
          seconds: until the client's deadline. The answer comes before it, empty where nothing has come: an
            error at the deadline would end Beam's direct runner.
        """
        queue = self.queue(request.subscription)
        if request.max_messages < 1:
            raise refuse("max_messages", f"expected at least 1, got {request.max_messages}")
        most = min(request.max_messages, _MOST_PULLED)
        wait = _PULL_SECONDS if seconds is None else min(_PULL_SECONDS, seconds - _MARGIN_SECONDS)
        end = self.clock() + (0 if request.return_immediately else wait)
        while not (messages := queue.take(most)) and (left := end - self.clock()) > 0:
            await queue.wait(left)
            queue = self.queue(request.subscription)
        return types.PullResponse.pb()(received_messages=messages)

    def acknowledge(self, request: Any) -> Any:
        """Settles messages."""
        queue = self.queue(request.subscription)
        rules.check_ack_ids(request.ack_ids)
        queue.acknowledge(request.ack_ids)
        return Empty()

    def modify_ack_deadline(self, request: Any) -> Any:
        """Sets the end of leases."""
        queue = self.queue(request.subscription)
        rules.check_ack_ids(request.ack_ids)
        rules.check_range("ack_deadline_seconds", request.ack_deadline_seconds, (0, 600))
        queue.modify_deadlines(request.ack_ids, [request.ack_deadline_seconds] * len(request.ack_ids))
        return Empty()

    def seek(self, request: Any) -> Any:
        """Moves a subscription to a time."""
        queue = self.queue(request.subscription)
        if not request.HasField("time"):
            raise RefusalError(
                grpc.StatusCode.UNIMPLEMENTED if request.snapshot else grpc.StatusCode.INVALID_ARGUMENT,
                "The embedded Pub/Sub seeks to a time alone: expected time",
            )
        queue.seek(request.time.ToMicroseconds() / 1e6)
        return types.SeekResponse.pb()()

    async def streaming_pull(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Sends messages as they come, and reads acknowledgements, until the client closes its half."""
        first = await anext(requests, None)
        if first is None:
            return
        queue = self.queue(first.subscription)
        reader = Reader(0, first.max_outstanding_messages, first.max_outstanding_bytes)
        _read(queue, reader, first)
        reading = asyncio.ensure_future(_read_all(queue, reader, requests))
        try:
            while not reading.done():
                if messages := queue.take(reader.room(_MOST_PULLED), reader):
                    exact = queue.settings.enable_exactly_once_delivery
                    properties = {"exactly_once_delivery_enabled": exact}
                    yield types.StreamingPullResponse.pb()(
                        received_messages=messages, subscription_properties=properties
                    )
                else:
                    await queue.wait(_PULL_SECONDS)
                    if self.queue(first.subscription) is not queue:  # deleted, and made anew
                        return
            reading.result()
        finally:
            reading.cancel()


async def _read_all(queue: Queue, reader: Reader, requests: AsyncIterator[Any]) -> None:
    try:
        async for request in requests:
            _read(queue, reader, request)
    finally:
        queue.wake()


def _read(queue: Queue, reader: Reader, request: Any) -> None:
    """Does what a request of a stream asks for."""
    ids, seconds = request.modify_deadline_ack_ids, request.modify_deadline_seconds
    if len(ids) != len(seconds):
        raise refuse("modify_deadline_seconds", f"expected {len(ids)} for as many ids, got {len(seconds)}")
    for value in seconds:
        rules.check_range("modify_deadline_seconds", value, (0, 600))
    reader.lease_seconds = request.stream_ack_deadline_seconds or reader.lease_seconds
    rules.check_range("stream_ack_deadline_seconds", reader.lease_seconds, rules.LEASE_SECONDS)
    if request.ack_ids:
        queue.acknowledge(request.ack_ids)
    if ids:
        queue.modify_deadlines(ids, seconds)


METHODS: Final[Mapping[str, Mapping[str, tuple[Any, Callable[..., Any]]]]] = {
    "google.pubsub.v1.Publisher": {
        "CreateTopic": (types.Topic, Service.create_topic),
        "GetTopic": (types.GetTopicRequest, Service.get_topic),
        "ListTopics": (types.ListTopicsRequest, Service.list_topics),
        "ListTopicSubscriptions": (types.ListTopicSubscriptionsRequest, Service.list_topic_subscriptions),
        "DeleteTopic": (types.DeleteTopicRequest, Service.delete_topic),
        "Publish": (types.PublishRequest, Service.publish),
    },
    "google.pubsub.v1.Subscriber": {
        "CreateSubscription": (types.Subscription, Service.create_subscription),
        "GetSubscription": (types.GetSubscriptionRequest, Service.get_subscription),
        "UpdateSubscription": (types.UpdateSubscriptionRequest, Service.update_subscription),
        "ListSubscriptions": (types.ListSubscriptionsRequest, Service.list_subscriptions),
        "DeleteSubscription": (types.DeleteSubscriptionRequest, Service.delete_subscription),
        "Pull": (types.PullRequest, Service.pull),
        "StreamingPull": (types.StreamingPullRequest, Service.streaming_pull),
        "Acknowledge": (types.AcknowledgeRequest, Service.acknowledge),
        "ModifyAckDeadline": (types.ModifyAckDeadlineRequest, Service.modify_ack_deadline),
        "Seek": (types.SeekRequest, Service.seek),
    },
}


async def _abort(context: Any, error: RefusalError) -> None:
    trailers: tuple[tuple[str, bytes], ...] = ()
    if error.ack_ids:
        # Google's clients read there which of the ids failed. Trailers are limited to 8 KiB.
        named = [ack_id for ack_id in error.ack_ids if len(ack_id) < 400 and ack_id.isascii()][:10]
        reasons = dict.fromkeys(named, "PERMANENT_FAILURE_INVALID_ACK_ID")
        status = Status(code=error.code.value[0], message=str(error))
        status.details.add().Pack(ErrorInfo(metadata=reasons))
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(error.code, str(error), trailers)


def _handler(service: Service, request_type: Any, method: Callable[..., Any]) -> grpc.RpcMethodHandler:
    async def unary(request: Any, context: Any) -> Any:
        try:
            if method is Service.pull:
                return await method(service, request, context.time_remaining())
            return method(service, request)
        except RefusalError as error:
            await _abort(context, error)
        except ValueError as error:  # of protobuf's own types: a time beyond all years, a path of a mask
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Invalid argument: {error}")

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        try:
            async for response in method(service, requests):
                yield response
        except RefusalError as error:
            await _abort(context, error)

    read, write = request_type.pb().FromString, operator.methodcaller("SerializeToString")
    if method is Service.streaming_pull:
        return grpc.stream_stream_rpc_method_handler(stream, read, write)
    return grpc.unary_unary_rpc_method_handler(unary, read, write)


@dataclass(frozen=True)
class ServerOptions:
    """The options of one server process."""

    work_dir: Path = option(type=Path, metavar="DIR", help="directory for ready.json")
    port: int = option(0, metavar="PORT", help="default: 0, any free one")
    most_bytes: int = option(MOST_BYTES, metavar="N", help="bytes of messages kept (default: %(default)s)")


async def _serve(options: ServerOptions) -> None:
    # Without so_reuseport a second server on the same port is refused.
    limits = [("grpc.max_receive_message_length", _LARGEST_FRAME), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=limits)
    service = Service(options.most_bytes)
    for name, methods in METHODS.items():
        handlers = {short: _handler(service, *method) for short, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port(f"{HOST}:{options.port}")
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    await server.start()
    write_ready(options.work_dir, pubsub=port)
    await stopped.wait()
    await server.stop(_STOP_SECONDS)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM or SIGINT."""
    parser = Parser("python -m local.pubsub_server", __doc__)
    add_options(parser, ServerOptions)
    asyncio.run(_serve(read_options(ServerOptions, parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A topic and its subscription, with short calls."""

import time
from dataclasses import dataclass

from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient, types

PROJECT = "projects/local-project"


NOWHERE = f"{PROJECT}/topics/nowhere"


NO_SUBSCRIPTION = f"{PROJECT}/subscriptions/nowhere"


ONCE = {"retry": None, "timeout": 30}


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

"""Topics and subscriptions, made by Google's own client, which finds the emulator by PUBSUB_EMULATOR_HOST."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from google.api_core.exceptions import AlreadyExists, NotFound
from google.cloud.pubsub_v1.types import PullRequest, ReceivedMessage, Subscription

from common.pubsub import publisher_client, subscriber_client


def create_topic(project: str, topic: str) -> str:
    """Creates a topic where there is none, and returns "projects/PROJECT/topics/TOPIC"."""
    publisher = publisher_client()
    name = publisher.topic_path(project, topic)
    try:
        publisher.create_topic(name=name)
    except AlreadyExists:
        pass
    finally:
        publisher.transport.close()
    return name


def create_subscription(project: str, subscription: str, topic: str, ack_deadline_seconds: int = 60) -> str:
    """Creates a pull subscription where there is none.

    Args:
      project: The project id.
      subscription: The id of the subscription.
      topic: The full name of its topic, as `create_topic` returns it.
      ack_deadline_seconds: Seconds until a message that was not acknowledged comes again, 10 to 600.

    Returns:
      "projects/PROJECT/subscriptions/SUBSCRIPTION".
    """
    with subscriber_client() as subscriber:
        name = subscriber.subscription_path(project, subscription)
        request = Subscription(name=name, topic=topic, ack_deadline_seconds=ack_deadline_seconds)
        with contextlib.suppress(AlreadyExists):
            subscriber.create_subscription(request)
        return name


def take(
    subscription: str, all_in: Callable[[list[ReceivedMessage]], bool], timeout: float = 20.0
) -> list[ReceivedMessage]:
    """Pulls and acknowledges the messages that wait in a subscription.

    Args:
      subscription: "projects/PROJECT/subscriptions/SUBSCRIPTION".
      all_in: while it returns False, an answer without messages is not the end.
      timeout: seconds after which such an answer is the end.
    """
    messages: list[ReceivedMessage] = []
    deadline = time.monotonic() + timeout
    with subscriber_client() as client:
        while True:
            # The client's own method warns of this flag, the only way not to wait for more.
            request = PullRequest(subscription=subscription, max_messages=1000, return_immediately=True)
            pulled = client.transport.pull(request, timeout=10).received_messages
            if pulled:
                ack_ids = [message.ack_id for message in pulled]
                client.acknowledge(subscription=subscription, ack_ids=ack_ids)
                messages += pulled
            elif all_in(messages) or time.monotonic() > deadline:
                return messages
            else:
                time.sleep(0.1)


def delete(*names: str) -> None:
    """Deletes topics and subscriptions by full name; one that does not exist is no error."""
    publisher = publisher_client()
    with subscriber_client() as subscriber:
        for name in names:
            try:
                if "/subscriptions/" in name:
                    subscriber.delete_subscription(subscription=name)
                else:
                    publisher.delete_topic(topic=name)
            except NotFound:
                pass
    publisher.transport.close()

"""Topics and subscriptions, made by Google's own client, which finds the emulator by PUBSUB_EMULATOR_HOST."""

from __future__ import annotations

import contextlib

from google.api_core.exceptions import AlreadyExists, NotFound
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.types import Subscription


def create_topic(project: str, topic: str) -> str:
    """Create a topic, or find that it is there. Returns "projects/PROJECT/topics/TOPIC"."""
    publisher = PublisherClient()
    name = publisher.topic_path(project, topic)
    try:
        publisher.create_topic(name=name)
    except AlreadyExists:
        pass
    finally:
        publisher.transport.close()
    return name


def create_subscription(project: str, subscription: str, topic: str, ack_deadline_seconds: int = 60) -> str:
    """Create a pull subscription, or find that it is there.

    Args:
      project: The project id.
      subscription: The id of the subscription.
      topic: The full name of its topic, as `create_topic` returns it.
      ack_deadline_seconds: How long a message that was pulled and not acknowledged stays away, 10 to 600.

    Returns:
      "projects/PROJECT/subscriptions/SUBSCRIPTION".
    """
    with SubscriberClient() as subscriber:
        name = subscriber.subscription_path(project, subscription)
        request = Subscription(name=name, topic=topic, ack_deadline_seconds=ack_deadline_seconds)
        with contextlib.suppress(AlreadyExists):
            subscriber.create_subscription(request)
        return name


def delete(*names: str) -> None:
    """Delete topics and subscriptions by full name; one that is gone already is no error."""
    publisher = PublisherClient()
    with SubscriberClient() as subscriber:
        for name in names:
            try:
                if "/subscriptions/" in name:
                    subscriber.delete_subscription(subscription=name)
                else:
                    publisher.delete_topic(topic=name)
            except NotFound:
                pass
    publisher.transport.close()

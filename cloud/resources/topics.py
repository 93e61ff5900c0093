"""Pub/Sub topics and subscriptions."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from google.api_core.exceptions import AlreadyExists, NotFound
from google.protobuf import duration_pb2

from cloud.resources.base import LABEL, MISSING, Clients, Resource, State, differences, has_label

_BACKOFF: Final = (10, 600)
"""Least and greatest seconds before an alert that nobody acknowledged comes again."""


@dataclass(frozen=True)
class Topic(Resource):
    """A topic.

    Attributes:
      retention: how long published messages can be replayed by a seek; None keeps none for that.
      kms_key: full name of the key that encrypts messages; Google's own when empty.
    """

    kind: ClassVar[str] = "topic"
    creator_role: ClassVar[str] = "roles/pubsub.editor"
    emulated: ClassVar[bool] = True

    retention: dt.timedelta | None = None
    kms_key: str = ""

    def inspect(self, clients: Clients) -> State:
        """Compares the retention and the key."""
        try:
            topic = clients.publisher.get_topic(topic=self.name)
        except NotFound:
            return MISSING
        actual = {"retention": topic.message_retention_duration or None, "key": topic.kms_key_name or None}
        declared = {"retention": self.retention, **({"key": self.kms_key} if self.kms_key else {})}
        return State.of(differences(actual, declared, fixed=("key",)))

    def create(self, clients: Clients) -> None:
        """Makes the topic."""
        with contextlib.suppress(AlreadyExists):
            clients.publisher.create_topic(request=self._request())

    def repair(self, clients: Clients, state: State) -> None:
        """Sets the retention; a topic keeps its key."""
        state.refuse_fixed(
            f"topic {self.name}",
            f"Delete it with `gcloud pubsub topics delete {self.name}`, which cuts its subscriptions off, "
            "and create it again; or pass another --prefix.",
        )
        clients.publisher.update_topic(
            request={"topic": self._request(), "update_mask": {"paths": ["message_retention_duration"]}}
        )

    def owned(self, clients: Clients) -> bool:
        """Looks for the label."""
        return has_label(clients.publisher.get_topic(topic=self.name).labels)

    def delete(self, clients: Clients) -> None:
        """Removes the topic."""
        with contextlib.suppress(NotFound):
            clients.publisher.delete_topic(topic=self.name)

    def _request(self) -> dict[str, Any]:
        request: dict[str, Any] = {"name": self.name, "labels": LABEL}
        if self.retention:
            request["message_retention_duration"] = self.retention
        if self.kms_key:
            request["kms_key_name"] = self.kms_key
        return request


@dataclass(frozen=True)
class Subscription(Resource):
    """A pull subscription that never expires.

    Attributes:
      topic: full name of its topic.
      ack_deadline: time until a message that was pulled and not acknowledged comes again.
      retention: how long an unread message is kept, at most 31 days.
      exactly_once: no redelivery of an acknowledged message, for consumers that act on a message. Dataflow
        needs none: it deduplicates by itself, and this setting costs it parallelism.
      dead_letter_topic: full name of the topic for messages that nobody acknowledged in `max_attempts`
        deliveries. Dataflow needs none: it may return a message for reasons of its own.
      max_attempts: 5 to 100.
    """

    kind: ClassVar[str] = "subscription"
    creator_role: ClassVar[str] = "roles/pubsub.editor"
    emulated: ClassVar[bool] = True
    is_last: ClassVar[bool] = True

    topic: str = ""
    ack_deadline: dt.timedelta = dt.timedelta(seconds=60)
    retention: dt.timedelta = dt.timedelta(days=7)
    exactly_once: bool = False
    dead_letter_topic: str | None = None
    max_attempts: int = 5

    def inspect(self, clients: Clients) -> State:
        """Compares every declared setting."""
        try:
            subscription = clients.subscriber.get_subscription(subscription=self.name)
        except NotFound:
            return MISSING
        dead = subscription.dead_letter_policy
        retry = subscription.retry_policy if "retry_policy" in subscription else None
        actual = {
            "topic": subscription.topic,
            "ack_deadline_seconds": subscription.ack_deadline_seconds,
            "message_retention_duration": subscription.message_retention_duration,
            "enable_exactly_once_delivery": subscription.enable_exactly_once_delivery,
            "dead_letter_policy": f"{dead.dead_letter_topic} after {dead.max_delivery_attempts} attempts"
            if dead.dead_letter_topic
            else None,
            "retry_policy": f"{retry.minimum_backoff.seconds} to {retry.maximum_backoff.seconds} s"
            if retry
            else None,
            "push_config": subscription.push_config.push_endpoint or None,
            "filter": subscription.filter or None,
            # An empty policy, which is not the absence of one, says "never".
            "expiration_policy": "never"
            if "expiration_policy" in subscription and not subscription.expiration_policy.ttl
            else "after idle days",
        }
        declared = {
            "topic": self.topic,
            "ack_deadline_seconds": int(self.ack_deadline.total_seconds()),
            "message_retention_duration": self.retention,
            "enable_exactly_once_delivery": self.exactly_once,
            "dead_letter_policy": f"{self.dead_letter_topic} after {self.max_attempts} attempts"
            if self.dead_letter_topic
            else None,
            "retry_policy": "{} to {} s".format(*_BACKOFF) if self.dead_letter_topic else None,
            "push_config": None,
            "filter": None,
            "expiration_policy": "never",
        }
        return State.of(differences(actual, declared, fixed=("topic", "filter")))

    def create(self, clients: Clients) -> None:
        """Makes the subscription."""
        with contextlib.suppress(AlreadyExists):
            clients.subscriber.create_subscription(request=self._request())

    def repair(self, clients: Clients, state: State) -> None:
        """Sets the settings that differ, except topic and filter, which a subscription keeps."""
        # gcloud would look for it at Google.
        how = (
            "Stop the emulators, which keep no messages, and start them again"
            if clients.emulators
            else f"Delete it with `gcloud pubsub subscriptions delete {self.name}`, which loses its unread "
            "messages"
        )
        state.refuse_fixed(f"subscription {self.name}", f"{how}, and create it again.")
        paths = [difference.field for difference in state.differences]
        request = {"subscription": self._request(), "update_mask": {"paths": paths}}
        clients.subscriber.update_subscription(request=request)

    def owned(self, clients: Clients) -> bool:
        """Looks for the label."""
        return has_label(clients.subscriber.get_subscription(subscription=self.name).labels)

    def delete(self, clients: Clients) -> None:
        """Removes the subscription with its unread messages."""
        with contextlib.suppress(NotFound):
            clients.subscriber.delete_subscription(subscription=self.name)

    def _request(self) -> dict[str, Any]:
        request: dict[str, Any] = {
            "name": self.name,
            "topic": self.topic,
            "ack_deadline_seconds": int(self.ack_deadline.total_seconds()),
            "message_retention_duration": duration_pb2.Duration(seconds=int(self.retention.total_seconds())),
            "enable_exactly_once_delivery": self.exactly_once,
            "expiration_policy": {},
            "labels": LABEL,
        }
        if self.dead_letter_topic:
            request["dead_letter_policy"] = {
                "dead_letter_topic": self.dead_letter_topic,
                "max_delivery_attempts": self.max_attempts,
            }
            request["retry_policy"] = {
                "minimum_backoff": {"seconds": _BACKOFF[0]},
                "maximum_backoff": {"seconds": _BACKOFF[1]},
            }
        return request

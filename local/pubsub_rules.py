"""The rules of the embedded Pub/Sub: names, limits, defaults and settings, with errors in Google's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from common.names import SUBSCRIPTION, TOPIC

LEASE_SECONDS: Final = (10, 600)
TOPIC_FIELDS: Final = frozenset({"name", "labels", "message_retention_duration"})
SUBSCRIPTION_FIELDS: Final = frozenset(
    {
        *("name", "topic", "labels", "push_config", "ack_deadline_seconds", "message_retention_duration"),
        *("retain_acked_messages", "enable_message_ordering", "enable_exactly_once_delivery"),
        *("expiration_policy", "dead_letter_policy", "retry_policy", "topic_message_retention_duration"),
    }
)
_FIXED_FIELDS: Final = frozenset({"name", "topic", "enable_message_ordering"})
_LARGEST_REQUEST: Final = 10 * 1024 * 1024
_MOST_MESSAGES: Final = 1000
_RETENTION_SECONDS: Final = (600, 31 * 24 * 3600)
_ATTEMPTS: Final = (5, 100)
_BACKOFF_SECONDS: Final = (0, 600)
_DEFAULT_RETENTION: Final = 7 * 24 * 3600
_KINDS: Final = {"topics": TOPIC, "subscriptions": SUBSCRIPTION}


class RefusalError(Exception):
    """An answer other than OK.

    Attributes:
      code: The status.
      ack_ids: The acknowledgement ids that are the reason.
    """

    def __init__(self, code: grpc.StatusCode, text: str, ack_ids: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.ack_ids = ack_ids


def refuse(argument: str, reason: str) -> RefusalError:
    """Makes the answer to a wrong argument."""
    return RefusalError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"You have passed an invalid argument to the service (argument={argument}): {reason}",
    )


def invalid_ack_ids(ack_ids: Sequence[str]) -> RefusalError:
    """Makes the answer to ids that a subscription has not given, or that have expired."""
    text = (
        "Some acknowledgement ids in the request were invalid. This could be because the acknowledgement ids "
        "have expired or the acknowledgement ids were malformed."
    )
    return RefusalError(grpc.StatusCode.INVALID_ARGUMENT, text, ack_ids)


def check_name(name: str, kind: str) -> None:
    """Refuses the name of a topic or of a subscription that breaks a rule."""
    if problem := _KINDS[kind].problem(name):
        raise RefusalError(
            grpc.StatusCode.INVALID_ARGUMENT, f"Invalid resource name given (name={name[:300]}): {problem}"
        )


def check_new(name: str, kind: str, existing: Mapping[str, Any]) -> None:
    """Refuses a name that breaks a rule or is taken."""
    check_name(name, kind)
    if name in existing:
        raise RefusalError(
            grpc.StatusCode.ALREADY_EXISTS,
            f"Resource already exists in the project (resource={name.split('/')[-1]}).",
        )


def find(name: str, kind: str, existing: Mapping[str, Any]) -> Any:
    """Returns the resource of a name."""
    if name not in existing:
        check_name(name, kind)
        raise RefusalError(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name.split('/')[-1]}).")
    return existing[name]


def page(request: Any, prefix: str, existing: Mapping[str, Any]) -> tuple[list[Any], str]:
    """Returns the resources of one page, by name, and the token of the next one."""
    if request.page_size < 0:
        raise refuse("page_size", f"expected at least 0, got {request.page_size}")
    names = sorted(name for name in existing if name.startswith(prefix) and name >= request.page_token)
    size = request.page_size or len(names)
    return [existing[name] for name in names[:size]], "".join(names[size : size + 1])


def check_fields(message: Any, served: frozenset[str]) -> None:
    """Refuses settings that the server does not have."""
    for name in sorted({field.name for field, _ in message.ListFields()} - served):
        raise RefusalError(
            grpc.StatusCode.UNIMPLEMENTED, f"The embedded Pub/Sub does not have {name}: leave it out"
        )


def check_range(name: str, value: float, bounds: tuple[int, int]) -> None:
    """Refuses a number outside its bounds."""
    if not bounds[0] <= value <= bounds[1]:
        raise refuse(name, f"expected {bounds[0]} to {bounds[1]}, got {value}")


def check_ack_ids(ack_ids: Sequence[str]) -> None:
    """Refuses a request without ids."""
    if not ack_ids:
        raise refuse("ack_ids", "expected at least 1, got none")


def check_messages(request: Any) -> None:
    """Refuses a request to publish that breaks a limit."""
    if not 1 <= len(request.messages) <= _MOST_MESSAGES:
        raise refuse("messages", f"expected 1 to {_MOST_MESSAGES}, got {len(request.messages)}")
    if request.ByteSize() > _LARGEST_REQUEST + 1024:
        raise RefusalError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"Request payload size exceeds the limit: {_LARGEST_REQUEST} bytes.",
        )
    for message in request.messages:
        _check_message(message)


def _check_message(message: Any) -> None:
    attributes = message.attributes
    if not message.data and not attributes:
        raise refuse("messages", "expected data or attributes in each message, got neither")
    if not attributes and not message.ordering_key:
        return
    if len(attributes) > 100:
        raise refuse("attributes", f"expected at most 100, got {len(attributes)}")
    for key, value in attributes.items():
        if not 0 < len(key.encode()) <= 256 or key.startswith("goog"):
            raise refuse("attributes", "expected keys of 1 to 256 bytes that do not begin with goog")
        if len(value.encode()) > 1024:
            raise refuse("attributes", "expected values of at most 1024 bytes")
    if len(message.ordering_key.encode()) > 1024:
        raise refuse("ordering_key", "expected at most 1024 bytes")


def complete(subscription: Any, topics: Mapping[str, Any]) -> None:
    """Checks the settings of a subscription, and sets Google's defaults."""
    check_fields(subscription, SUBSCRIPTION_FIELDS)
    if subscription.push_config.ListFields():
        raise RefusalError(grpc.StatusCode.UNIMPLEMENTED, "The embedded Pub/Sub does not push: pull instead")
    subscription.push_config.SetInParent()
    subscription.ack_deadline_seconds = subscription.ack_deadline_seconds or LEASE_SECONDS[0]
    check_range("ack_deadline_seconds", subscription.ack_deadline_seconds, LEASE_SECONDS)
    retention = subscription.message_retention_duration
    retention.seconds = retention.seconds or _DEFAULT_RETENTION
    check_range("message_retention_duration", retention.seconds, _RETENTION_SECONDS)
    if subscription.HasField("dead_letter_policy"):
        dead = subscription.dead_letter_policy
        find(dead.dead_letter_topic, "topics", topics)
        dead.max_delivery_attempts = dead.max_delivery_attempts or _ATTEMPTS[0]
        check_range("max_delivery_attempts", dead.max_delivery_attempts, _ATTEMPTS)
    if subscription.HasField("retry_policy"):
        retry = subscription.retry_policy
        for name, default in (("minimum_backoff", 10), ("maximum_backoff", 600)):
            if not retry.HasField(name):
                getattr(retry, name).seconds = default
            check_range(name, getattr(retry, name).ToMilliseconds() / 1000, _BACKOFF_SECONDS)


def merge(settings: Any, request: Any) -> Any:
    """Returns a copy of the settings with the changes that an UpdateSubscriptionRequest names."""
    paths = list(request.update_mask.paths)
    if not paths:
        raise refuse("update_mask", "expected at least one path, got none")
    known = settings.DESCRIPTOR.fields_by_name
    for path in paths:
        if path.split(".")[0] not in known:
            raise refuse("update_mask", f"expected fields of Subscription, got {path[:300]}")
        if path in _FIXED_FIELDS:
            raise refuse("update_mask", f"expected fields that can be changed, got {path}")
    changed = type(settings)()
    changed.CopyFrom(settings)
    FieldMask(paths=paths).MergeMessage(request.subscription, changed, True, True)
    return changed

"""Pulls from one Pub/Sub subscription, and acknowledges messages after their processing."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import grpc
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.utils.timestamp import Timestamp
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud.pubsub_v1 import SubscriberClient
from google.pubsub_v1.types import AcknowledgeRequest, PullRequest, PullResponse, ReceivedMessage

_LOGGER = logging.getLogger(__name__)
_LEASE_SECONDS = 30
_RENEW_SECONDS = 5.0
_ACK_IDS_PER_REQUEST = 1000
_GATHER_SECONDS = 0.05
_FULL_ANSWER = 100
"""Messages of the largest answer of Google's emulator, whatever a request asks for."""
_OUTAGE_SECONDS = 30.0
_CLOSE_SECONDS = 3.0
"""For all that is tried at the end, by all subscriptions of a pipeline."""
_ACK_SECONDS = 30.0
_TRANSIENT = (
    exceptions.ServiceUnavailable,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.Aborted,
    exceptions.TooManyRequests,
)


@dataclass
class Subscription:
    """One subscription that a running pipeline reads.

    Messages stay leased until `acknowledge`: after an earlier crash they come again within 30 s. One thread
    pulls. google-cloud-pubsub's own streaming pull has callbacks on its threads, and Beam's worker must pull.

    Attributes:
      client: Google's client; the caller closes it.
      name: "projects/P/subscriptions/S".
      topic: The topic of a temporary subscription, which `open` creates and `close` deletes; otherwise None.
      max_messages: The most messages that one pull returns.
    """

    client: SubscriberClient
    name: str
    topic: str | None
    max_messages: int
    _pulled: collections.deque[tuple[float, list[str]]] = field(default_factory=collections.deque, init=False)
    _acknowledging: list[tuple[list[str], grpc.Future]] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _renewer: threading.Thread | None = field(default=None, init=False)
    _failing_since: float | None = field(default=None, init=False)

    @classmethod
    def temporary(cls, client: SubscriberClient, project: str, topic: str, max_messages: int) -> Subscription:
        """Makes a subscription to `topic` ("projects/P/topics/T") that lasts as long as a pipeline."""
        name = client.subscription_path(project, f"beam-local-{uuid.uuid4().hex[:16]}")
        return cls(client, name, topic, max_messages)

    def open(self) -> None:
        """Creates the subscription if it is a temporary one, and starts to renew leases."""
        if self.topic is not None:
            self.client.create_subscription(
                request={"name": self.name, "topic": self.topic, "ack_deadline_seconds": _LEASE_SECONDS}
            )
        self._renewer = threading.Thread(target=self._renew, name=f"leases of {self.name}", daemon=True)
        self._renewer.start()

    def pull(self) -> Sequence[ReceivedMessage]:
        """Pulls what is there now, up to `max_messages`, as protobuf messages, and does not wait for more.

        An answer that is not full has taken all that was there. The next bundle takes what comes meanwhile:
        to ask again until nothing comes would let each message wait for those behind it.

        Raises:
          GoogleAPICallError: the request is wrong, or Pub/Sub has not answered for 30 s.
        """
        messages: list[ReceivedMessage] = []
        deadline = time.monotonic() + _GATHER_SECONDS
        while len(messages) < self.max_messages and time.monotonic() < deadline:
            answer = self._pull_once(self.max_messages - len(messages))
            messages.extend(answer)
            if len(answer) < _FULL_ANSWER:
                break
        if messages:
            with self._lock:
                self._pulled.append((time.monotonic(), [message.ack_id for message in messages]))
        return messages

    def _pull_once(self, count: int) -> Sequence[ReceivedMessage]:
        # Deprecated, and the only way to ask for what is there without waiting for more. The client's method
        # would warn at every call; the call underneath it does not.
        request = PullRequest(subscription=self.name, max_messages=count, return_immediately=True)
        try:
            try:
                answer = self.client.transport.pull(request, timeout=10)
            except grpc.RpcError as error:
                raise exceptions.from_grpc_error(error) from error
        except _TRANSIENT as error:
            self._failing_since = self._failing_since or time.monotonic()
            if time.monotonic() - self._failing_since > _OUTAGE_SECONDS:
                raise
            _LOGGER.warning("A pull failed, will try again: %s", error)
            self._stopped.wait(0.5)
            return ()
        self._failing_since = None
        # The wrapped form costs ten times as much to read.
        messages: Sequence[ReceivedMessage] = PullResponse.pb(answer).received_messages
        return messages

    def acknowledge(self, older_than: float = 0.0) -> None:
        """Acknowledges what was pulled at least `older_than` seconds ago; see `confirm` for the answers.

        It does not wait: with the answer to a pull and to an append, that would be a third of the time of a
        small bundle.
        """
        self.confirm()
        limit = time.monotonic() - older_than
        with self._lock:
            ack_ids: list[str] = []
            while self._pulled and self._pulled[0][0] <= limit:
                ack_ids.extend(self._pulled.popleft()[1])
        for chunk in _chunks(ack_ids):
            request = AcknowledgeRequest(subscription=self.name, ack_ids=chunk)
            self._acknowledging.append(
                (chunk, self.client.transport.acknowledge.future(request, timeout=_ACK_SECONDS))
            )

    def confirm(self) -> None:
        """Waits for the answers to the last `acknowledge`, and repeats what has failed until `stop`.

        Raises:
          GoogleAPICallError: it has failed again, for 30 s where that may pass; the messages come again.
        """
        while self._acknowledging:
            chunk, answer = self._acknowledging.pop(0)
            try:
                answer.result()
            except grpc.RpcError as error:
                _LOGGER.warning("Could not acknowledge messages, will try again: %s", error)
                try:
                    self.client.acknowledge(
                        subscription=self.name, ack_ids=chunk, retry=self._retry(), timeout=_ACK_SECONDS
                    )
                except exceptions.GoogleAPICallError as error:
                    if not self._stopped.is_set():
                        raise
                    _LOGGER.warning("Could not acknowledge messages, they come again: %s", error)

    def _retry(self) -> Retry:
        def may_pass(error: Exception) -> bool:
            return isinstance(error, _TRANSIENT) and not self._stopped.is_set()

        return Retry(predicate=may_pass, initial=0.1, maximum=1.0, timeout=_OUTAGE_SECONDS)

    def stop(self) -> None:
        """Ends the renewal of leases, and every wait for a Pub/Sub that refuses."""
        self._stopped.set()

    def close(self, deadline: float | None = None) -> None:
        """Returns messages that were not acknowledged to Pub/Sub, and deletes a temporary subscription.

        Each is tried once: without an answer from Pub/Sub, leases run out by themselves.

        Args:
          deadline: A time (time.monotonic) after which nothing is waited for; None: in 3 s.
        """

        def left() -> float:
            return max(0.0, end - time.monotonic())

        end = time.monotonic() + _CLOSE_SECONDS if deadline is None else deadline
        self.stop()
        if self._renewer is not None:
            self._renewer.join(left())
        try:
            for _, answer in self._acknowledging:
                with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError):
                    answer.result(timeout=left())
            self._set_deadlines(0, timeout=left())
            self._pulled.clear()
            if self.topic is not None:
                self.client.delete_subscription(subscription=self.name, retry=None, timeout=left())
        except exceptions.GoogleAPICallError as error:
            _LOGGER.warning("Could not clean up %s: %s", self.name, error)

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEW_SECONDS):
            try:
                self._set_deadlines(_LEASE_SECONDS, timeout=_RENEW_SECONDS)
            except exceptions.GoogleAPICallError as error:
                _LOGGER.warning("Could not renew the leases of %s: %s", self.name, error)

    def _set_deadlines(self, seconds: int, timeout: float) -> None:
        """Tries once: the next renewal comes soon."""
        with self._lock:
            ack_ids = [ack_id for _, ids in self._pulled for ack_id in ids]
        for chunk in _chunks(ack_ids):
            self.client.modify_ack_deadline(
                subscription=self.name,
                ack_ids=chunk,
                ack_deadline_seconds=seconds,
                retry=None,
                timeout=timeout,
            )


def close_all(subscriptions: Collection[Subscription]) -> None:
    """Closes the subscriptions of a pipeline, in 3 s at most where Pub/Sub does not answer."""
    deadline = time.monotonic() + _CLOSE_SECONDS
    for subscription in subscriptions:
        subscription.close(deadline)


def _chunks(ack_ids: list[str]) -> list[list[str]]:
    return [ack_ids[i : i + _ACK_IDS_PER_REQUEST] for i in range(0, len(ack_ids), _ACK_IDS_PER_REQUEST)]


def to_beam(received: ReceivedMessage, timestamp_attribute: str | None) -> tuple[Timestamp, PubsubMessage]:
    """Makes the event time and Beam's element from a received protobuf message.

    The event time is in the attribute (RFC 3339, or milliseconds since 1970). Without one that can be read,
    it is the publish time: a source that raises would stop the pipeline for good.
    """
    message = received.message
    attributes = dict(message.attributes)
    published = Timestamp(message.publish_time.seconds, message.publish_time.nanos // 1000)
    element = PubsubMessage(
        message.data,
        attributes,
        message.message_id,
        published.to_utc_datetime(has_tz=True),
        message.ordering_key,
    )
    text = attributes.get(timestamp_attribute) if timestamp_attribute else None
    return _parse_time(text, published) if text is not None else published, element


def _parse_time(text: str, default: Timestamp) -> Timestamp:
    try:
        return Timestamp(micros=int(text) * 1000)
    except ValueError:
        pass
    try:
        return Timestamp.from_rfc3339(text)
    except ValueError:
        _LOGGER.warning("Event time %r of a message cannot be read; its publish time is taken instead", text)
        return default

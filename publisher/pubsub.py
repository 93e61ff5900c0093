"""A Pub/Sub topic as a destination.

Messages go out in the Publish RPC itself, up to 1,000 a request, a few requests at a time. The batching
publisher of google-cloud-pubsub makes a future for every message and takes several times as long
(benchmarks/publisher.py measures both).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import grpc
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.api_core.timeout import ConstantTimeout
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.types import PublishRequest, PubsubMessage

from common.connections import insecure_channel
from common.names import TOPIC
from common.pubsub import EMULATOR_VARIABLE
from publisher.messages import Outgoing
from publisher.sink import PublishError, Receipt

MAX_REQUEST_MESSAGES: Final = 1_000
MAX_REQUEST_BYTES: Final = 5_000_000
"""Pub/Sub takes 1,000 messages and 10 MB a request; framing counts too, hence the margin."""

_TRANSIENT: Final = (
    exceptions.Aborted,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
    exceptions.Unknown,
)
_ATTEMPT_SECONDS: Final = 20.0

# The protobuf classes themselves: their wrappers cost several microseconds a message.
_Message = PubsubMessage.pb()
_Request = PublishRequest.pb()


class PubSubTopic:
    """Publishes to one topic; see publisher.sink.Sink.

    Args:
      topic: "projects/PROJECT/topics/TOPIC".
      timeout: seconds after which a request, retries included, has failed.
      workers: requests on their way at a time.
      client: a client to use; None makes one, for the emulator where PUBSUB_EMULATOR_HOST is set.

    Raises:
      OptionError: the name of the topic breaks a rule.
      PublishError: there are no Google credentials.
    """

    def __init__(
        self, topic: str, timeout: float = 60.0, workers: int = 2, client: PublisherClient | None = None
    ) -> None:
        self.destination = TOPIC.check(topic, "--topic")
        self._client = client or _make_client()
        self._owns_client = client is None
        self._attempt_timeout = ConstantTimeout(min(timeout, _ATTEMPT_SECONDS))
        self._retry = Retry(
            if_exception_type(*_TRANSIENT), initial=0.1, maximum=5.0, multiplier=2.0, timeout=timeout
        )
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="publish")
        self._under_way: deque[tuple[Future[int], Outgoing]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._owns_client:
            self._client.transport.close()

    def send(self, messages: Outgoing) -> Sequence[Receipt]:
        """See Sink. Waits while twice as many requests as workers are under way."""
        receipts: list[Receipt] = []
        for portion in split(messages):
            while len(self._under_way) >= 2 * self._workers:
                receipts.append(self._next_receipt())
            self._under_way.append((self._pool.submit(self._publish, portion), portion))
        return [*receipts, *self.poll()]

    def poll(self) -> Sequence[Receipt]:
        """See Sink."""
        receipts = []
        while self._under_way and self._under_way[0][0].done():
            receipts.append(self._next_receipt())
        return receipts

    def flush(self) -> Sequence[Receipt]:
        """See Sink. Takes `timeout` for each request under way at most."""
        receipts = []
        while self._under_way:
            receipts.append(self._next_receipt())
        return receipts

    def _next_receipt(self) -> Receipt:
        future, messages = self._under_way.popleft()
        try:
            confirmed = future.result()
        except (exceptions.GoogleAPIError, GoogleAuthError, grpc.RpcError) as error:
            return Receipt(messages, explain(error, self.destination))
        if confirmed != len(messages):
            text = f"{self.destination}: {confirmed} ids came back for {len(messages)} messages"
            return Receipt(messages, PublishError(text, fatal=True))
        return Receipt(messages)

    def _publish(self, messages: Outgoing) -> int:
        pairs = zip(messages.payloads, messages.attributes, strict=True)
        request = _Request(
            topic=self.destination, messages=[_Message(data=data, attributes=pair) for data, pair in pairs]
        )
        response = self._client.publish(
            PublishRequest(request), retry=self._retry, timeout=self._attempt_timeout
        )
        return len(response.message_ids)


def split(messages: Outgoing) -> Iterator[Outgoing]:
    """Portions of `messages` that fit into one request each."""
    start, size = 0, 0
    for i, (payload, attributes) in enumerate(zip(messages.payloads, messages.attributes, strict=True)):
        more = len(payload)
        for key, value in attributes.items():
            more += len(key.encode()) + len(value.encode())
        if i > start and (i - start == MAX_REQUEST_MESSAGES or size + more > MAX_REQUEST_BYTES):
            yield messages.slice(start, i)
            start, size = i, 0
        size += more
    if start < len(messages):
        yield messages.slice(start, len(messages))


def explain(error: Exception, topic: str) -> PublishError:
    """Says what went wrong with a topic, and what to do about it."""
    if isinstance(error, exceptions.NotFound):
        project, name = TOPIC.split(topic).values()
        create = f"gcloud pubsub topics create {name} --project={project}"
        if os.environ.get(EMULATOR_VARIABLE):
            create += f" (or, on the emulator at {os.environ[EMULATOR_VARIABLE]}, by any Pub/Sub client)"
        return PublishError(f"{topic} does not exist; create it: {create}", fatal=True)
    if isinstance(error, exceptions.PermissionDenied | exceptions.Unauthenticated | GoogleAuthError):
        return PublishError(
            f"{topic}: not allowed to publish; grant roles/pubsub.publisher on it to this account "
            f"(set by GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login): {error}",
            fatal=True,
        )
    transient = isinstance(error, (*_TRANSIENT, exceptions.RetryError))
    return PublishError(f"{topic}: {type(error).__name__}: {error}", fatal=not transient)


def _make_client() -> PublisherClient:
    host = os.environ.get(EMULATOR_VARIABLE)
    if host:
        return PublisherClient(transport=PublisherGrpcTransport(channel=insecure_channel(host)))
    try:
        return PublisherClient()
    except GoogleAuthError as error:
        raise PublishError(
            "No Google credentials: run `gcloud auth application-default login`, set "
            f"GOOGLE_APPLICATION_CREDENTIALS, or set {EMULATOR_VARIABLE} to use an emulator ({error})",
            fatal=True,
        ) from error

"""A Pub/Sub service in this process that answers as it is told to: for failures that no emulator produces."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.types import PublishRequest, PublishResponse

Answer = Callable[[int, bytes], grpc.StatusCode | None]
"""From the number of the call, from 0, and its first payload to the error to answer with; None is success."""


class Service:
    """The messages that arrived, and a client that is connected to the service."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls = itertools.count()
        self.received: list[list[bytes]] = []
        self.client: PublisherClient

    def publish(self, request: object, context: grpc.ServicerContext) -> object:
        payloads = [message.data for message in request.messages]
        error = self.answer(next(self.calls), payloads[0])
        if error is not None:
            context.abort(error, "as the test wants it")
        self.received.append(payloads)
        return PublishResponse.pb()(message_ids=[str(i) for i in range(len(payloads))])


@contextlib.contextmanager
def serve(answer: Answer) -> Iterator[Service]:
    service = Service(answer)
    handler = grpc.unary_unary_rpc_method_handler(
        service.publish,
        request_deserializer=PublishRequest.pb().FromString,
        response_serializer=PublishResponse.pb().SerializeToString,
    )
    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 20_000_000)]
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            service.client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            yield service
    finally:
        server.stop(None).wait()

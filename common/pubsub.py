"""Google's Pub/Sub clients, connected directly to an emulator on this machine whatever proxy is set."""

from __future__ import annotations

import os
from typing import Final

from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from common.connections import insecure_channel

EMULATOR_VARIABLE: Final = "PUBSUB_EMULATOR_HOST"


_NO_LIMIT: Final = (("grpc.max_receive_message_length", -1),)
"""A message has up to 10 MB, and gRPC refuses answers of more than 4 MB unless it is told otherwise."""


def publisher_client() -> PublisherClient:
    """Makes a client of topics, for the emulator where PUBSUB_EMULATOR_HOST is set."""
    address = os.environ.get(EMULATOR_VARIABLE)
    if not address:
        return PublisherClient()
    return PublisherClient(transport=PublisherGrpcTransport(host=address, channel=insecure_channel(address)))


def subscriber_client() -> SubscriberClient:
    """Makes a client of subscriptions, for the emulator where PUBSUB_EMULATOR_HOST is set."""
    address = os.environ.get(EMULATOR_VARIABLE)
    if not address:
        return SubscriberClient()
    channel = insecure_channel(address, _NO_LIMIT)
    return SubscriberClient(transport=SubscriberGrpcTransport(host=address, channel=channel))

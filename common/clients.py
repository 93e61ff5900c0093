"""BigQuery clients for Google's service, for a private endpoint of it, or for a server on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import grpc
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from common.connections import direct, insecure_channel
from common.loopback import is_loopback, is_loopback_address
from common.options import OptionError, option

REST_FLAG: Final = "--bigquery_endpoint"
STORAGE_FLAG: Final = "--bigquery_storage_endpoint"

REST_VARIABLE: Final = "BIGQUERY_EMULATOR_HOST"
"""Google's client of the REST API also reads this variable."""
STORAGE_VARIABLE: Final = "BIGQUERY_STORAGE_EMULATOR_HOST"
"""Google's clients read no variable for the Storage APIs; this one is the project's own."""

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A new channel makes a new connection. Otherwise channels of one target share it, also a dead one.
    ("grpc.use_local_subchannel_pool", 1),
    # After an outage gRPC answers with the old error until its own back-off ends: minutes, by default.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
"""Options of the channels of the Storage APIs."""

KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # gRPC 1.85 goes by this one
)
"""Further ones of those to another machine: a connection that died without a word is noticed.

On this machine none does, and its servers end a connection that is pinged each minute.
"""

_Client = TypeVar("_Client", BigQueryReadClient, BigQueryWriteClient)


@dataclass(frozen=True)
class BigQueryEndpoints:
    """Addresses of BigQuery. They are plain data, so that a worker can make its own clients.

    A loopback address gets anonymous credentials, and the Storage APIs a channel without TLS: no token ever
    leaves the machine in clear text. It is reached directly, whatever proxy the environment names. Everything
    else gets application default credentials and TLS.

    Attributes:
      rest: base URL of the REST API, "https://bigquery-name.p.googleapis.com" or "http://127.0.0.1:9050";
        None for Google's public endpoint.
      storage: "host" or "host:port" of the Storage Read and Write APIs (gRPC); None for Google's public one.

    Raises:
      OptionError: an address has the wrong form.
    """

    rest: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.rest is not None:
            url = urlsplit(self.rest)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise OptionError(
                    f"{REST_FLAG}: expected a URL such as https://HOST or http://127.0.0.1:PORT, "
                    f"got {self.rest!r}"
                )
            if url.scheme == "http" and not is_loopback(url.hostname):
                raise OptionError(
                    f"{REST_FLAG}={self.rest}: credentials would travel in clear text; use https://"
                )
        if self.storage is not None and ("/" in self.storage or not _host(self.storage)):
            raise OptionError(
                f"{STORAGE_FLAG}: expected HOST or HOST:PORT without a scheme, got {self.storage!r}"
            )

    @property
    def half_local(self) -> bool:
        """True where one of the two is on this machine and the other is not: tables here, rows there."""
        local = [
            self.rest is not None and is_loopback_address(self.rest),
            self.storage is not None and is_loopback_address(self.storage),
        ]
        return local[0] != local[1]

    def client(self, project: str | None = None) -> bigquery.Client:
        """Makes a client of the REST API; `project` pays for jobs and completes table names."""
        if self.rest is None:
            return bigquery.Client(project=project)
        credentials = AnonymousCredentials() if is_loopback_address(self.rest) else None
        options = ClientOptions(api_endpoint=self.rest)
        client = bigquery.Client(project=project, credentials=credentials, client_options=options)
        direct(client._http)
        return client

    def write_client(self) -> BigQueryWriteClient:
        """Makes a client of the Storage Write API with a connection of its own."""
        return self._storage_client(BigQueryWriteClient, BigQueryWriteGrpcTransport)

    def read_client(self) -> BigQueryReadClient:
        """Makes a client of the Storage Read API with a connection of its own."""
        return self._storage_client(BigQueryReadClient, BigQueryReadGrpcTransport)

    def _storage_client(self, client: Callable[..., _Client], transport: Any) -> _Client:
        if self.storage is not None and is_loopback_address(self.storage):
            return client(transport=transport(channel=insecure_channel(self.storage, CHANNEL_OPTIONS)))

        def open_channel(host: str, **settings: Any) -> grpc.Channel:
            return transport.create_channel(host, **(settings | {"options": [*CHANNEL_OPTIONS, *KEEPALIVE]}))

        def open_transport(**settings: Any) -> Any:
            return transport(**(settings | {"channel": open_channel}))

        options = None if self.storage is None else ClientOptions(api_endpoint=self.storage)
        return client(transport=open_transport, client_options=options)


@dataclass(frozen=True)
class EndpointOptions:
    """The flags that say where BigQuery answers.

    Raises:
      OptionError: an address has the wrong form.
    """

    bigquery_endpoint: str | None = option(
        None,
        metavar="URL",
        help="BigQuery REST endpoint other than Google's public one: a private endpoint, or a local server. "
        "Example: http://127.0.0.1:9050",
    )
    bigquery_storage_endpoint: str | None = option(
        None,
        metavar="HOST:PORT",
        help="BigQuery Storage Read and Write endpoint other than Google's public one. "
        "Example: 127.0.0.1:9060",
    )

    def __post_init__(self) -> None:
        self.endpoints()

    def endpoints(self) -> BigQueryEndpoints:
        """Returns the addresses."""
        return BigQueryEndpoints(self.bigquery_endpoint, self.bigquery_storage_endpoint)

    def with_environment(self, environment: Mapping[str, str]) -> EndpointOptions:
        """Returns the options with those that were not given taken from the environment.

        Not a default of the flags: a job on Dataflow must not be sent to a server of this machine, and
        metadata of templates is made from the defaults.

        >>> EndpointOptions().with_environment({REST_VARIABLE: "http://127.0.0.1:9050"}).bigquery_endpoint
        'http://127.0.0.1:9050'
        """
        return EndpointOptions(
            self.bigquery_endpoint or environment.get(REST_VARIABLE) or None,
            self.bigquery_storage_endpoint or environment.get(STORAGE_VARIABLE) or None,
        )


def _host(address: str) -> str:
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""

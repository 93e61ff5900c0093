"""BigQuery clients for Google's service, for a private endpoint of it, or for a server on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
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

_UNLIMITED: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


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
        channel = self._insecure_channel()
        if channel is not None:
            return BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))
        return BigQueryWriteClient(client_options=self._storage_options())

    def read_client(self) -> BigQueryReadClient:
        """Makes a client of the Storage Read API with a connection of its own."""
        channel = self._insecure_channel()
        if channel is not None:
            return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))
        return BigQueryReadClient(client_options=self._storage_options())

    def _insecure_channel(self) -> grpc.Channel | None:
        if self.storage is None or not is_loopback_address(self.storage):
            return None
        return insecure_channel(self.storage, _UNLIMITED)

    def _storage_options(self) -> ClientOptions | None:
        return None if self.storage is None else ClientOptions(api_endpoint=self.storage)


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

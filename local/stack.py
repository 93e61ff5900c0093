"""The local stack from Python: Pub/Sub and BigQuery on this machine, without a Google account.

    with LocalStack() as stack, stack.endpoints.activate():
        topic = resources.create_topic("local-project", "transactions")
        ...

The clients are Google's own; only endpoints and credentials differ:

    endpoints = stack.endpoints
    bigquery.Client(
        project=endpoints.project,
        client_options={"api_endpoint": endpoints.bigquery},
        credentials=AnonymousCredentials(),
    )
    BigQueryWriteClient(
        transport=BigQueryWriteGrpcTransport(channel=grpc.insecure_channel(endpoints.bigquery_storage))
    )

The Pub/Sub clients and Beam's Pub/Sub transforms read PUBSUB_EMULATOR_HOST, which `activate` sets.
"""

from __future__ import annotations

import atexit
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from local import bigquery, pubsub
from local.bigquery import BigQueryEmulator
from local.credentials import write_service_account
from local.endpoints import Endpoints
from local.process import HOST, Emulator, LocalStackError, require_free
from local.pubsub import EmbeddedPubSub, GcloudPubSub

DEFAULT_PROJECT = "local-project"
PubSubChoice = Literal["auto", "embedded", "gcloud", "none"]


@dataclass
class LocalStack:
    """The emulators, as a context manager. Several stacks can run side by side.

    Everything ends with the `with` block, with this process, or when this process is killed.

    Attributes:
      project: The project id; at least 6 characters, and not `test`, which Beam refuses.
      pubsub: The server of Pub/Sub: "embedded", "gcloud", or "none". "auto" takes gcloud's emulator where
        gcloud and Java are there, otherwise the embedded server.
      bigquery: Run the BigQuery emulator.
      pubsub_port: The port of Pub/Sub at 127.0.0.1; 0 picks a free one.
      bigquery_port: The port of BigQuery's REST API; 0 picks a free one.
      bigquery_storage_port: The port of BigQuery's Storage APIs; 0 picks a free one.
      data_dir: The directory that keeps BigQuery's data between runs; None keeps it in memory. Pub/Sub's
        messages are always in memory.
      gcs_root: A directory that stands for Cloud Storage in BigQuery's load and extract jobs.
      timeout: Seconds to wait for each emulator.
    """

    project: str = DEFAULT_PROJECT
    pubsub: PubSubChoice = "auto"
    bigquery: bool = True
    pubsub_port: int = 0
    bigquery_port: int = 0
    bigquery_storage_port: int = 0
    data_dir: Path | None = None
    gcs_root: Path | None = None
    timeout: float = 60.0
    _endpoints: Endpoints | None = field(default=None, init=False, repr=False)
    _servers: list[EmbeddedPubSub | GcloudPubSub | BigQueryEmulator] = field(
        default_factory=list, init=False, repr=False
    )
    _ended: list[Emulator] = field(default_factory=list, init=False, repr=False)

    def missing(self) -> list[str]:
        """Lists the requirements of the emulators that are on and are not met, each with what to do."""
        return [
            *(pubsub.missing() if self.pubsub == "gcloud" else ()),
            *(bigquery.missing() if self.bigquery else ()),
        ]

    def check(self) -> None:
        """Checks the requirements of the emulators that are on.

        Raises:
          LocalStackError: one or more are not met.
        """
        if missing := self.missing():
            raise LocalStackError("\n".join(missing))

    @property
    def endpoints(self) -> Endpoints:
        """The addresses of the stack.

        Raises:
          LocalStackError: the stack is not running.
        """
        if self._endpoints is None:
            raise LocalStackError(
                "The local stack is not running: use it in a `with` block, or call start()."
            )
        return self._endpoints

    def start(self) -> Endpoints:
        """Starts the emulators side by side and waits until each answers.

        Raises:
          LocalStackError: something is missing, or an emulator did not start. Nothing is left running.
        """
        if self._endpoints is not None:
            return self._endpoints
        if self.pubsub == "none" and not self.bigquery:
            raise LocalStackError("expected Pub/Sub or BigQuery to be on, got both off: nothing to start")
        self.check()
        require_free(self.pubsub_port, "--pubsub_port")
        require_free(self.bigquery_port, "--bigquery_port")
        require_free(self.bigquery_storage_port, "--bigquery_storage_port")
        try:
            self._endpoints = self._launch()
        except BaseException:
            self.stop()
            raise
        return self._endpoints

    def _launch(self) -> Endpoints:
        topics = self._pubsub()
        tables = (
            BigQueryEmulator(
                self.project,
                self.bigquery_port,
                self.bigquery_storage_port,
                self.data_dir,
                self.gcs_root,
                self.timeout,
            )
            if self.bigquery
            else None
        )
        self._servers = [server for server in (topics, tables) if server is not None]
        for server in self._servers:
            server.launch()
        atexit.register(self.stop)
        rest, storage = tables.wait() if tables else (None, None)
        address = topics.wait() if topics else None
        # In a server's directory, so that it is removed with that server even if this process is killed.
        key = write_service_account(
            self._servers[-1].directory / "service-account.json", self.project, rest or f"http://{HOST}:9"
        )
        return Endpoints(address, rest, storage, self.project, str(key), topics.kind if topics else None)

    def _pubsub(self) -> EmbeddedPubSub | GcloudPubSub | None:
        if self.pubsub == "none":
            return None
        if self.pubsub == "gcloud" or (self.pubsub == "auto" and not pubsub.missing()):
            return GcloudPubSub(self.pubsub_port, self.timeout)
        return EmbeddedPubSub(self.pubsub_port, self.timeout)

    @property
    def ended(self) -> tuple[str, ...]:
        """Names of the emulators that `remove_ended` has taken out of the endpoints."""
        return tuple(server.name for server in self._ended)

    def remove_ended(self) -> list[str]:
        """Takes emulators that have ended by themselves out of the endpoints; the others go on.

        Returns:
          A report of each, with the end of its log: once, so that the next call gives an empty list.

        Raises:
          LocalStackError: none is left; the text has the reports.
        """
        # It stays in the list of servers: its directory may have the credentials of all.
        reports = []
        for server in self._servers:
            if server not in self._ended and (report := server.ended()):
                reports.append(report)
                self._ended.append(server)
                self._endpoints = self.endpoints.without(server.fields)
        if len(self._ended) == len(self._servers):
            raise LocalStackError("\n".join(reports))
        return reports

    def stop(self) -> None:
        """Ends the emulators and removes their temporary data; a second call does nothing."""
        atexit.unregister(self.stop)
        self._endpoints = None
        self._ended.clear()
        while self._servers:
            self._servers.pop().stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

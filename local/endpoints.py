"""Addresses of the servers of a local stack, and the environment that makes Google's clients use them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from common.loopback import no_proxy_variables

BIGQUERY_STORAGE_VARIABLE = "BIGQUERY_STORAGE_EMULATOR_HOST"
"""The variable that `common.clients` reads, which is slow to import. Google's clients read none here."""


@dataclass(frozen=True)
class Endpoints:
    """The addresses of a running local stack. Plain data: it can be pickled and sent to a worker.

    Attributes:
      pubsub: "127.0.0.1:PORT" of Pub/Sub (gRPC), or None where it does not run.
      bigquery: "http://127.0.0.1:PORT" of the BigQuery emulator's REST API, or None.
      bigquery_storage: "127.0.0.1:PORT" of its Storage Read and Write APIs (gRPC, no TLS), or None.
      project: The project id to use.
      pubsub_kind: "embedded" or "gcloud", or None where Pub/Sub does not run.
      credentials_file: A service account key made by this stack and valid nowhere else. Without it,
        `google.auth.default()` searches for up to 25 s.
    """

    pubsub: str | None
    bigquery: str | None
    bigquery_storage: str | None
    project: str
    credentials_file: str | None = None
    pubsub_kind: str | None = None

    def environment(self) -> dict[str, str]:
        """Makes the environment variables that send Google's clients to this stack, and past a proxy."""
        variables = {
            "GOOGLE_CLOUD_PROJECT": self.project,
            "NO_GCE_CHECK": "true",  # no search for a metadata server
        }
        optional = {
            "PUBSUB_EMULATOR_HOST": self.pubsub,
            "PUBSUB_PROJECT_ID": self.pubsub and self.project,
            "BIGQUERY_EMULATOR_HOST": self.bigquery,
            BIGQUERY_STORAGE_VARIABLE: self.bigquery_storage,
            "GOOGLE_APPLICATION_CREDENTIALS": self.credentials_file,
        }
        return variables | {name: value for name, value in optional.items() if value} | no_proxy_variables()

    def pipeline_args(self) -> list[str]:
        """Makes the options that point this project's pipelines at the stack."""
        args = [f"--project={self.project}"]
        if self.bigquery:
            args.append(f"--bigquery_endpoint={self.bigquery}")
        if self.bigquery_storage:
            args.append(f"--bigquery_storage_endpoint={self.bigquery_storage}")
        return args

    @contextlib.contextmanager
    def activate(self) -> Iterator[Endpoints]:
        """Sets `environment()` in this process for a `with` block, and restores it at the end."""
        variables = self.environment()
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield self
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def without(self, fields: Collection[str]) -> Endpoints:
        """Returns the same with these fields empty: those of an emulator that does not run any more."""
        empty: dict[str, Any] = dict.fromkeys(fields)
        return replace(self, **empty)

    def to_dict(self) -> dict[str, str | None]:
        """Returns the fields as a dict, for JSON."""
        return asdict(self)

"""What every resource can do, and the clients it does it with."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    NotFound,
    RetryError,
    ServiceUnavailable,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from requests.exceptions import RequestException

from cloud.resources.gcloud import Gcloud
from common.connections import direct
from common.loopback import is_loopback_address
from transforms.clients import BigQueryEndpoints

LABEL: Final = {"app": "transaction-anomaly"}
"""Marks what this project made. `delete` touches nothing without it."""

LOGIN: Final = "gcloud auth application-default login"
"""What gives Google's clients credentials, or new ones in place of those that ran out."""

UNREACHABLE: Final = (RetryError, RequestException, ServiceUnavailable)
"""What Google's clients raise where nothing answers."""

Status = Literal["ok", "missing", "drift", "unknown"]


class ResourceError(RuntimeError):
    """A resource could not be read or changed; the text names it and says what to do."""


class StaysError(ResourceError):
    """A resource cannot be removed for what another hand put into it; everything else can."""


@dataclass(frozen=True)
class State:
    """What `inspect` found.

    Attributes:
      status: "ok"; "missing"; "drift", it is there and differs from the declaration; "unknown", it could not
        be read.
      details: one line a difference, or the reason.
    """

    status: Status
    details: tuple[str, ...] = ()

    @classmethod
    def of(cls, differences: list[str]) -> State:
        """Ok without differences, drift with them."""
        return cls("drift", tuple(differences)) if differences else cls("ok")


MISSING: Final = State("missing")

Key = tuple[str, str]
"""Kind and name of a resource."""


@dataclass
class Clients:
    """Google's clients, each made when it is first needed.

    Attributes:
      project: which pays, and in which short names are looked up.
      endpoints: where BigQuery answers.
      gcloud: runs or prints gcloud commands.
      emulators: whether everything is on this machine.
    """

    project: str
    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)
    gcloud: Gcloud = field(default_factory=Gcloud)
    emulators: bool = False

    @property
    def local_bigquery(self) -> bool:
        """Whether BigQuery is an emulator, which keeps no locations, accounts and queries of views."""
        rest = self.endpoints.rest or os.environ.get("BIGQUERY_EMULATOR_HOST", "")
        return self.emulators or is_loopback_address(rest)

    @functools.cached_property
    def publisher(self) -> PublisherClient:
        """Topics."""
        return PublisherClient()

    @functools.cached_property
    def subscriber(self) -> SubscriberClient:
        """Subscriptions."""
        return SubscriberClient()

    @functools.cached_property
    def bigquery(self) -> bigquery.Client:
        """Datasets, tables, views."""
        return self.endpoints.client(self.project)

    @functools.cached_property
    def storage(self) -> Any:
        """Buckets."""
        import google.cloud.storage as storage
        from google.auth.credentials import AnonymousCredentials

        local = bool(os.environ.get("STORAGE_EMULATOR_HOST"))
        client = storage.Client(self.project, credentials=AnonymousCredentials() if local else None)
        direct(client._http)
        return client

    def close(self) -> None:
        """Closes the connections that were opened."""
        if "publisher" in vars(self):
            self.publisher.transport.close()
        if "subscriber" in vars(self):
            self.subscriber.close()


@dataclass(frozen=True)
class Resource:
    """One thing that exists, or shall exist. Subclasses say how.

    Attributes:
      name: its full name.
    """

    kind: ClassVar[str] = ""
    emulated: ClassVar[bool] = False
    """Whether the local stack has it."""
    data: ClassVar[bool] = False
    """Whether it holds the results, which `delete --keep-tables` keeps."""
    by_gcloud: ClassVar[bool] = False
    """Whether gcloud makes it, so that --print-gcloud prints the command."""

    name: str

    @property
    def title(self) -> str:
        """What people are told."""
        return self.name

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.kind, self.name

    @property
    def needs(self) -> tuple[Key, ...]:
        """Without which of the others this cannot exist."""
        return ()

    @property
    def part_of(self) -> Key | None:
        """With which of the others this goes when that is deleted."""
        return None

    def inspect(self, clients: Clients) -> State:
        """Compares what is there with the declaration."""
        raise NotImplementedError

    def create(self, clients: Clients) -> None:
        """Makes it; another process that was faster is no error."""
        raise NotImplementedError

    def repair(self, clients: Clients, state: State) -> None:
        """Changes what differs.

        Raises:
          ResourceError: the difference cannot be changed in place.
        """
        raise NotImplementedError

    def owned(self, clients: Clients) -> bool:
        """Whether it is this project's to delete."""
        return True

    def delete(self, clients: Clients) -> None:
        """Removes it; gone already is no error."""
        raise NotImplementedError

    def remedy(self) -> str:
        """The role that a user lacks who is not allowed to make it."""
        return "roles/owner"


def has_label(labels: Any) -> bool:
    """Whether `labels` carry this project's label."""
    return all(dict(labels).get(key) == value for key, value in LABEL.items())


@contextmanager
def explained(resource: Resource) -> Iterator[None]:
    """Turns the errors of Google's clients into ones that name the resource and the cure.

    Raises:
      ResourceError: Google's client failed.
    """
    title = f"{resource.kind} {resource.title}"
    try:
        yield
    except Forbidden as error:
        if "has not been used" in error.message or "SERVICE_DISABLED" in str(error):
            raise ResourceError(
                f"{title}: {error.message}\nAn API that was enabled just now needs a minute: run this again."
            ) from error
        raise ResourceError(
            f"{title}: not allowed: {error.message}\nAsk for {resource.remedy()}, or let its holder run this."
        ) from error
    except NotFound as error:
        raise ResourceError(
            f"{title}: {error.message}\nIs the project right, and its API enabled?"
        ) from error
    except GoogleAuthError as error:
        raise ResourceError(f"{title}: no valid credentials: {error}\nRun `{LOGIN}`.") from error
    except UNREACHABLE as error:
        raise ResourceError(
            f"{title}: no answer: {error}\nIs the network there, and a proxy set where one is needed?"
        ) from error
    except GoogleAPICallError as error:
        raise ResourceError(f"{title}: {error.message}") from error

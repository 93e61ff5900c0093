"""A resource of a project: what it can do, how it differs, and the clients that it needs."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from google.api_core.exceptions import Aborted, BadRequest, Forbidden, PreconditionFailed
from google.cloud import bigquery
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

from cloud.monitoring.client import Monitoring
from cloud.resources.gcloud import Gcloud
from common import google
from common.clients import BigQueryEndpoints
from common.command import CommandError
from common.connections import direct
from common.loopback import is_loopback_address
from common.pubsub import publisher_client, subscriber_client

LABEL: Final = {"app": "transaction-anomaly"}
"""Marks what this project made. `delete` touches nothing without it."""

_SHOWN: Final = 100
"""Characters of a value that a difference shows: queries and descriptions are longer."""

# BigQuery refuses an account that was made a moment ago, and services a key that they were let in to a moment
# ago. Neither has a code of its own.
_SETTLING: Final = re.compile(r"[Ss]ervice ?[Aa]ccount \S+ does not exist|\bKMS\b")

Status = Literal["ok", "missing", "drift", "unknown"]


class ResourceError(CommandError):
    """A resource could not be read or changed; the text names it and says what to do.

    Attributes:
      is_settling: whether the same request may succeed soon, because the project changed a moment ago.
    """

    def __init__(self, text: str, is_settling: bool = False) -> None:
        super().__init__(text)
        self.is_settling = is_settling


class StaysError(ResourceError):
    """A resource cannot be removed because it holds things that this project did not make."""


@dataclass(frozen=True)
class Difference:
    """One setting that is not as declared.

    Attributes:
      field: name of the setting.
      actual: its value; None where it is missing.
      declared: the value that it should have.
      fixable: whether it can be changed in place.

    >>> print(Difference("location", "US", "europe-west1", fixable=False))
    location is US, declared europe-west1; it cannot be changed
    """

    field: str
    actual: Any
    declared: Any
    fixable: bool = True

    def __str__(self) -> str:
        text = f"{self.field} is {_short(self.actual)}, declared {_short(self.declared)}"
        return text if self.fixable else f"{text}; it cannot be changed"


def _short(value: Any) -> str:
    """A value on one line; "none" for no value."""
    text = " ".join(str(value).split()) if value not in (None, "") else "none"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def differences(
    actual: dict[str, Any], declared: dict[str, Any], fixed: tuple[str, ...] = ()
) -> list[Difference]:
    """Compares settings one by one.

    Args:
      actual: the settings as they are.
      declared: the settings as they should be; those alone are compared.
      fixed: names of the settings that cannot be changed in place.

    >>> [str(difference) for difference in differences({"retention": 1, "x": 0}, {"retention": 2})]
    ['retention is 1, declared 2']
    """
    return [
        Difference(name, actual.get(name), value, name not in fixed)
        for name, value in declared.items()
        if actual.get(name) != value
    ]


@dataclass(frozen=True)
class State:
    """The state of a resource beside its declaration.

    Attributes:
      status: "ok"; "missing"; "drift", it exists and differs from the declaration; "unknown", it could not
        be read.
      differences: of a resource with drift.
      error: the reason why a resource could not be read.
    """

    status: Status
    differences: tuple[Difference, ...] = ()
    error: CommandError | None = None

    @classmethod
    def of(cls, differences: list[Difference]) -> State:
        """Makes a state from differences: ok without any, drift with some."""
        return cls("drift", tuple(differences)) if differences else cls("ok")

    @property
    def lines(self) -> list[str]:
        """The differences, or the error, for people."""
        return [str(self.error)] if self.error else [str(difference) for difference in self.differences]

    def refuse_fixed(self, title: str, advice: str) -> None:
        """Ends a repair that cannot be complete.

        Raises:
          ResourceError: a difference cannot be changed in place.
        """
        fixed = [str(difference) for difference in self.differences if not difference.fixable]
        if fixed:
            raise ResourceError(f"{title}: {'; '.join(fixed)}. {advice}")


MISSING: Final = State("missing")

Key = tuple[str, str]
"""Kind and name of a resource."""


@dataclass
class Clients:
    """Google's clients, each made when it is first needed.

    Attributes:
      project: pays, and completes short names.
      endpoints: where BigQuery answers.
      gcloud: runs or prints gcloud commands.
      emulators: whether everything is on this machine.
      monitoring: dashboards, alert policies, notification channels.
    """

    project: str
    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)
    gcloud: Gcloud = field(default_factory=Gcloud)
    emulators: bool = False
    monitoring: Monitoring = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.monitoring = Monitoring(self.project)

    @property
    def local_bigquery(self) -> bool:
        """Returns whether BigQuery is an emulator, which has one place and no accounts."""
        rest = self.endpoints.rest or os.environ.get("BIGQUERY_EMULATOR_HOST", "")
        return self.emulators or is_loopback_address(rest)

    @functools.cached_property
    def publisher(self) -> PublisherClient:
        """Topics."""
        return publisher_client()

    @functools.cached_property
    def subscriber(self) -> SubscriberClient:
        """Subscriptions."""
        return subscriber_client()

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
        self.monitoring.close()


@dataclass(frozen=True)
class Resource:
    """One thing that exists, or shall exist. Subclasses say how.

    Attributes:
      name: its full name.
    """

    kind: ClassVar[str] = ""
    emulated: ClassVar[bool] = False
    """True for resources that the local stack has."""
    data: ClassVar[bool] = False
    """True for resources that hold the results, which `delete --keep_tables` keeps."""
    is_last: ClassVar[bool] = False
    """True where no other depends on it: one that cannot be repaired keeps no other from being made."""
    by_gcloud: ClassVar[bool] = False
    """True for resources that gcloud makes, so that --print_gcloud prints the command."""
    creator_role: ClassVar[str] = ""
    """The narrowest role that may make it, for resources that Google's clients make."""

    name: str

    @property
    def title(self) -> str:
        """Name for people."""
        return self.name

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.kind, self.name

    @property
    def needs(self) -> tuple[Key, ...]:
        """Keys of the resources that must exist before this one can."""
        return ()

    @property
    def part_of(self) -> Key | None:
        """Key of the resource whose deletion deletes this one too."""
        return None

    def inspect(self, clients: Clients) -> State:
        """Compares the resource with its declaration."""
        raise NotImplementedError

    def create(self, clients: Clients) -> None:
        """Makes it. It is no error that another process was faster."""
        raise NotImplementedError

    def repair(self, clients: Clients, state: State) -> None:
        """Changes what differs.

        Raises:
          ResourceError: the difference cannot be changed in place.
        """
        raise NotImplementedError

    def owned(self, clients: Clients) -> bool:
        """Returns whether this project made it, so that it may delete it."""
        return True

    def delete(self, clients: Clients) -> None:
        """Removes it. It is no error that it is gone already."""
        raise NotImplementedError


def has_label(labels: Any) -> bool:
    """Returns whether `labels` include this project's label."""
    return all(dict(labels).get(key) == value for key, value in LABEL.items())


@contextmanager
def explained(resource: Resource) -> Iterator[None]:
    """Turns errors of Google's clients into errors that name the resource and the remedy.

    Raises:
      ResourceError: Google's client failed.
    """
    try:
        yield
    except google.ERRORS as error:
        problem = google.explain(error)
        steps = {
            "disabled": "an API that was enabled just now needs a minute: run this again",
            "forbidden": f"ask for {resource.creator_role}, or let somebody who has it run this",
            "missing": "check --project, and that its APIs are enabled",
        }
        step = steps.get(problem.kind) or google.remedy(problem, "")
        is_settling = (
            problem.kind == "disabled"
            or isinstance(error, Aborted | PreconditionFailed)
            or (isinstance(error, BadRequest | Forbidden) and bool(_SETTLING.search(problem.text)))
        )
        text = f"{resource.kind} {resource.title}: {problem}" + (f". To fix it: {step}" if step else "")
        raise ResourceError(text, is_settling) from error

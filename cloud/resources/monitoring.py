"""The dashboard, the alert policies and their notification channels in Cloud Monitoring, by its REST API.

Google chooses the ids of policies and dashboards. Ours are known by their labels: app, installation and item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from google.api_core.exceptions import Conflict, NotFound

from cloud.resources.base import LABEL, MISSING, Clients, Difference, Resource, ResourceError, State

_CONTEXT: Final = 30
"""Characters that a difference shows before the first one that differs."""


@dataclass(frozen=True)
class NotificationChannel(Resource):
    """A channel that somebody made, such as an address or a pager; `name` is its full name.

    It is looked at alone: whoever made it keeps it, and knows its secrets.
    """

    kind: ClassVar[str] = "notification channel"
    creator_role: ClassVar[str] = "roles/monitoring.notificationChannelViewer"

    def inspect(self, clients: Clients) -> State:
        """Looks whether the channel is there, is enabled, and was verified where its kind asks for it.

        Raises:
          ResourceError: there is no such channel.
        """
        try:
            channel = clients.monitoring.get(self.name)
        except NotFound as error:
            raise ResourceError(
                f"--notify: expected a notification channel that exists, got {self.name!r}: list them with "
                f"`gcloud beta monitoring channels list --project={clients.project}`"
            ) from error
        actual = {
            "enabled": channel.get("enabled", False),
            "verificationStatus": channel.get("verificationStatus", ""),
        }
        found = [] if actual["enabled"] else [Difference("enabled", False, True, fixable=False)]
        if actual["verificationStatus"] == "UNVERIFIED":
            found.append(Difference("verificationStatus", "UNVERIFIED", "VERIFIED", fixable=False))
        return State.of(found)

    def repair(self, clients: Clients, state: State) -> None:
        """Ends: a channel that tells nobody is to be repaired by its owner."""
        state.refuse_fixed(f"notification channel {self.name}", "Enable or verify it in the console.")

    def owned(self, clients: Clients) -> bool:
        """Answers no: somebody else made it."""
        return False


@dataclass(frozen=True)
class _Declared(Resource):
    """A thing with a body that is declared here; `name` is its id among those of the installation.

    Attributes:
      installation: tells the things of one installation from those of another.
      body: as the API takes it, without labels.
    """

    collection: ClassVar[str]
    labels: ClassVar[str]
    """Field of the labels."""

    installation: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The display name."""
        return str(self.body["displayName"])

    def inspect(self, clients: Clients) -> State:
        """Compares each declared field. What Google or somebody else added is no difference."""
        copies = self._copies(clients)
        if not copies:
            return MISSING
        found = list(_differences(self.wanted(copies[0]), copies[0]))
        if len(copies) > 1:
            found.append(Difference("copies", len(copies), 1))
        return State.of(found)

    def create(self, clients: Clients) -> None:
        """Makes it."""
        clients.monitoring.create(self.collection, self.wanted({}))

    def repair(self, clients: Clients, state: State) -> None:
        """Sets what differs, and removes copies that two who ran this at the same time have left."""
        first, *others = self._copies(clients)
        fields = {difference.field.partition(".")[0].partition("[")[0] for difference in state.differences}
        if fields - {"copies"}:
            try:
                self._update(clients, first, sorted(fields - {"copies"}))
            except Conflict as error:
                raise ResourceError(
                    f"{self.kind} {self.title}: somebody else changed it at the same time: run this again"
                ) from error
        for other in others:
            clients.monitoring.delete(other["name"])

    def delete(self, clients: Clients) -> None:
        """Removes it. Notification channels stay."""
        for copy in self._copies(clients):
            try:
                clients.monitoring.delete(copy["name"])
            except NotFound:
                continue

    def wanted(self, actual: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the body for a thing as it is; empty for one that is missing."""
        labels = {**LABEL, "installation": self.installation, "item": self.name}
        return {**self.body, self.labels: {**actual.get(self.labels, {}), **labels}}

    def _update(self, clients: Clients, actual: Mapping[str, Any], fields: list[str]) -> None:
        raise NotImplementedError

    def _copies(self, clients: Clients) -> list[dict[str, Any]]:
        labels = self.wanted({})[self.labels]
        return sorted(
            (
                thing
                for thing in clients.monitoring.listed(self.collection)
                if labels.items() <= thing.get(self.labels, {}).items()
            ),
            key=lambda thing: str(thing["name"]),
        )


@dataclass(frozen=True)
class Dashboard(_Declared):
    """A dashboard."""

    kind: ClassVar[str] = "dashboard"
    creator_role: ClassVar[str] = "roles/monitoring.dashboardEditor"
    collection: ClassVar[str] = "dashboards"
    labels: ClassVar[str] = "labels"

    def _update(self, clients: Clients, actual: Mapping[str, Any], fields: list[str]) -> None:
        # The whole is replaced: filters that people added stay. The etag refuses to undo another's change.
        clients.monitoring.update(actual["name"], {**actual, **self.wanted(actual)})


@dataclass(frozen=True)
class AlertPolicy(_Declared):
    """An alert policy.

    Attributes:
      channels: full names of the notification channels that it tells. Others that it has are kept.
    """

    kind: ClassVar[str] = "alert policy"
    creator_role: ClassVar[str] = "roles/monitoring.alertPolicyEditor"
    collection: ClassVar[str] = "alertPolicies"
    labels: ClassVar[str] = "userLabels"

    channels: tuple[str, ...] = ()

    def wanted(self, actual: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the channels, and the names of the conditions: with these, open incidents go on."""
        body = super().wanted(actual)
        channels = [*actual.get("notificationChannels", ())]
        channels += [channel for channel in dict.fromkeys(self.channels) if channel not in channels]
        if channels:
            body["notificationChannels"] = channels
        names = {condition["displayName"]: condition["name"] for condition in actual.get("conditions", ())}
        body["conditions"] = [
            {**condition, **({"name": name} if (name := names.get(condition["displayName"])) else {})}
            for condition in body["conditions"]
        ]
        return body

    def _update(self, clients: Clients, actual: Mapping[str, Any], fields: list[str]) -> None:
        clients.monitoring.update(actual["name"], self.wanted(actual), ",".join(fields))


def _differences(declared: Any, actual: Any, path: str = "") -> Iterator[Difference]:
    """Compares a declared value with an actual one: of an object its declared fields, of a list all items."""
    if isinstance(declared, Mapping) and isinstance(actual, Mapping):
        for name, value in declared.items():
            yield from _differences(value, actual.get(name), f"{path}.{name}" if path else name)
    elif isinstance(declared, list) and isinstance(actual, list) and len(declared) == len(actual):
        for i, (one, other) in enumerate(zip(declared, actual, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif isinstance(declared, list) and isinstance(actual, list):
        yield Difference(path, f"{len(actual)} items", f"{len(declared)} items")
    elif declared != actual and not (not declared and actual is None):
        # Google leaves out a field with its default: 0, false, "" or an empty list.
        yield Difference(path, *_from_the_first_difference(actual, declared))


def _from_the_first_difference(actual: Any, declared: Any) -> tuple[Any, Any]:
    """Cuts from two long texts what they begin with alike.

    >>> _from_the_first_difference("x" * 100 + " > 5", "x" * 100 + " > 7")[1]
    '...xxxxxxxxxxxxxxxxxxxxxxxxxxx > 7'
    """
    if not (isinstance(actual, str) and isinstance(declared, str)):
        return actual, declared
    pairs = enumerate(zip(actual, declared, strict=False))
    first = next((i for i, (one, other) in pairs if one != other), min(len(actual), len(declared)))
    start = first - _CONTEXT
    return (actual, declared) if start <= 0 else (f"...{actual[start:]}", f"...{declared[start:]}")

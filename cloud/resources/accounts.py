"""What gcloud sets up: enabled APIs, the image repository, the service account and its roles."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from cloud.resources.base import (
    LABEL,
    MISSING,
    Clients,
    Key,
    Resource,
    ResourceError,
    State,
    has_label,
)
from cloud.resources.gcloud import GcloudError, GcloudNotFoundError

Target = Literal["project", "bucket", "topic", "subscription", "repository"]

_DISPLAY_NAME: Final = "Transaction anomaly pipelines"
# A service has its account in a project from its first use on, which may be yet to come.
_AGENTS: Final = {"gcp-sa-pubsub.iam.gserviceaccount.com": "pubsub.googleapis.com"}
_POLICY_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "project": ("projects",),
    "bucket": ("storage", "buckets"),
    "topic": ("pubsub", "topics"),
    "subscription": ("pubsub", "subscriptions"),
    "repository": ("artifacts", "repositories"),
}


@dataclass(frozen=True)
class Apis(Resource):
    """The APIs that the product calls; `name` is the project.

    Attributes:
      apis: "dataflow.googleapis.com" and so on.
    """

    kind: ClassVar[str] = "APIs"
    by_gcloud: ClassVar[bool] = True

    apis: tuple[str, ...] = ()

    def inspect(self, clients: Clients) -> State:
        """Which of them are not enabled."""
        lacking = self._lacking(clients)
        return State.of([f"{api} is not enabled" for api in lacking])

    def create(self, clients: Clients) -> None:
        """Enables those that are not; all of them where the command is printed and nobody could be asked."""
        try:
            lacking = self._lacking(clients)
        except GcloudError:
            if not clients.gcloud.print_only:
                raise
            lacking = list(self.apis)
        clients.gcloud.change("services", "enable", *lacking, f"--project={self.name}")

    def repair(self, clients: Clients, state: State) -> None:
        """Enables those that are not."""
        self.create(clients)

    def owned(self, clients: Clients) -> bool:
        """Never: other work in the project may need them."""
        return False

    def remedy(self) -> str:
        """The administrator of enabled services."""
        return "roles/serviceusage.serviceUsageAdmin"

    def _lacking(self, clients: Clients) -> list[str]:
        listing = clients.gcloud.read("services", "list", "--enabled", f"--project={self.name}")
        enabled = {entry["config"]["name"] for entry in listing or ()}
        return [api for api in self.apis if api not in enabled]


@dataclass(frozen=True)
class Repository(Resource):
    """A Docker repository in Artifact Registry; `name` is its id.

    Attributes:
      project: of the repository.
      location: region.
    """

    kind: ClassVar[str] = "repository"
    by_gcloud: ClassVar[bool] = True

    project: str = ""
    location: str = "us-central1"

    def inspect(self, clients: Clients) -> State:
        """Whether it is there, for Docker images."""
        try:
            found = clients.gcloud.read("artifacts", "repositories", "describe", *self._words())
        except GcloudNotFoundError:
            return MISSING
        kind = found.get("format")
        return State.of([f"format is {kind}, declared DOCKER"] if kind != "DOCKER" else [])

    def create(self, clients: Clients) -> None:
        """Makes the repository."""
        described = "--description=Image of the transaction anomaly pipelines"
        words = ("artifacts", "repositories", "create", *self._words())
        labels = ",".join(f"{key}={value}" for key, value in LABEL.items())
        clients.gcloud.change(*words, "--repository-format=docker", described, f"--labels={labels}")

    def repair(self, clients: Clients, state: State) -> None:
        """Nothing can be set."""
        raise ResourceError(
            f"repository {self.name}: {state.details[0]}. Give another --prefix, or remove it with `gcloud "
            f"artifacts repositories delete {shlex.join(self._words())}`, images included."
        )

    def owned(self, clients: Clients) -> bool:
        """By its label."""
        found = clients.gcloud.read("artifacts", "repositories", "describe", *self._words())
        return has_label(found.get("labels", {}))

    def delete(self, clients: Clients) -> None:
        """Removes the repository with its images."""
        clients.gcloud.change("artifacts", "repositories", "delete", *self._words())

    def remedy(self) -> str:
        """Artifact Registry's administrator."""
        return "roles/artifactregistry.admin"

    def _words(self) -> tuple[str, ...]:
        return (self.name, f"--location={self.location}", f"--project={self.project}")


@dataclass(frozen=True)
class ServiceAccount(Resource):
    """The account that workers and launcher, or builds of the image, run as; `name` is its address."""

    kind: ClassVar[str] = "service account"
    by_gcloud: ClassVar[bool] = True

    @property
    def project(self) -> str:
        """The project in the address."""
        return self.name.partition("@")[2].removesuffix(".iam.gserviceaccount.com")

    def inspect(self, clients: Clients) -> State:
        """Whether it is there and enabled."""
        try:
            found = self._described(clients)
        except GcloudNotFoundError:
            return MISSING
        return State.of(["it is disabled"] if found.get("disabled") else [])

    def create(self, clients: Clients) -> None:
        """Makes the account."""
        clients.gcloud.change(
            *("iam", "service-accounts", "create", self.name.partition("@")[0]),
            f"--display-name={_DISPLAY_NAME}",
            f"--project={self.project}",
        )

    def repair(self, clients: Clients, state: State) -> None:
        """Enables it."""
        clients.gcloud.change("iam", "service-accounts", "enable", self.name, f"--project={self.project}")

    def owned(self, clients: Clients) -> bool:
        """By its display name; accounts have no labels."""
        return bool(self._described(clients).get("displayName") == _DISPLAY_NAME)

    def delete(self, clients: Clients) -> None:
        """Removes the account."""
        clients.gcloud.change("iam", "service-accounts", "delete", self.name, f"--project={self.project}")

    def remedy(self) -> str:
        """The administrator of service accounts."""
        return "roles/iam.serviceAccountAdmin"

    def _described(self, clients: Clients) -> Any:
        words = ("iam", "service-accounts", "describe", self.name, f"--project={self.project}")
        return clients.gcloud.read(*words)


@dataclass(frozen=True)
class Role(Resource):
    """One role of one account on one thing; `name` is the role.

    Attributes:
      member: "serviceAccount:..."; "{number}" in it is replaced by the project's number.
      target: what kind of thing.
      target_name: its name, as gcloud takes it.
      project: of the thing.
      location: of a repository.
      why: what the account does with it.
    """

    kind: ClassVar[str] = "role"
    by_gcloud: ClassVar[bool] = True

    member: str = ""
    target: Target = "project"
    target_name: str = ""
    project: str = ""
    location: str = ""
    why: str = ""

    @property
    def key(self) -> Key:
        """A role may be given on several things."""
        return self.kind, self.title

    @property
    def part_of(self) -> Key | None:
        """The thing, whose policy goes with it; a project stays."""
        if self.target == "project":
            return None
        full = {"topic": "projects/{}/topics/{}", "subscription": "projects/{}/subscriptions/{}"}
        return self.target, full.get(self.target, "{1}").format(self.project, self.target_name)

    @property
    def needs(self) -> tuple[Key, ...]:
        """The thing and the account."""
        account = (ServiceAccount.kind, self.member.removeprefix("serviceAccount:"))
        return (account, *filter(None, (self.part_of,)))

    def inspect(self, clients: Clients) -> State:
        """Whether the policy of the thing gives the role."""
        try:
            policy: Any = clients.gcloud.read(*self._command("get-iam-policy"))
        except GcloudNotFoundError:
            return MISSING
        member = self._member(clients)
        for binding in (policy or {}).get("bindings", ()):
            if binding["role"] == self.name and member in binding["members"] and "condition" not in binding:
                return State("ok")
        return MISSING

    def create(self, clients: Clients) -> None:
        """Gives the role; to the account of a Google service, once that has made it."""
        service = _AGENTS.get(self.member.partition("@")[2])
        if service:
            clients.gcloud.once(
                *("beta", "services", "identity", "create"),
                f"--service={service}",
                f"--project={self.project}",
            )
        self._change(clients, "add-iam-policy-binding")

    def repair(self, clients: Clients, state: State) -> None:
        """A role is there or it is not."""
        self.create(clients)

    def delete(self, clients: Clients) -> None:
        """Takes the role away."""
        self._change(clients, "remove-iam-policy-binding")

    def remedy(self) -> str:
        """Who may change policies."""
        return "roles/resourcemanager.projectIamAdmin" if self.target == "project" else "roles/owner"

    @property
    def title(self) -> str:
        """Role, thing and account."""
        return f"{self.name} on {self.target} {self.target_name} for {self.member}"

    def _change(self, clients: Clients, verb: str) -> None:
        words = [*self._command(verb), f"--member={self._member(clients)}", f"--role={self.name}"]
        if self.target == "project":
            # Without this, gcloud asks where the policy has conditional bindings.
            words.append("--condition=None")
        clients.gcloud.change(*words)

    def _command(self, verb: str) -> tuple[str, ...]:
        words = (*_POLICY_COMMANDS[self.target], verb, self.target_name)
        if self.target == "repository":
            words += (f"--location={self.location}",)
        # A bucket's name says all, and a project is its own.
        return words if self.target in ("project", "bucket") else (*words, f"--project={self.project}")

    def _member(self, clients: Clients) -> str:
        if "{number}" not in self.member:
            return self.member
        try:
            described = clients.gcloud.read("projects", "describe", self.project)
        except GcloudError:
            if not clients.gcloud.print_only:
                raise
            return self.member.format(number="PROJECT_NUMBER")
        try:
            return self.member.format(number=described["projectNumber"])
        except (KeyError, TypeError):
            raise GcloudError(f"gcloud gave no number of {self.project}: {json.dumps(described)}") from None

"""The resources that gcloud makes: enabled APIs, the image repository, service accounts and their roles."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from cloud.resources.base import (
    LABEL,
    MISSING,
    Clients,
    Difference,
    Key,
    Resource,
    State,
    differences,
    has_label,
)
from cloud.resources.gcloud import GcloudError
from common.names import project_of_account

Target = Literal["project", "bucket", "topic", "subscription", "repository", "key"]

_DISPLAY_NAME: Final = "Transaction anomaly pipelines"
# Google makes the account of a service at its first use in a project, which may be still to come.
_AGENTS: Final = {
    "gcp-sa-pubsub.iam.gserviceaccount.com": "pubsub.googleapis.com",
    "gcp-sa-artifactregistry.iam.gserviceaccount.com": "artifactregistry.googleapis.com",
    "dataflow-service-producer-prod.iam.gserviceaccount.com": "dataflow.googleapis.com",
}
# These two have a request of their own for it.
_STORAGE: Final = "gs-project-accounts.iam.gserviceaccount.com"
_BIGQUERY: Final = "bigquery-encryption.iam.gserviceaccount.com"
_POLICY_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "project": ("projects",),
    "bucket": ("storage", "buckets"),
    "topic": ("pubsub", "topics"),
    "subscription": ("pubsub", "subscriptions"),
    "repository": ("artifacts", "repositories"),
    "key": ("kms", "keys"),
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
        """Lists the APIs that are not enabled."""
        return State.of([Difference(api, "disabled", "enabled") for api in self._disabled(clients)])

    def create(self, clients: Clients) -> None:
        """Enables the missing APIs; all of them where the command is printed and gcloud cannot list them."""
        try:
            disabled = self._disabled(clients)
        except GcloudError:
            if not clients.gcloud.print_only:
                raise
            disabled = list(self.apis)
        clients.gcloud.change("services", "enable", *disabled, f"--project={self.name}")

    def repair(self, clients: Clients, state: State) -> None:
        """Enables the missing APIs."""
        self.create(clients)

    def owned(self, clients: Clients) -> bool:
        """Answers no: other work in the project may need the APIs."""
        return False

    def _disabled(self, clients: Clients) -> list[str]:
        listing = clients.gcloud.read("services", "list", "--enabled", f"--project={self.name}")
        enabled = {entry["config"]["name"] for entry in listing or ()}
        return [api for api in self.apis if api not in enabled]


@dataclass(frozen=True)
class Repository(Resource):
    """A Docker repository in Artifact Registry; `name` is its id.

    Attributes:
      project: of the repository.
      location: region.
      kms_key: full name of the key that encrypts it; Google's own when empty.
    """

    kind: ClassVar[str] = "repository"
    by_gcloud: ClassVar[bool] = True

    project: str = ""
    location: str = "us-central1"
    kms_key: str = ""

    def inspect(self, clients: Clients) -> State:
        """Looks the repository up, and compares its format and its key."""
        try:
            repository = self._described(clients)
        except GcloudError as error:
            if error.is_missing:
                return MISSING
            raise
        declared = {"format": "DOCKER"} | ({"kmsKeyName": self.kms_key} if self.kms_key else {})
        return State.of(differences(repository, declared, fixed=tuple(declared)))

    def create(self, clients: Clients) -> None:
        """Makes the repository."""
        clients.gcloud.change(
            *("artifacts", "repositories", "create", *self._flags()),
            "--repository-format=docker",
            "--description=Image of the transaction anomaly pipelines",
            "--labels=" + ",".join(f"{key}={value}" for key, value in LABEL.items()),
            *((f"--kms-key={self.kms_key}",) if self.kms_key else ()),
        )

    def repair(self, clients: Clients, state: State) -> None:
        """Refuses: a repository keeps its format and its key."""
        delete = f"gcloud artifacts repositories delete {shlex.join(self._flags())}"
        state.refuse_fixed(
            f"repository {self.name}",
            f"Pass another --prefix, or remove the repository and its images: {delete}",
        )

    def owned(self, clients: Clients) -> bool:
        """Looks for the label."""
        return has_label(self._described(clients).get("labels", {}))

    def delete(self, clients: Clients) -> None:
        """Removes the repository with its images."""
        clients.gcloud.change("artifacts", "repositories", "delete", *self._flags())

    def _described(self, clients: Clients) -> Any:
        return clients.gcloud.read("artifacts", "repositories", "describe", *self._flags())

    def _flags(self) -> tuple[str, ...]:
        return (self.name, f"--location={self.location}", f"--project={self.project}")


@dataclass(frozen=True)
class ServiceAccount(Resource):
    """The account that workers and launcher, or builds of the image, run as; `name` is its address."""

    kind: ClassVar[str] = "service account"
    by_gcloud: ClassVar[bool] = True

    @property
    def project(self) -> str:
        """The project in the address."""
        return project_of_account(self.name)

    def inspect(self, clients: Clients) -> State:
        """Looks the account up, and whether it is enabled."""
        try:
            account = self._described(clients)
        except GcloudError as error:
            if error.is_missing:
                return MISSING
            raise
        return State.of([Difference("account", "disabled", "enabled")] if account.get("disabled") else [])

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
        """Compares the display name; accounts have no labels."""
        return bool(self._described(clients).get("displayName") == _DISPLAY_NAME)

    def delete(self, clients: Clients) -> None:
        """Removes the account."""
        clients.gcloud.change("iam", "service-accounts", "delete", self.name, f"--project={self.project}")

    def _described(self, clients: Clients) -> Any:
        flags = (self.name, f"--project={self.project}")
        return clients.gcloud.read("iam", "service-accounts", "describe", *flags)


@dataclass(frozen=True)
class Role(Resource):
    """One role of one account on one thing; `name` is the role.

    Attributes:
      member: "serviceAccount:..."; "{number}" in it is replaced by the project's number.
      target: kind of the thing.
      target_name: its name, as gcloud takes it.
      project: of the thing.
      location: of a repository.
    """

    kind: ClassVar[str] = "role"
    by_gcloud: ClassVar[bool] = True

    member: str = ""
    target: Target = "project"
    target_name: str = ""
    project: str = ""
    location: str = ""

    @property
    def key(self) -> Key:
        """Kind and title: a role may be given on several things."""
        return self.kind, self.title

    @property
    def part_of(self) -> Key | None:
        """Key of the thing that is deleted together with its policy; none for what stays."""
        if self.target in ("project", "key"):
            return None
        full = {"topic": "projects/{}/topics/{}", "subscription": "projects/{}/subscriptions/{}"}
        return self.target, full.get(self.target, "{1}").format(self.project, self.target_name)

    @property
    def needs(self) -> tuple[Key, ...]:
        """Keys of the thing and of the account."""
        account = (ServiceAccount.kind, self.member.removeprefix("serviceAccount:"))
        return (account, *filter(None, (self.part_of,)))

    def inspect(self, clients: Clients) -> State:
        """Looks for the role in the policy of the thing."""
        try:
            policy: Any = clients.gcloud.read(*self._command("get-iam-policy"))
        except GcloudError as error:
            if error.is_missing:
                return MISSING
            raise
        member = self._member(clients)
        for binding in (policy or {}).get("bindings", ()):
            if binding["role"] == self.name and member in binding["members"] and "condition" not in binding:
                return State("ok")
        return MISSING

    def create(self, clients: Clients) -> None:
        """Grants the role. It has Google make the account of a service first."""
        domain = self.member.partition("@")[2]
        project = f"--project={self.project}"
        if domain in _AGENTS:
            identity = ("beta", "services", "identity", "create")
            clients.gcloud.once(*identity, f"--service={_AGENTS[domain]}", project)
        elif domain == _STORAGE:
            clients.gcloud.once("storage", "service-agent", project)
        elif domain == _BIGQUERY and not clients.gcloud.print_only:
            clients.bigquery.get_service_account_email(self.project)  # gcloud has no command for it
        self._change(clients, "add-iam-policy-binding")

    def repair(self, clients: Clients, state: State) -> None:
        """Grants the role."""
        self.create(clients)

    def delete(self, clients: Clients) -> None:
        """Revokes the role."""
        self._change(clients, "remove-iam-policy-binding")

    @property
    def title(self) -> str:
        """Role, thing and account."""
        return f"{self.name} on {self.target} {self.target_name} for {self.member}"

    def _change(self, clients: Clients, verb: str) -> None:
        # Where a project's policy has conditional bindings, gcloud asks without this flag.
        condition = ["--condition=None"] if self.target == "project" else []
        flags = (f"--member={self._member(clients)}", f"--role={self.name}", *condition)
        clients.gcloud.change(*self._command(verb), *flags)

    def _command(self, verb: str) -> tuple[str, ...]:
        command = (*_POLICY_COMMANDS[self.target], verb, self.target_name)
        if self.target == "repository":
            command += (f"--location={self.location}",)
        # The name of a bucket is unique in the world, that of a key has its project; a project has none.
        is_whole = self.target in ("project", "bucket", "key")
        return command if is_whole else (*command, f"--project={self.project}")

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
            raise GcloudError(
                f"gcloud projects describe {self.project}: expected projectNumber, got {described}"
            ) from None

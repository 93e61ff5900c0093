"""Which roles the workers' service account needs for a job, and whether it has them."""

from __future__ import annotations

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError

from cloud.checks import template_image
from cloud.look import BIGQUERY_PATIENCE, Finding
from cloud.request import JobRequest
from cloud.resources.accounts import Role, ServiceAccount, Target
from cloud.resources.base import UNREACHABLE, Clients
from cloud.resources.gcloud import Gcloud, GcloudError
from cloud.resources.tables import may_write

_WIDER: Final = {
    "roles/pubsub.subscriber": ("roles/pubsub.editor", "roles/pubsub.admin"),
    "roles/pubsub.publisher": ("roles/pubsub.editor", "roles/pubsub.admin"),
    "roles/pubsub.viewer": ("roles/pubsub.editor", "roles/pubsub.admin", "roles/viewer"),
    "roles/pubsub.editor": ("roles/pubsub.admin",),
    "roles/storage.objectAdmin": ("roles/storage.admin",),
    "roles/storage.objectViewer": ("roles/storage.objectAdmin", "roles/storage.admin"),
    "roles/bigquery.dataEditor": ("roles/bigquery.dataOwner", "roles/bigquery.admin"),
    "roles/bigquery.jobUser": ("roles/bigquery.user", "roles/bigquery.admin"),
    "roles/bigquery.readSessionUser": ("roles/bigquery.user", "roles/bigquery.admin"),
    "roles/artifactregistry.reader": ("roles/artifactregistry.writer", "roles/artifactregistry.admin"),
    "roles/aiplatform.user": ("roles/aiplatform.admin",),
}
_THREADS: Final = 4
_ANY: Final = ("roles/editor", "roles/owner")
_IMAGE: Final = re.compile(
    r"(?P<region>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[^/]+)/(?P<repository>[^/]+)/.+"
)


def needed(request: JobRequest, image: str = "") -> list[Role]:
    """The roles that the account needs for this job, each on the narrowest thing.

    Args:
      request: the job.
      image: of the template, for a job that names none.
    """
    member = f"serviceAccount:{request.args.service_account_email}"
    own = request.args.project
    found: dict[tuple[str, str, str], Role] = {}

    def need(role: str, target: Target, name: str, project: str = own, location: str = "") -> None:
        found.setdefault(
            (role, target, name),
            Role(
                f"roles/{role}",
                member=member,
                target=target,
                target_name=name,
                project=project,
                location=location,
            ),
        )

    args = request.pipeline_args
    need("dataflow.worker", "project", own)
    if getattr(args, "subscription", None):
        _, project, _, name = args.subscription.split("/")
        need("pubsub.subscriber", "subscription", name, project)
        need("pubsub.viewer", "subscription", name, project)  # Dataflow looks it up
    if getattr(args, "topic", None):  # Dataflow makes a subscription for the job
        need("pubsub.editor", "project", args.topic.split("/")[1])
    if getattr(args, "alert_topic", None):
        _, project, _, name = args.alert_topic.split("/")
        need("pubsub.publisher", "topic", name, project)
        need("pubsub.viewer", "topic", name, project)
    written = (request.args.temp_location, request.args.staging_location, args.output or "")
    for uri in written:
        if uri.startswith("gs://"):
            need("storage.objectAdmin", "bucket", f"gs://{uri.split('/')[2]}")
    for uri in (args.model, getattr(args, "input", None) or ""):
        bucket = f"gs://{uri.split('/')[2]}" if uri.startswith("gs://") else ""
        if bucket and ("storage.objectAdmin", "bucket", bucket) not in found:
            need("storage.objectViewer", "bucket", bucket)
    if getattr(args, "input_table", None) or getattr(args, "input_query", None):
        need("bigquery.readSessionUser", "project", own)
    if getattr(args, "input_query", None) or args.write_method == "file_loads":
        need("bigquery.jobUser", "project", own)
    if getattr(args, "scorer", "") == "vertex":
        need("aiplatform.user", "project", args.vertex_endpoint.split("/")[1])
    for name in {request.args.image or image, image}:  # the launcher pulls the template's in any case
        parts = _IMAGE.fullmatch(name)
        if parts:
            repository = (parts["repository"], parts["project"], parts["region"])
            need("artifactregistry.reader", "repository", *repository)
    return list(found.values())


def check_worker(clients: Clients, request: JobRequest) -> list[Finding]:
    """Whether the account is there, and has the roles of `needed`, or wider ones."""
    account = request.args.service_account_email
    what = f"service account {account}"
    if not Gcloud.available():
        return [Finding(what, "note", "not checked, its roles neither: no gcloud on the PATH")]
    create = f"python -m cloud.resources create --project {request.args.project}"
    image = template_image(clients, request.args.template) if request.args.via == "flex" else ""
    # gcloud takes a second or more for each question; the same question is asked once.
    with ThreadPoolExecutor(_THREADS) as pool:
        roles = pool.map(lambda role: _check_role(clients, role), needed(request, image))
        try:
            state = ServiceAccount(account).inspect(clients)
        except GcloudError as error:
            return [Finding(what, "note", f"not checked: {error}", "gcloud auth login")]
    if state.status == "missing":
        return [Finding(what, "failed", "does not exist", create)]
    if state.status == "drift":
        enable = f"gcloud iam service-accounts enable {account} --project={request.args.project}"
        return [Finding(what, "failed", state.details[0], enable), *roles]
    return [Finding(what), *roles, *_check_dataset(clients, request)]


def _check_dataset(clients: Clients, request: JobRequest) -> list[Finding]:
    """Whether the account may write the tables, by the dataset's own list or by a role on its project."""
    account, dataset = request.args.service_account_email, request.pipeline_args.output_dataset
    if not dataset or clients.local_bigquery:
        return []
    role = "roles/bigquery.dataEditor"
    what = f"{role} on dataset {dataset} for the workers"
    try:
        if may_write(clients.bigquery.get_dataset(dataset, **BIGQUERY_PATIENCE), account):
            return [Finding(what)]
    except (GoogleAPICallError, GoogleAuthError, *UNREACHABLE):
        return []  # checks.check_dataset tells why
    project = dataset.rpartition(".")[0]
    on_project = Role(
        role, member=f"serviceAccount:{account}", target="project", target_name=project, project=project
    )
    found = _check_role(clients, on_project)
    if found.status != "failed":
        return [Finding(what, found.status, found.problem)]
    grant = shlex.quote(grant_sql(role, dataset, account))
    problem = "is not granted there, nor a wider one on the project"
    return [Finding(what, "failed", problem, f"bq query --use_legacy_sql=false {grant}")]


def grant_sql(role: str, dataset: str, account: str) -> str:
    """The statement that gives a service account a role on a dataset."""
    return f'GRANT `{role}` ON SCHEMA `{dataset}` TO "serviceAccount:{account}"'


def _check_role(clients: Clients, role: Role) -> Finding:
    what = f"{role.name} on {role.target} {role.target_name} for the workers"
    try:
        if any(candidate.inspect(clients).status == "ok" for candidate in _enough(role)):
            return Finding(what)
    except GcloudError as error:
        return Finding(what, "note", f"not checked: {str(error).splitlines()[-1]}")
    printed = Gcloud(print_only=True, quiet=True)
    role.create(Clients(clients.project, gcloud=printed))
    problem = "is not granted there, nor a wider one on the project (through a group: use --skip-preflight)"
    return Finding(what, "failed", problem, printed.printed[0])


def _enough(role: Role) -> list[Role]:
    """The role and the wider ones, on the thing and on the project."""
    names = (role.name, *_WIDER.get(role.name, ()), *_ANY)
    on_thing = [_with(role, name, role.target, role.target_name) for name in names]
    if role.target == "project":
        return on_thing
    return on_thing + [_with(role, name, "project", role.project) for name in names]


def _with(role: Role, name: str, target: Target, target_name: str) -> Role:
    return Role(
        name,
        member=role.member,
        target=target,
        target_name=target_name,
        project=role.project,
        location=role.location,
    )

"""Checks of the workers' service account: its roles, and its rights on the tables it writes and reads."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from google.cloud import bigquery

from cloud.checks.finding import BIGQUERY_PATIENCE, Finding, bucket_of
from cloud.checks.storage import template_image
from cloud.request import JobRequest
from cloud.resources.accounts import Role, ServiceAccount, Target
from cloud.resources.base import Clients
from cloud.resources.gcloud import Gcloud, GcloudError
from cloud.resources.tables import READ_ROLES, may_read, may_write
from common import google
from common.bigquery import table_reference

_WIDER: Final = {
    "roles/pubsub.subscriber": ("roles/pubsub.editor", "roles/pubsub.admin"),
    "roles/pubsub.publisher": ("roles/pubsub.editor", "roles/pubsub.admin"),
    "roles/pubsub.viewer": ("roles/pubsub.editor", "roles/pubsub.admin", "roles/viewer"),
    "roles/pubsub.editor": ("roles/pubsub.admin",),
    "roles/storage.objectAdmin": ("roles/storage.admin",),
    "roles/storage.objectViewer": ("roles/storage.objectAdmin", "roles/storage.admin"),
    "roles/bigquery.dataEditor": ("roles/bigquery.dataOwner", "roles/bigquery.admin"),
    "roles/bigquery.dataViewer": (
        *("roles/bigquery.dataEditor", "roles/bigquery.dataOwner", "roles/bigquery.admin"),
        "roles/viewer",  # datasets let the viewers of their project read, unless somebody took that away
    ),
    "roles/bigquery.jobUser": ("roles/bigquery.user", "roles/bigquery.admin"),
    "roles/bigquery.readSessionUser": ("roles/bigquery.user", "roles/bigquery.admin"),
    "roles/artifactregistry.reader": ("roles/artifactregistry.writer", "roles/artifactregistry.admin"),
    "roles/aiplatform.user": ("roles/aiplatform.admin",),
}
_THREADS: Final = 4
_BROAD: Final = ("roles/editor", "roles/owner")
IMAGE: Final = re.compile(
    r"(?P<region>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>([^/]+\.[^/]+/)?[^/]+)/(?P<repository>[^/]+)/.+"
)


def needed_roles(request: JobRequest, image: str = "") -> list[Role]:
    """Lists the roles that the account needs for this job, each on the narrowest thing.

    Args:
      request: the job.
      image: of the template, for a job that names none.
    """
    own = request.installation.project
    roles: dict[tuple[str, str, str], Role] = {}

    def need(role: str, target: Target, name: str, project: str = own, location: str = "") -> None:
        roles.setdefault(
            (role, target, name),
            Role(
                f"roles/{role}",
                member=f"serviceAccount:{request.account}",
                target=target,
                target_name=name,
                project=project,
                location=location,
            ),
        )

    command = request.pipeline
    need("dataflow.worker", "project", own)
    if command.subscription:
        _, project, _, name = command.subscription.split("/")
        need("pubsub.subscriber", "subscription", name, project)
        need("pubsub.viewer", "subscription", name, project)  # Dataflow looks it up
    if command.topic:  # Dataflow makes a subscription for the job
        need("pubsub.editor", "project", command.topic.split("/")[1])
    for topic in filter(None, (command.alert_topic, command.scores_topic)):
        _, project, _, name = topic.split("/")
        need("pubsub.publisher", "topic", name, project)
        need("pubsub.viewer", "topic", name, project)
    for uri in (request.temp_location, request.staging_location, command.output or ""):
        if uri.startswith("gs://"):
            need("storage.objectAdmin", "bucket", bucket_of(uri))
    for uri in (command.model, command.shadow_model or "", command.history or "", command.input or ""):
        if uri.startswith("gs://") and ("storage.objectAdmin", "bucket", bucket_of(uri)) not in roles:
            need("storage.objectViewer", "bucket", bucket_of(uri))
    if command.input_table or command.input_query:
        need("bigquery.readSessionUser", "project", own)
    if command.input_query or command.load_jobs:
        need("bigquery.jobUser", "project", own)
    if command.scorer == "vertex" and command.vertex_endpoint:
        need("aiplatform.user", "project", command.vertex_endpoint.split("/")[1])
    for name in {request.job.image or image, image}:  # the launcher pulls the template's in any case
        parts = IMAGE.fullmatch(name)
        if parts:
            repository = (parts["repository"], parts["project"].replace("/", ":"), parts["region"])
            need("artifactregistry.reader", "repository", *repository)
    return list(roles.values())


def check_worker(clients: Clients, request: JobRequest) -> list[Finding]:
    """Checks that the account exists and has the roles of `needed_roles`, or wider ones."""
    account, project = request.account, request.installation.project
    subject = f"service account {account}"
    if not Gcloud.available():
        return [Finding(subject, "note", "not checked, nor its roles: no gcloud on the PATH")]
    image = template_image(clients, request.template) if request.job.via == "flex" else ""
    # gcloud takes a second or more for each command; it runs the same command once.
    with ThreadPoolExecutor(_THREADS) as pool:
        roles = pool.map(lambda role: _check_role(clients, role), needed_roles(request, image))
        try:
            state = ServiceAccount(account).inspect(clients)
        except GcloudError as error:
            problem = f"not checked, nor its roles: {str(error).splitlines()[0]}"
            return [Finding(subject, "note", problem, "gcloud auth login")]
    if state.status == "missing":
        return [Finding(subject, "failed", "does not exist", f"anomaly resources create --project {project}")]
    if state.status == "drift":
        enable = f"gcloud iam service-accounts enable {account} --project={project}"
        return [Finding(subject, "failed", "is disabled", enable), *roles]
    return [Finding(subject), *roles, *_check_dataset(clients, request), *_check_sources(clients, request)]


def _check_dataset(clients: Clients, request: JobRequest) -> list[Finding]:
    """Checks that the account may write the tables, by the dataset's access list or a role on its project."""
    account, dataset = request.account, request.pipeline.output_dataset
    if not dataset or clients.local_bigquery:
        return []
    role = "roles/bigquery.dataEditor"
    subject = f"{role} on dataset {dataset} for the workers"
    try:
        if may_write(clients.bigquery.get_dataset(dataset, **BIGQUERY_PATIENCE), account):
            return [Finding(subject)]
    except google.ERRORS:
        return []  # services.check_dataset reports it
    return [_check_on_project(clients, subject, role, dataset, account)]


def _check_sources(clients: Clients, request: JobRequest) -> list[Finding]:
    """Checks that the account may read the tables of --input_table and --input_query.

    That is said by the access list of the dataset, by the policy of the table, or by a role on the project.
    """
    command, role = request.pipeline, "roles/bigquery.dataViewer"
    if clients.local_bigquery:
        return []
    try:
        found = [table_reference(command.input_table)] if command.input_table else []
        found += _tables_of(clients, command.input_query) if command.input_query else []
    except google.ERRORS:
        return []  # services.check_input_query reports it
    findings = []
    for table in found:
        name = f"{table.project}.{table.dataset_id}"
        subject = f"{role} on table {name}.{table.table_id} for the workers"
        try:
            if may_read(
                clients.bigquery.get_dataset(name, **BIGQUERY_PATIENCE), request.account
            ) or _in_policy(clients.bigquery.get_iam_policy(table, **BIGQUERY_PATIENCE), request.account):
                findings.append(Finding(subject))
                continue
        except google.ERRORS as error:
            # Whoever launches need not be allowed to look at the policies of somebody else's tables.
            findings.append(Finding(subject, "note", f"not checked: {google.explain(error)}"))
            continue
        findings.append(_check_on_project(clients, subject, role, name, request.account))
    return findings


def _tables_of(clients: Clients, sql: str) -> list[bigquery.TableReference]:
    """Lists the tables that a query reads, by a dry run, which is free."""
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    return list(clients.bigquery.query(sql, job_config=config).referenced_tables)


def _in_policy(policy: Any, account: str) -> bool:
    """Tells whether the policy of a table lets a service account read it."""
    members = (f"serviceAccount:{account}", "allUsers", "allAuthenticatedUsers")
    return any(
        binding["role"] in READ_ROLES
        and "condition" not in binding
        and set(members) & set(binding["members"])
        for binding in policy.bindings
    )


def _check_on_project(clients: Clients, subject: str, role: str, dataset: str, account: str) -> Finding:
    """Looks for a role on the project of a dataset, whose access list does not have it."""
    project = dataset.rpartition(".")[0]
    on_project = Role(
        role, member=f"serviceAccount:{account}", target="project", target_name=project, project=project
    )
    finding = _check_role(clients, on_project)
    if finding.status != "failed":
        return Finding(subject, finding.status, finding.problem)
    problem = "is not granted there, nor a wider one on the project"
    return Finding(
        subject, "failed", problem, google.grant_on_dataset(dataset, role, f"serviceAccount:{account}")
    )


def _check_role(clients: Clients, role: Role) -> Finding:
    subject = f"{role.name} on {role.target} {role.target_name} for the workers"
    try:
        if any(candidate.inspect(clients).status == "ok" for candidate in _sufficient(role)):
            return Finding(subject)
    except GcloudError as error:
        return Finding(subject, "note", f"not checked: {str(error).splitlines()[-1]}")
    printer = Gcloud(print_only=True, quiet=True)
    role.create(Clients(clients.project, gcloud=printer))
    problem = "is not granted there, nor a wider one on the project (through a group: use --skip_preflight)"
    return Finding(subject, "failed", problem, printer.printed[0])


def _sufficient(role: Role) -> list[Role]:
    """Lists the role and the wider ones, on the thing and on the project."""
    names = (role.name, *_WIDER.get(role.name, ()), *_BROAD)
    on_thing = [dataclasses.replace(role, name=name) for name in names]
    if role.target == "project":
        return on_thing
    on_project = dataclasses.replace(role, target="project", target_name=role.project)
    return on_thing + [dataclasses.replace(on_project, name=name) for name in names]

"""Checks of Pub/Sub, BigQuery, Dataflow, and the servers of the model."""

from __future__ import annotations

import urllib.error
import urllib.request

from google.cloud import bigquery

from cloud.checks.finding import BIGQUERY_PATIENCE, Finding, Lookup, left_to_the_workers, project_of
from cloud.endpoints import client_arguments
from cloud.jobs import ENDING, JobError
from cloud.pipeline import PipelineCommand
from cloud.request import JobRequest
from cloud.resources.base import Clients
from cloud.resources.tables import column_differences, table_differences
from common.google import ERRORS, remedy
from common.loopback import urlopen
from common.retry import LOOK_SECONDS
from model import artifact
from transforms import tables
from transforms.bigquery.source import arrow_schema
from transforms.columnar import SourceColumnsError, check_columns

_METADATA_ROLE = "roles/bigquery.metadataViewer"


def check_job_name(request: JobRequest) -> list[Finding]:
    """Checks that the name is free, or belongs to the job to be updated.

    Dataflow refuses a name that is taken only when the launcher of a template is up, minutes later.
    """
    installation, name = request.installation, request.job_name
    subject = f"job {name}"
    place = f"--project {installation.project} --region {installation.region}"
    try:
        active = installation.jobs().listing(active=True)
    except JobError as error:
        if error.problem and error.problem.is_setup:
            fix = remedy(error.problem, installation.project)
            return [Finding(subject, "failed", f"not looked up: {error.problem}", fix, error.problem.kind)]
        return [Finding(subject, "note", f"not looked up: {error}", f"anomaly launch list {place}")]
    running = next((job for job in active if job.name == name), None)
    if running and running.state in ENDING:
        problem = f"is {running.state} ({running.id}): wait for its end, or pass another --job_name"
        return [Finding(subject, "failed", problem, f"anomaly launch status {name} {place} --wait")]
    if running and not request.job.update:
        end = "drain" if running.kind == "streaming" else "cancel"  # a batch job cannot be drained
        problem = f"runs already ({running.id}): pass --update, another --job_name, or {end} it"
        return [Finding(subject, "failed", problem, f"anomaly launch {end} {name} {place}")]
    if request.job.update and not running:
        problem = "does not run, so that there is nothing to update: leave out --update"
        return [Finding(subject, "failed", problem, f"anomaly launch list --active {place}")]
    return [Finding(subject)]


def check_topic(clients: Clients, name: str) -> list[Finding]:
    """Checks that the topic exists."""
    _, project, _, topic = name.split("/")
    create = f"gcloud pubsub topics create {topic} --project={project}"
    lookup = Lookup(f"topic {name}", create, "pubsub.topics.get", "roles/pubsub.viewer", project)
    _, failed = lookup.run(lambda: clients.publisher.get_topic(topic=name))
    return failed or [Finding(lookup.subject)]


def check_subscription(clients: Clients, name: str, topic: str) -> list[Finding]:
    """Checks that the subscription exists, has a topic, is pulled, and suits Dataflow.

    Args:
      clients: Google's clients.
      name: projects/PROJECT/subscriptions/SUBSCRIPTION.
      topic: for a subscription that has to be made.
    """
    _, project, _, short_name = name.split("/")
    create = f"gcloud pubsub subscriptions create {short_name} --project={project} --topic={topic}"
    subject = f"subscription {name}"
    lookup = Lookup(subject, create, "pubsub.subscriptions.get", "roles/pubsub.viewer", project)
    subscription, failed = lookup.run(lambda: clients.subscriber.get_subscription(subscription=name))
    if subscription is None:
        return failed
    update = f"gcloud pubsub subscriptions update {short_name} --project={project}"
    if subscription.topic == "_deleted-topic_":
        renew = f"gcloud pubsub subscriptions delete {short_name} --project={project} && {create}"
        return [Finding(subject, "failed", "its topic was deleted, so that no message will arrive", renew)]
    endpoint = subscription.push_config.push_endpoint
    if endpoint:
        problem = f"pushes to {endpoint}; Dataflow pulls"
        return [Finding(subject, "failed", problem, f"{update} --push-endpoint=")]
    notes = []
    if subscription.enable_exactly_once_delivery:
        problem = "exactly-once delivery slows Dataflow down, which deduplicates by itself"
        notes.append(Finding(subject, "note", problem, f"{update} --no-enable-exactly-once-delivery"))
    if subscription.dead_letter_policy.dead_letter_topic:
        problem = "Dataflow returns messages for reasons of its own, and the dead-letter topic takes them"
        notes.append(Finding(subject, "note", problem, f"{update} --clear-dead-letter-policy"))
    return notes or [Finding(subject)]


def check_dataset(
    clients: Clients,
    dataset: str,
    full: bool,
    create: bool,
    region: str = "us-central1",
    by_caller: bool = False,
) -> list[Finding]:
    """Checks the dataset, its tables with their columns, and its views.

    Args:
      clients: Google's clients.
      dataset: "PROJECT.DATASET".
      full: whether the scores table has every output of the model.
      create: whether the launch makes the missing tables.
      region: for a dataset that has to be made.
      by_caller: whether the launch makes them with the rights of the caller, not with those of the workers.
    """
    project, _, name = dataset.rpartition(".")
    command = f"anomaly resources create --project {project} --region {region} --dataset {name}"
    lookup = Lookup(f"dataset {dataset}", command, "bigquery.datasets.get", _METADATA_ROLE, project)
    _, failed = lookup.run(lambda: clients.bigquery.get_dataset(dataset, **BIGQUERY_PATIENCE))
    if failed:
        return failed
    findings = [Finding(lookup.subject)]
    rights = f", for which you need roles/bigquery.dataEditor on {dataset} and roles/bigquery.jobUser"
    launch = f"{{}} it{rights if by_caller else ''}" if create else ""
    for spec in (tables.scores_table(full=full), *tables.TABLES[1:]):
        found = _check_table(clients, f"{dataset}.{spec.name}", spec, launch, command)
        findings += found
        if all(finding.status == "ok" for finding in found):
            findings += _check_view(clients, dataset, spec, launch, command)
    return findings


def _check_view(
    clients: Clients, dataset: str, spec: tables.TableSpec, launch: str, command: str
) -> list[Finding]:
    """Looks for a view that queries would miss; a job needs none."""
    name = f"{dataset}.{spec.view}"
    lookup = Lookup(f"view {name}", command, "bigquery.tables.get", _METADATA_ROLE, project_of(name))
    view, failed = lookup.run(lambda: clients.bigquery.get_table(name, **BIGQUERY_PATIENCE))
    if view is None and failed[0].cause != "missing":
        return failed
    settings = tables.view_settings(view, spec, dataset)
    differing = ", ".join(setting for setting, (actual, declared) in settings.items() if actual != declared)
    if not differing:
        return []
    if view is None:
        return [_to_be_made(lookup.subject, "does not exist", launch.format("makes"), command)]
    problem = f"{differing}: not as declared"
    return [_to_be_made(lookup.subject, problem, launch.format("replaces"), command)]


def _to_be_made(subject: str, problem: str, step: str, command: str) -> Finding:
    """Notes a difference, and that the launch takes a step to remove it, where it does."""
    return Finding(subject, "note", f"{problem}; the launch {step}" if step else problem, command)


def _check_table(
    clients: Clients, name: str, spec: tables.TableSpec, launch: str, command: str
) -> list[Finding]:
    """Checks one table; `launch` is what the launch does to a difference, with a place for the verb."""
    subject = f"table {name}"
    lookup = Lookup(subject, command, "bigquery.tables.get", _METADATA_ROLE, project_of(name))
    table, failed = lookup.run(lambda: clients.bigquery.get_table(name, **BIGQUERY_PATIENCE))
    if table is None:
        if launch and failed[0].cause == "missing":
            return [_to_be_made(subject, "does not exist", launch.format("makes"), command)]
        return failed
    columns = column_differences(table, spec)
    conflicts = "; ".join(str(difference) for difference in columns if not difference.fixable)
    if conflicts:
        return [Finding(subject, "failed", conflicts, "pass another --output_dataset")]
    missing = "; ".join(map(str, columns))
    if missing and launch:
        return [_to_be_made(subject, missing, launch.format("adds"), command)]
    if missing:
        return [Finding(subject, "failed", missing, command)]
    differences = table_differences(table, spec)
    return [Finding(subject, "note", str(difference), command) for difference in differences] or [
        Finding(subject)
    ]


def check_input_table(clients: Clients, name: str, command: PipelineCommand) -> list[Finding]:
    """Checks that the source table exists and has the columns that the model asks for.

    Args:
      clients: Google's clients.
      name: PROJECT.DATASET.TABLE.
      command: of the pipeline; its flags name columns, and its model the features.
    """
    lookup = Lookup(
        f"table {name}",
        "pass another --input_table",
        "bigquery.tables.get",
        _METADATA_ROLE,
        project_of(name),
    )
    table, failed = lookup.run(lambda: clients.bigquery.get_table(name, **BIGQUERY_PATIENCE))
    if table is None:
        return left_to_the_workers(failed)
    select = "select from it with --input_query, which can rename and convert columns"
    if table.table_type in ("VIEW", "MATERIALIZED_VIEW"):
        return [Finding(lookup.subject, "failed", "is a view, which has no rows of its own", select)]
    try:
        rules = command.options.messages.rules(artifact.verify(command.model))
        check_columns(arrow_schema(table.schema), rules)
    except SourceColumnsError as error:
        return [Finding(lookup.subject, "failed", str(error), select)]
    except (artifact.ArtifactError, *ERRORS):
        problem = "its columns are not compared, since the model cannot be read"
        return [Finding(lookup.subject, "note", problem, "see the check of the model")]
    return [Finding(f"{lookup.subject}, {table.num_rows or 0:,} rows")]


def check_input_query(clients: Clients, sql: str) -> list[Finding]:
    """Checks a query by a dry run, which is free."""
    lookup = Lookup(
        "--input_query",
        "correct the names in it",
        "bigquery.jobs.create",
        "roles/bigquery.jobUser",
        clients.project,
    )
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    job, failed = lookup.run(lambda: clients.bigquery.query(sql, job_config=config))
    if job is None:
        return left_to_the_workers(failed)
    return [Finding(f"--input_query, scans {(job.total_bytes_processed or 0) / 1024**2:,.1f} MiB")]


def check_vertex(endpoint: str, api_endpoint: str | None) -> list[Finding]:
    """Checks that the Vertex AI endpoint exists and has a model."""
    from google.cloud import aiplatform_v1

    _, project, _, region, _, _ = endpoint.split("/")
    api = api_endpoint or f"{region}-aiplatform.googleapis.com"
    # `list` shows what `deploy` needs: the names of models and of endpoints.
    show = f"anomaly vertex list --project {project} --region {region}"
    lookup = Lookup(
        f"Vertex AI endpoint {endpoint}", show, "aiplatform.endpoints.get", "roles/aiplatform.user", project
    )
    model_endpoint, failed = lookup.run(
        lambda: aiplatform_v1.EndpointServiceClient(
            **client_arguments(api, "--vertex_api_endpoint")
        ).get_endpoint(name=endpoint)
    )
    if model_endpoint is None:
        return failed
    if not model_endpoint.deployed_models:
        return [Finding(lookup.subject, "failed", "has no deployed model", show)]
    return [Finding(f"{lookup.subject}, {len(model_endpoint.deployed_models)} models")]


def check_torchserve(url: str) -> list[Finding]:
    """Checks that TorchServe answers from here; the network of the workers may differ."""
    subject, ping = f"TorchServe {url}", f"{url.rstrip('/')}/ping"
    try:
        with urlopen(ping, timeout=LOOK_SECONDS) as answer:
            if answer.status == 200:
                return [Finding(subject)]
            problem = f"answers {answer.status} to /ping"
    except (urllib.error.URLError, OSError) as error:
        problem = f"does not answer from this machine: {error}"
    return [Finding(subject, "note", f"{problem}; the workers must reach it", f"curl {ping}")]

"""The single checks before a launch: what they look at, and what they say when it is not there."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import Forbidden, GoogleAPICallError, MethodNotImplemented
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery

from cloud.look import (
    AGAIN,
    BIGQUERY_PATIENCE,
    Finding,
    Look,
    bucket_of,
    enabling,
    grant,
    grant_on_bucket,
    no_credentials,
    project_of,
)
from cloud.resources.base import UNREACHABLE, Clients
from cloud.resources.tables import table_differences
from common.options import OptionError
from model import artifact
from model.features import FEATURES
from pipelines import options
from transforms import tables
from transforms.clients import is_loopback

RESOURCE_MANAGER_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER"
"""gcloud's own variable for another endpoint of the Resource Manager; obeyed here too."""


def check_model(project: str, detection: options.DetectionOptions, bucket: str) -> list[Finding]:
    """Manifest, files, sha256 and feature order of the artifact, and that workers can reach it.

    Args:
      project: of the launch.
      detection: of the pipeline; its thresholds are compared with the model's.
      bucket: gs://BUCKET of the installation, for a model that has to be copied.
    """
    uri, what = detection.model, f"model {detection.model}"
    if not artifact.is_gcs(uri):
        copy = f"gcloud storage cp -r {uri.rstrip('/')}/* {bucket}/model/"
        return [Finding(what, "failed", "is on this machine, where no worker finds it", copy)]
    look = Look(what, "", "storage.objects.get", "roles/storage.objectViewer", project, bucket_of(uri))
    try:
        manifest = artifact.verify(uri)
    except artifact.ArtifactError as error:
        cause = error.__cause__  # what Cloud Storage's client raised, where it was that
        if isinstance(cause, Forbidden):
            return [look.forbidden(cause)]
        if isinstance(cause, GoogleAuthError):
            return [no_credentials(what, cause)]
        if isinstance(cause, UNREACHABLE):
            return [Finding(what, "failed", f"no answer: {cause}", AGAIN)]
        return [Finding(what, "failed", str(error), f"python -m model.train --output {uri}")]
    except UNREACHABLE as error:
        return [Finding(what, "failed", f"no answer: {error}", AGAIN)]
    try:
        detection.thresholds(manifest.thresholds)
    except OptionError as error:
        return [Finding(what, "failed", str(error), "give thresholds that ascend, or leave them out")]
    return [Finding(f"{what}, version {manifest.model_version}")]


def check_topic(clients: Clients, name: str) -> list[Finding]:
    """Whether the topic is there."""
    _, project, _, topic = name.split("/")
    create = f"gcloud pubsub topics create {topic} --project={project}"
    look = Look(f"topic {name}", create, "pubsub.topics.get", "roles/pubsub.viewer", project)
    _, failed = look.up(lambda: clients.publisher.get_topic(topic=name))
    return failed or [Finding(look.what)]


def check_subscription(clients: Clients, name: str, topic: str) -> list[Finding]:
    """Whether the subscription is there, has a topic, is pulled, and suits Dataflow.

    Args:
      clients: Google's clients.
      name: projects/PROJECT/subscriptions/SUBSCRIPTION.
      topic: that a new one would be made for.
    """
    _, project, _, subscription = name.split("/")
    create = f"gcloud pubsub subscriptions create {subscription} --project={project} --topic={topic}"
    what = f"subscription {name}"
    look = Look(what, create, "pubsub.subscriptions.get", "roles/pubsub.viewer", project)
    found, failed = look.up(lambda: clients.subscriber.get_subscription(subscription=name))
    if failed:
        return failed
    update = f"gcloud pubsub subscriptions update {subscription} --project={project}"
    if found.topic == "_deleted-topic_":
        again = f"gcloud pubsub subscriptions delete {subscription} --project={project} && {create}"
        return [Finding(what, "failed", "its topic was deleted, so that nothing will arrive", again)]
    if found.push_config.push_endpoint:
        problem = f"pushes to {found.push_config.push_endpoint}; Dataflow pulls"
        return [Finding(what, "failed", problem, f"{update} --push-endpoint=")]
    notes = []
    if found.enable_exactly_once_delivery:
        problem = "exactly-once delivery slows Dataflow down, which deduplicates by itself"
        notes.append(Finding(what, "note", problem, f"{update} --no-enable-exactly-once-delivery"))
    if found.dead_letter_policy.dead_letter_topic:
        problem = "Dataflow puts messages back for reasons of its own, and its dead-letter topic takes them"
        notes.append(Finding(what, "note", problem, f"{update} --clear-dead-letter-policy"))
    return notes or [Finding(what)]


def check_dataset(
    clients: Clients, dataset: str, full: bool, create: bool, region: str = "us-central1"
) -> list[Finding]:
    """The dataset, and its tables with their columns.

    Args:
      clients: Google's clients.
      dataset: "PROJECT.DATASET".
      full: whether the scores table has every output of the model.
      create: whether the launch makes the missing tables.
      region: where it would be made.
    """
    project, _, name = dataset.rpartition(".")
    command = f"python -m cloud.resources create --project {project} --region {region} --dataset {name}"
    role = "roles/bigquery.metadataViewer"
    look = Look(f"dataset {dataset}", command, "bigquery.datasets.get", role, project)
    _, failed = look.up(lambda: clients.bigquery.get_dataset(dataset, **BIGQUERY_PATIENCE))
    if failed:
        return failed
    findings = [Finding(f"dataset {dataset}")]
    for spec in (tables.scores_table(full=full), *tables.TABLES[1:]):
        findings += _check_table(clients, f"{dataset}.{spec.name}", spec, create, command)
    return findings


def _check_table(
    clients: Clients, name: str, spec: tables.TableSpec, create: bool, command: str
) -> list[Finding]:
    project = project_of(name)
    look = Look(f"table {name}", command, "bigquery.tables.get", "roles/bigquery.metadataViewer", project)
    found, failed = look.up(lambda: clients.bigquery.get_table(name, **BIGQUERY_PATIENCE))
    if failed and create and failed[0].problem == "does not exist":
        return [Finding(look.what, "note", "does not exist, and will be created at launch")]
    if failed:
        return failed
    differences = table_differences(found, spec)
    barred = [text for text in differences if text.startswith("column") and "cannot be changed" in text]
    if barred:
        return [Finding(look.what, "failed", "; ".join(barred), "give another --output_dataset")]
    lacking = [text for text in differences if text.endswith("is missing")]
    if lacking and not create:
        return [Finding(look.what, "failed", "; ".join(lacking), command)]
    if lacking:
        return [Finding(look.what, "note", f"{'; '.join(lacking)}, and will be added at launch")]
    return [Finding(look.what, "note", text, command) for text in differences] or [Finding(look.what)]


def check_input_table(clients: Clients, name: str) -> list[Finding]:
    """Whether the source table is there and has the features."""
    project = project_of(name)
    look = Look(f"table {name}", "give another --input_table", "bigquery.tables.get",
                "roles/bigquery.dataViewer", project)  # fmt: skip
    found, failed = look.up(lambda: clients.bigquery.get_table(name, **BIGQUERY_PATIENCE))
    if failed:
        return failed
    columns = {field.name.lower() for field in found.schema}
    lacking = [feature for feature in FEATURES if feature.lower() not in columns]
    if lacking and "features" not in columns:
        problem = f"lacks the columns {', '.join(lacking)}"
        return [
            Finding(look.what, "failed", problem, "rename them in an --input_query='SELECT ... AS V1, ...'")
        ]
    return [Finding(f"{look.what}, {found.num_rows or 0:,} rows")]


def check_input_query(clients: Clients, sql: str) -> list[Finding]:
    """A dry run of the query, which is free."""
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    look = Look("--input_query", "correct the names in it", "bigquery.jobs.create",
                "roles/bigquery.jobUser", clients.project)  # fmt: skip
    job, failed = look.up(lambda: clients.bigquery.query(sql, job_config=config))
    if failed and "Access Denied: " in failed[0].problem:
        # The query is the job's to run: whoever launches it need not be allowed to read what it reads.
        return [Finding(look.what, "note", f"not checked, the workers must be able to: {failed[0].problem}")]
    if failed:
        return failed
    return [Finding(f"--input_query, scans {(job.total_bytes_processed or 0) / 1024**2:,.1f} MiB")]


def check_location(clients: Clients, uri: str, flag: str, region: str = "us-central1") -> list[Finding]:
    """Whether the bucket is there and may be written.

    Only the caller's permissions on it are asked for, which needs none: to read the bucket itself takes
    storage.buckets.get, which roles/storage.objectAdmin has not. A missing bucket is told all the same.

    Args:
      clients: Google's clients.
      uri: gs://BUCKET/PATH.
      flag: that gave it.
      region: where it would be made.
    """
    what = f"{flag}={uri}"
    if not uri.startswith("gs://"):
        return [
            Finding(what, "failed", "is on this machine, where no worker finds it", "give gs://BUCKET/PATH")
        ]
    bucket, role = bucket_of(uri), "roles/storage.objectAdmin"
    name = bucket.removeprefix("gs://")
    place = f"--project {clients.project} --region {region}"
    create = f"python -m cloud.resources create {place} --bucket {name}"
    look = Look(what, create, "storage.objects.create", role, clients.project, bucket)
    wanted = ["storage.objects.create", "storage.objects.get", "storage.objects.list"]
    held, failed = look.up(lambda: clients.storage.bucket(name).test_iam_permissions(wanted))
    if failed:
        return failed
    lacking = [permission for permission in wanted if permission not in held]
    if lacking:
        problem = f"you lack {', '.join(lacking)} ({role})"
        return [Finding(what, "failed", problem, grant_on_bucket(bucket, role))]
    return [Finding(what)]


def check_files(project: str, pattern: str, flag: str) -> list[Finding]:
    """Whether the pattern has files."""
    from apache_beam.io.filesystems import FileSystems

    what = f"{flag}={pattern}"
    if not pattern.startswith("gs://"):
        return [
            Finding(what, "failed", "is on this machine, where no worker finds it", "give gs://BUCKET/PATH")
        ]
    try:
        matched = FileSystems.match([pattern])[0].metadata_list
    except GoogleAuthError as error:
        return [no_credentials(what, error)]
    except Exception as error:  # Beam wraps whatever Cloud Storage's client raises
        enable = enabling(str(error), project)
        return [
            Finding(what, "failed", f"cannot be read: {error}", enable or f"gcloud storage ls '{pattern}'")
        ]
    if not matched:
        return [Finding(what, "failed", "matches no file", f"gcloud storage ls '{pattern}'")]
    size = sum(file.size_in_bytes for file in matched) / 1024**2
    return [Finding(f"{what}, {len(matched)} files, {size:,.1f} MiB")]


def check_vertex(endpoint: str, api_endpoint: str | None) -> list[Finding]:
    """Whether the Vertex AI endpoint is there and has a model."""
    from google.cloud import aiplatform_v1

    _, project, _, region, _, _ = endpoint.split("/")
    what = f"Vertex AI endpoint {endpoint}"
    arguments: dict[str, Any] = {}
    if api_endpoint and is_loopback(urlsplit(api_endpoint).hostname or ""):
        arguments = {"transport": "rest", "credentials": AnonymousCredentials()}
    base = api_endpoint or f"{region}-aiplatform.googleapis.com"
    options = ClientOptions(api_endpoint=base)
    # Deploying takes the name of a model, and makes an endpoint by its display name: status shows both.
    shown = f"python -m model.serving.vertex status --project {project} --region {region}"
    look = Look(what, shown, "aiplatform.endpoints.get", "roles/aiplatform.user", project)
    found, failed = look.up(
        lambda: aiplatform_v1.EndpointServiceClient(client_options=options, **arguments).get_endpoint(
            name=endpoint
        )
    )
    if failed:
        return failed
    if not found.deployed_models:
        return [Finding(what, "failed", "has no deployed model", shown)]
    return [Finding(f"{what}, {len(found.deployed_models)} models")]


def check_torchserve(url: str) -> list[Finding]:
    """Whether TorchServe answers; from here, which says little of the workers' network."""
    what = f"TorchServe {url}"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/ping", timeout=10) as answer:  # noqa: S310
            if answer.status == 200:
                return [Finding(what)]
            problem = f"answers {answer.status} to /ping"
    except (urllib.error.URLError, OSError) as error:
        problem = f"does not answer from this machine: {error}"
    return [Finding(what, "note", f"{problem}; the workers must reach it", f"curl {url.rstrip('/')}/ping")]


def check_template(clients: Clients, uri: str, flags: Sequence[str]) -> list[Finding]:
    """Whether the container spec is there and knows every flag of this launch.

    Args:
      clients: Google's clients.
      uri: gs://BUCKET/PATH.json.
      flags: names of the pipeline's options that are given.
    """
    name = uri.split("/")[2]
    build = f"python -m templates.build --project {clients.project} --bucket {name}"
    what = f"template {uri}"
    role = "roles/storage.objectViewer"
    look = Look(what, build, "storage.objects.get", role, clients.project, bucket_of(uri))
    path = uri.removeprefix(f"gs://{name}/")
    text, failed = look.up(lambda: clients.storage.bucket(name).blob(path).download_as_bytes())
    if failed:
        return failed
    try:
        spec = json.loads(text)
        known = {parameter["name"] for parameter in spec["metadata"]["parameters"]}
    except (ValueError, KeyError, TypeError):
        return [Finding(what, "failed", "is no container spec", build)]
    unknown = sorted(set(flags) - known)
    if unknown:
        problem = f"does not know {', '.join(unknown)}: it was built from another version"
        return [Finding(what, "failed", problem, build)]
    return [Finding(f"{what}, image {spec.get('image')}")]


def template_image(clients: Clients, uri: str) -> str:
    """The image that a template's container spec names; "" where that cannot be read."""
    bucket = bucket_of(uri)
    blob = clients.storage.bucket(bucket.removeprefix("gs://")).blob(uri.removeprefix(f"{bucket}/"))
    try:
        return str(json.loads(blob.download_as_bytes())["image"])
    except (GoogleAPICallError, GoogleAuthError, *UNREACHABLE, ValueError, KeyError, TypeError):
        return ""


def check_project(project: str) -> list[Finding]:
    """Whether the caller may launch jobs."""
    from google.cloud import resourcemanager_v3

    what = f"project {project}, your permissions"
    wanted = ["dataflow.jobs.create", "dataflow.jobs.get", "dataflow.jobs.list"]
    arguments: dict[str, Any] = {}
    other = os.environ.get(RESOURCE_MANAGER_VARIABLE)
    if other:
        arguments = {"transport": "rest", "client_options": ClientOptions(api_endpoint=other.rstrip("/"))}
        if is_loopback(urlsplit(other).hostname or ""):
            arguments["credentials"] = AnonymousCredentials()
    request = {"resource": f"projects/{project}", "permissions": wanted}
    look = Look(what, "gcloud projects list", "resourcemanager.projects.get",
                "roles/browser", project)  # fmt: skip
    try:
        answer, failed = look.up(
            lambda: resourcemanager_v3.ProjectsClient(**arguments).test_iam_permissions(request=request)
        )
    except MethodNotImplemented:
        return [Finding(what, "note", "cannot be asked for here")]
    if failed:
        return failed
    lacking = [permission for permission in wanted if permission not in answer.permissions]
    if lacking:
        problem = f"you lack {', '.join(lacking)} (roles/dataflow.developer)"
        return [Finding(what, "failed", problem, grant(project, "roles/dataflow.developer"))]
    return [Finding(what)]

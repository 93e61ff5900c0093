"""Checks of Cloud Storage: the model, the places for files, the input, the template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from cloud.checks.finding import Finding, Lookup, bucket_of, left_to_the_workers
from cloud.pipeline import PipelineCommand
from cloud.resources.base import Clients
from common import files, google
from model import artifact
from transforms.history_files import INDEX, HistoryFiles

READER = "roles/storage.objectViewer"


def _local(subject: str, remedy: str = "pass gs://BUCKET/PATH") -> Finding:
    return Finding(subject, "failed", "is on this machine, where no worker finds it", remedy)


def check_model(
    project: str, command: PipelineCommand, bucket: str, shadow: str | None = None
) -> list[Finding]:
    """Checks that workers can reach the model, and its manifest, files, sha256 and order of features.

    Args:
      project: of the launch.
      command: of the pipeline; its thresholds are compared with the model's.
      bucket: gs://BUCKET of the installation, for a model that has to be copied.
      shadow: --shadow_model, which is checked in place of --model.
    """
    uri = shadow or command.model
    subject = f"shadow model {uri}" if shadow else f"model {uri}"
    if not artifact.is_gcs(uri):
        return [_local(subject, f"gcloud storage cp -r {uri.rstrip('/')}/* {bucket}/model/")]
    train = f"anomaly train --output {uri}"
    lookup = Lookup(subject, train, "storage.objects.get", READER, project, bucket_of(uri))
    try:
        manifest = artifact.verify(uri)
    except artifact.ArtifactError as error:
        if isinstance(error.__cause__, google.ERRORS):  # of Cloud Storage's client
            problem = google.explain(error.__cause__)
            if problem.kind != "missing":  # of a missing file, the artifact's own error names the file
                return [lookup.failure(error.__cause__)]
        return [Finding(subject, "failed", str(error), train)]
    except google.ERRORS as error:
        return [lookup.failure(error)]
    conflict = command.threshold_problem(manifest.thresholds)
    if conflict:
        return [Finding(subject, "failed", conflict, "pass thresholds that ascend, or none")]
    return [Finding(f"{subject}, version {manifest.model_version}")]


def check_history(clients: Clients, command: PipelineCommand, uri: str) -> list[Finding]:
    """Checks that the histories that a job begins with are complete, and fit the model and the buckets.

    Args:
      clients: Google's clients.
      command: of the pipeline.
      uri: gs://BUCKET/PATH of the histories.
    """
    subject, build = f"--history={uri}", f"anomaly history build --model {command.model} --output {uri}"
    if not uri.startswith("gs://"):
        return [_local(subject, build.replace(uri, "gs://BUCKET/PATH"))]
    lookup = Lookup(subject, build, "storage.objects.get", READER, clients.project, bucket_of(uri))
    text, failed = lookup.run(lambda: _read(clients, f"{uri.rstrip('/')}/{INDEX}"))
    if failed or text is None:
        return left_to_the_workers(failed)
    try:
        histories = HistoryFiles.of(uri, json.loads(text))
        command.options.history.check(histories, artifact.peek(command.model).spec)
    except (artifact.ArtifactError, *google.ERRORS):  # another check says what is wrong with the model
        return [Finding(subject, "note", "not compared with the model, which cannot be read")]
    except (ValueError, KeyError, TypeError) as error:
        return [Finding(subject, "failed", str(error), build)]
    return [Finding(f"{subject}, {histories.rows:,} transactions")]


def check_location(clients: Clients, uri: str, flag: str, region: str = "us-central1") -> list[Finding]:
    """Checks that the bucket exists and may be written.

    It asks for the caller's permissions on the bucket, which anybody may do. Reading the bucket itself takes
    storage.buckets.get, which roles/storage.objectAdmin does not include.

    Args:
      clients: Google's clients.
      uri: gs://BUCKET/PATH.
      flag: that gave it.
      region: for a bucket that has to be made.
    """
    subject = f"{flag}={uri}"
    if not uri.startswith("gs://"):
        return [_local(subject)]
    bucket, project = bucket_of(uri), clients.project
    name = bucket.removeprefix("gs://")
    create = f"anomaly resources create --project {project} --region {region} --bucket {name}"
    lookup = Lookup(subject, create, "storage.objects.create", "roles/storage.objectAdmin", project, bucket)
    wanted = ["storage.objects.create", "storage.objects.get", "storage.objects.list"]
    held, failed = lookup.run(lambda: clients.storage.bucket(name).test_iam_permissions(wanted))
    findings = failed or lookup.missing_permissions(wanted, held or [])
    return left_to_the_workers(findings) if flag == "--output" else findings


def check_files(clients: Clients, pattern: str, flag: str) -> list[Finding]:
    """Checks that a pattern matches files."""
    subject = f"{flag}={pattern}"
    if not pattern.startswith("gs://"):
        return [_local(subject)]
    show = f"gcloud storage ls '{pattern}'"
    lookup = Lookup(subject, show, "storage.objects.list", READER, clients.project, bucket_of(pattern))
    # Without credentials Beam tries for a minute, with a traceback each time, and goes on as nobody.
    _, failed = lookup.run(lambda: clients.storage)
    if failed:
        return failed
    try:
        found = files.find(pattern)
    except google.ERRORS as error:
        return left_to_the_workers([lookup.failure(error)])
    except Exception as error:  # Beam wraps the errors of Cloud Storage's client in its own
        causes = [cause for cause in _causes(error) if isinstance(cause, google.ERRORS)]
        if causes:
            return left_to_the_workers([lookup.failure(causes[0])])
        return [Finding(subject, "failed", f"cannot be read: {error}", show)]
    if not found:
        return [Finding(subject, "failed", "matches no file", show)]
    size = sum(file.size_in_bytes for file in found) / 1024**2
    return [Finding(f"{subject}, {len(found)} files, {size:,.1f} MiB")]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Collects the errors that an error of Beam's file systems stands for. Beam wraps its own again."""
    details = getattr(error, "exception_details", None) or {}
    for cause in (
        error.__cause__,
        error.__context__,
        *(details.values() if isinstance(details, dict) else ()),
    ):
        if isinstance(cause, BaseException):
            yield cause
            yield from _causes(cause)


def check_template(clients: Clients, uri: str, flags: Iterable[str]) -> list[Finding]:
    """Checks that the container spec exists and knows every flag of this launch.

    Args:
      clients: Google's clients.
      uri: gs://BUCKET/PATH.json.
      flags: names of the pipeline's options that are passed.
    """
    subject, project = f"template {uri}", clients.project
    build = f"anomaly templates --project {project} --bucket {uri.split('/')[2]}"
    lookup = Lookup(subject, build, "storage.objects.get", READER, project, bucket_of(uri))
    text, failed = lookup.run(lambda: _read(clients, uri))
    if failed or text is None:
        return failed
    try:
        spec = json.loads(text)
        known = {parameter["name"] for parameter in spec["metadata"]["parameters"]}
    except (ValueError, KeyError, TypeError):
        return [Finding(subject, "failed", "is no container spec", build)]
    unknown = sorted(set(flags) - known)
    if unknown:
        problem = f"does not know {', '.join(unknown)}: it was built from another version"
        return [Finding(subject, "failed", problem, build)]
    return [Finding(f"{subject}, image {spec.get('image')}")]


def template_image(clients: Clients, uri: str) -> str:
    """Reads the image that a container spec names; "" where the spec cannot be read."""
    try:
        return str(json.loads(_read(clients, uri))["image"])
    except (*google.ERRORS, ValueError, KeyError, TypeError):
        return ""


def _read(clients: Clients, uri: str) -> bytes:
    bucket = bucket_of(uri)
    blob = clients.storage.bucket(bucket.removeprefix("gs://")).blob(uri.removeprefix(f"{bucket}/"))
    return bytes(blob.download_as_bytes())

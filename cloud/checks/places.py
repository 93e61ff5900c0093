"""Checks of the places of a job: region, network and machine type, as Compute Engine knows them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final

from google.api_core.exceptions import from_http_response

from cloud.checks.finding import BIGQUERY_PATIENCE, Finding, Lookup, bucket_of
from cloud.checks.storage import template_image
from cloud.checks.workers import IMAGE
from cloud.endpoints import compute_session
from cloud.request import JobRequest
from cloud.resources.base import Clients
from common import google
from common.retry import LOOK_SECONDS

_ROLE: Final = "roles/compute.networkViewer"
_SUBNETWORK: Final = re.compile(
    r"(?:https://(?:www|compute)\.googleapis\.com/compute/v1/projects/(?P<project>[a-z0-9.:-]+)/)?"
    r"regions/(?P<region>[a-z0-9-]+)/subnetworks/(?P<name>[a-z](?:[a-z0-9-]*[a-z0-9])?)"
)
_AREAS: Final = {"us": "us-", "eu": "europe-", "europe": "europe-", "asia": "asia-"}
"""Multi-regions, and the start of the names of their regions."""


def check_network(request: JobRequest) -> list[Finding]:
    """Checks that the workers' network has a subnetwork in the region, and a way to Google from it.

    Without --network and --subnetwork, Dataflow takes the network "default". A network in custom mode needs
    --subnetwork.
    """
    workers, region = request.workers, request.installation.region
    project = request.installation.project
    if workers.subnetwork:
        subject = f"--subnetwork={workers.subnetwork}"
        form = _SUBNETWORK.fullmatch(workers.subnetwork)
        if form is None:
            problem = (
                f"expected regions/{region}/subnetworks/NAME, or for a shared VPC "
                f"https://www.googleapis.com/compute/v1/projects/HOST/regions/{region}/subnetworks/NAME"
            )
            return [
                Finding(
                    subject, "failed", problem, f"gcloud compute networks subnets list --project={project}"
                )
            ]
        if form["region"] != region:
            problem = f"expected a subnetwork of the job's region {region}, got one of {form['region']}"
            return [Finding(subject, "failed", problem, _listing(form["project"] or project, region))]
        return _check_subnetwork(subject, form["project"] or project, region, form["name"], request)
    subject = f"--network={workers.network}" if workers.network else "network default"
    host, _, name = (workers.network or "default").rpartition("/global/networks/")
    project = host.rpartition("projects/")[2] or project
    lookup = Lookup(subject, "pass --subnetwork or --network", "compute.networks.get", _ROLE, project)
    network, failed = _look(lookup, project, f"global/networks/{name}")
    if network is None:
        return failed
    if not network.get("autoCreateSubnetworks"):
        problem = "has no subnetwork that Dataflow could choose: pass --subnetwork"
        return [Finding(subject, "failed", problem, _listing(project, region))]
    if workers.no_use_public_ips:
        return _check_subnetwork(subject, project, region, name, request)
    return [Finding(subject)]


def _check_subnetwork(
    subject: str, project: str, region: str, name: str, request: JobRequest
) -> list[Finding]:
    lookup = Lookup(subject, _listing(project, region), "compute.subnetworks.get", _ROLE, project)
    subnetwork, failed = _look(lookup, project, f"regions/{region}/subnetworks/{name}")
    if subnetwork is None:
        return failed
    if request.workers.no_use_public_ips and not subnetwork.get("privateIpGoogleAccess"):
        enable = (
            f"gcloud compute networks subnets update {name} --region={region} --project={project} "
            "--enable-private-ip-google-access"
        )
        problem = "has no Private Google Access, so that workers without public addresses do not reach Google"
        return [Finding(subject, "failed", problem, enable)]
    return [Finding(subject)]


def _listing(project: str, region: str) -> str:
    return f"gcloud compute networks subnets list --project={project} --regions={region}"


def check_machine(request: JobRequest) -> list[Finding]:
    """Checks that a zone of the region has the machine type. Dataflow Prime names none."""
    machine, region = request.workers.machine, request.installation.region
    project = request.installation.project
    if not machine or "custom-" in machine:  # a type of one's own has no entry in the list
        return []
    subject = f"machine type {machine} in {region}"
    show = f"gcloud compute machine-types list --project={project} --filter=zone:{region}"
    lookup = Lookup(subject, show, "compute.machineTypes.list", _ROLE, project)
    wanted = {"filter": f'name = "{machine}"', "returnPartialSuccess": "true"}
    answer, failed = _look(lookup, project, "aggregated/machineTypes", wanted)
    if answer is None:
        return failed
    zones = {
        scope.removeprefix("zones/")
        for scope, part in answer.get("items", {}).items()
        if part.get("machineTypes")
    }
    if any(zone.rpartition("-")[0] == region for zone in zones):
        return [Finding(subject)]
    return [
        Finding(
            subject, "failed", "no zone of the region has it: pass another --machine_type or --region", show
        )
    ]


def _look(
    lookup: Lookup, project: str, path: str, parameters: dict[str, str] | None = None
) -> tuple[Any, list[Finding]]:
    """Asks Compute Engine; a launch may succeed where that gives no answer, or not to this caller."""

    def ask() -> Any:
        http, base = compute_session()
        with http:
            answer = http.get(f"{base}/projects/{project}/{path}", params=parameters, timeout=LOOK_SECONDS)
        if answer.status_code != 200:
            raise from_http_response(answer)
        return answer.json()

    found, failed = lookup.run(ask)
    open_questions = ("forbidden", "unreachable", "failed")
    return found, [_unchecked(one) if one.cause in open_questions else one for one in failed]


def _unchecked(finding: Finding) -> Finding:
    return dataclasses.replace(finding, status="note", problem=f"not checked: {finding.problem}")


def covers(location: str, region: str) -> bool:
    """Tells whether a location, a region or a multi-region, has a region in it.

    >>> covers("US", "us-central1"), covers("EU", "europe-west1"), covers("us-east1", "us-central1")
    (True, True, False)
    """
    place = location.lower()
    if place in _AREAS:
        return region.startswith(_AREAS[place])
    return "-" not in place or place == region  # a pair of regions has a name such as NAM4


def check_regions(clients: Clients, request: JobRequest) -> list[Finding]:
    """Compares the job's region with those of buckets, dataset and image.

    Dataflow takes a job whose files, rows or image are in another region: they travel, which is slower and
    billed. BigQuery's load jobs take no files of another location.
    """
    region, command = request.installation.region, request.pipeline
    findings: list[Finding] = []
    locations: dict[str, str] = {}
    uris = (request.temp_location, request.staging_location, command.output or "")
    for bucket in sorted({bucket_of(uri) for uri in uris if uri.startswith("gs://")}):
        locations[f"bucket {bucket}"], failed = _bucket_location(clients, bucket)
        findings += failed
    dataset = f"dataset {command.output_dataset}"
    locations[dataset] = _dataset_location(clients, command.output_dataset)
    image = request.job.image or ""
    if not image and request.job.via == "flex":
        image = template_image(clients, request.template)
    parts = IMAGE.fullmatch(image)
    locations[f"image {image}"] = parts["region"] if parts else ""
    for subject, location in locations.items():
        if location and not covers(location, region):
            problem = f"is in {location}, the job in {region}: what passes between them is billed"
            findings.append(Finding(subject, "note", problem))
    temporary = locations.get(f"bucket {bucket_of(request.temp_location)}", "")
    if command.load_jobs and temporary and locations[dataset] and not _loads(temporary, locations[dataset]):
        problem = (
            f"is in {temporary}, {dataset} in {locations[dataset]}: load jobs of BigQuery take files of the "
            "dataset's location alone"
        )
        place = "pass a --temp_location in a bucket there"
        findings.append(Finding(f"--temp_location={request.temp_location}", "failed", problem, place))
    return findings


def _bucket_location(clients: Clients, bucket: str) -> tuple[str, list[Finding]]:
    role = "roles/storage.legacyBucketReader"
    lookup = Lookup(f"region of bucket {bucket}", "", "storage.buckets.get", role, clients.project, bucket)
    found, failed = lookup.run(lambda: clients.storage.get_bucket(bucket.removeprefix("gs://")))
    # Who may write objects need not be allowed to see this. Other failures have a check of their own.
    denied = [one for one in failed if one.cause == "forbidden"]
    return (found.location or "").lower() if found else "", [_unchecked(one) for one in denied]


def _dataset_location(clients: Clients, dataset: str | None) -> str:
    if not dataset or clients.local_bigquery:
        return ""
    try:
        return (clients.bigquery.get_dataset(dataset, **BIGQUERY_PATIENCE).location or "").lower()
    except google.ERRORS:
        return ""  # services.check_dataset reports it


def _loads(bucket: str, dataset: str) -> bool:
    """Tells whether BigQuery loads files of a bucket into a dataset."""
    return dataset == "us" or covers(bucket, dataset) or covers(dataset, bucket)

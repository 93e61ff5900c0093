"""Checks before a launch: region, network and machine type, which Dataflow refuses minutes later."""

from __future__ import annotations

import pytest
from google.cloud import bigquery

from cloud.checks import places
from cloud.resources.base import Clients
from cloud.resources.declared import Names
from common.clients import BigQueryEndpoints
from templates import build
from tests.cloud import google_server, storage_server
from tests.cloud.google_server import Google
from tests.cloud.test_preflight import BUCKET, job, only, reroute
from tests.http_server import Refusal

SUBNET = "regions/us-central1/subnetworks/workers"
SHARED = f"https://www.googleapis.com/compute/v1/projects/host-project/{SUBNET}"


def network(*flags: str):
    finding = only(places.check_network(job("streaming", *flags)))
    return finding.status, finding.problem, finding.remedy


LIST = "gcloud compute networks subnets list --project={} --regions=us-central1"


def test_the_network_that_dataflow_takes_by_itself(google: Google):
    assert network() == ("ok", "", "")
    google.networks["default"]["autoCreateSubnetworks"] = False
    assert network() == (
        "failed",
        "has no subnetwork that Dataflow could choose: pass --subnetwork",
        LIST.format("local-project"),
    )
    del google.networks["default"]
    assert network() == ("failed", "does not exist", "pass --subnetwork or --network")


@pytest.mark.parametrize("name", ["mine", "projects/host-project/global/networks/mine"])
def test_a_network_that_is_named(google: Google, name):
    assert network(f"--network={name}")[1] == "does not exist"
    google.networks["mine"] = {"autoCreateSubnetworks": True}
    assert network(f"--network={name}") == ("ok", "", "")
    host = "host-project" if "/" in name else "local-project"
    assert google.requests[-1][1] == f"/compute/v1/projects/{host}/global/networks/mine"


@pytest.mark.parametrize(
    "form", ["workers", "projects/p/regions/us-central1/subnetworks/w", f"{SUBNET}/", "us-central1/workers"]
)
def test_a_subnetwork_has_one_of_two_forms(google: Google, form):
    status, problem, _ = network(f"--subnetwork={form}")
    assert (status, problem.partition(",")[0]) == ("failed", "expected regions/us-central1/subnetworks/NAME")
    assert google.requests == []


@pytest.mark.parametrize(("form", "project"), [(SUBNET, "local-project"), (SHARED, "host-project")])
def test_a_subnetwork_must_be_there_and_reach_google(google: Google, form, project):
    flags = [f"--subnetwork={form}", "--no_use_public_ips"]
    assert network(*flags) == ("failed", "does not exist", LIST.format(project))
    google.subnetworks["workers"] = {"privateIpGoogleAccess": False}
    assert network(flags[0]) == ("ok", "", "")
    status, problem, remedy = network(*flags)
    assert (status, problem.partition(",")[0]) == ("failed", "has no Private Google Access")
    assert remedy == (
        f"gcloud compute networks subnets update workers --region=us-central1 --project={project} "
        "--enable-private-ip-google-access"
    )
    google.subnetworks["workers"] = {"privateIpGoogleAccess": True}
    assert network(*flags) == ("ok", "", "")


def test_workers_without_addresses_in_the_default_network_need_the_same(google: Google):
    google.subnetworks["default"] = {}
    assert network("--no_use_public_ips")[1].startswith("has no Private Google Access")


def test_a_subnetwork_of_another_region(google: Google):
    status, problem, _ = network(f"--subnetwork={SUBNET}", "--region=europe-west1")
    assert (status, problem) == (
        "failed",
        "expected a subnetwork of the job's region europe-west1, got one of us-central1",
    )


def machine(*flags: str):
    return places.check_machine(job("streaming", *flags))


def test_a_machine_type_that_no_zone_of_the_region_has(google: Google):
    assert only(machine()).status == "ok"
    for flags in (["--region=us-central9"], ["--machine_type=n2-standard-3"], ["--region=us-central11"]):
        found = only(machine(*flags))
        assert (found.status, found.problem) == (
            "failed",
            "no zone of the region has it: pass another --machine_type or --region",
        )
    assert machine("--prime") == []
    assert machine("--machine_type=n2-custom-4-8192") == []


def test_who_may_not_look_is_told_and_may_launch(google: Google, monkeypatch):
    def refuse(*_: object) -> None:
        raise Refusal(403, "PERMISSION_DENIED", "Required permission")

    reroute(monkeypatch, google_server, r"/compute/v1/.+", refuse)
    reroute(monkeypatch, storage_server, rf"/storage/v1/b/{BUCKET}", refuse)
    found = [
        *(only(machine()), only(places.check_network(job("streaming")))),
        only(places.check_regions(Clients("local-project"), job("streaming", "--via=direct"))),
    ]
    assert [finding.status for finding in found] == ["note"] * 3
    roles = ["compute.networkViewer", "compute.networkViewer", "storage.legacyBucketReader"]
    for finding, role in zip(found, roles, strict=True):
        assert finding.problem.startswith("not checked: you lack ")
        assert f"roles/{role}" in finding.remedy


class Datasets:
    """BigQuery with one dataset somewhere; the emulator has one place alone."""

    def __init__(self, location: str) -> None:
        self.found = bigquery.Dataset("local-project.anomaly")
        self.found.location = location

    def get_dataset(self, name: str, **patience: object) -> bigquery.Dataset:
        return self.found


def regions(dataset: str, *flags: str) -> list[tuple[str, str]]:
    clients = Clients("local-project", BigQueryEndpoints("https://example.com"))
    clients.bigquery = Datasets(dataset)
    found = places.check_regions(clients, job("batch", "--input=gs://b-1/x.parquet", *flags))
    return [(finding.status, f"{finding.subject} {finding.problem}") for finding in found]


@pytest.mark.parametrize(
    ("bucket", "dataset", "flags", "expected"),
    [
        ("US", "US", [], []),
        ("US-CENTRAL1", "us-central1", [], []),
        ("NAM4", "US", [], []),
        ("EU", "US", [], [f"bucket gs://{BUCKET} is in eu, the job in us-central1"]),
        ("US", "EU", [], ["dataset local-project.anomaly is in eu, the job in us-central1"]),
        (
            *("US", "US", ["--region=europe-west1"]),
            [
                f"bucket gs://{BUCKET} is in us, the job in europe-west1",
                "dataset local-project.anomaly is in us, the job in europe-west1",
                "image us-central1-docker.pkg.dev/p/r/i:1 is in us-central1, the job in europe-west1",
            ],
        ),
    ],
)
def test_what_is_in_another_region_is_noted(google: Google, monkeypatch, bucket, dataset, flags, expected):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    google.storage.buckets[BUCKET] = {"name": BUCKET, "location": bucket}
    build.upload(Clients("local-project"), Names("local-project"), "us-central1-docker.pkg.dev/p/r/i:1")
    found = regions(dataset, *flags)
    assert [status for status, _ in found] == ["note"] * len(expected)
    assert all(text.startswith(start) for (_, text), start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(
    ("bucket", "dataset", "loads"),
    [
        *(("us-central1", "us", True), ("eu", "us", True), ("us", "us-central1", True)),
        *(("us-east1", "us-central1", False), ("us", "eu", False), ("europe-west1", "eu", True)),
    ],
)
def test_load_jobs_take_files_of_the_datasets_location(google: Google, monkeypatch, bucket, dataset, loads):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    google.storage.buckets[BUCKET] = {"name": BUCKET, "location": bucket}
    failed = [text for status, text in regions(dataset, "--write_method=file_loads") if status == "failed"]
    assert failed == (
        []
        if loads
        else [
            f"--temp_location=gs://{BUCKET}/temp is in {bucket}, dataset local-project.anomaly in {dataset}: "
            "load jobs of BigQuery take files of the dataset's location alone"
        ]
    )

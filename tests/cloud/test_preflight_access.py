"""Who launches: what they may do, who they are, which APIs answer, and what is said where not."""

from __future__ import annotations

import json

import pytest
from google.api_core import exceptions
from requests.exceptions import ConnectTimeout

from cloud import endpoints, launch, preflight
from cloud.checks import finding, permissions, services, storage
from cloud.resources.base import Clients
from common.google import SIGN_IN_PROJECT
from tests.cloud import google_server, storage_server
from tests.cloud.google_server import Google
from tests.cloud.test_preflight import BUCKET, CALLER, check_model, job, only, reroute
from tests.http_server import Refusal


@pytest.fixture
def clients(google: Google) -> Clients:
    return Clients("local-project")


@pytest.fixture
def nobody(monkeypatch):
    """Sends nothing to a local server, and signs nobody in."""
    for name in (
        *("STORAGE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST"),
        *(endpoints.RESOURCE_MANAGER_VARIABLE, endpoints.IAM_VARIABLE, endpoints.COMPUTE_VARIABLE),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")


def test_without_credentials_every_check_says_how_to_sign_in(nobody, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    endpoint = "projects/local-project/locations/us-central1/endpoints/77"
    flags = ["--input_table=local-project.d.t", "--scorer=vertex", f"--vertex_endpoint={endpoint}"]
    findings = preflight.run_checks(job("batch", *flags), progress=False)
    failed = [finding for finding in findings if finding.status == "failed"]
    noted = [finding.subject.split()[0] for finding in findings if finding.status == "note"]
    assert noted == ["service"]  # there is no gcloud
    assert len(failed) == 12
    assert {finding.remedy for finding in failed} == {"gcloud auth application-default login"}


@pytest.mark.integration
@pytest.mark.parametrize("signed_in", [False, True])
@pytest.mark.parametrize(
    "flags", [["streaming"], ["batch", "--input=gs://b-1/x.parquet"], ["batch", "--input_query=SELECT 1"]]
)
def test_where_gcloud_is_there_and_nobody_is_signed_in(
    flags, signed_in, gcloud, google: Google, nobody, monkeypatch, caplog, capsys
):
    if signed_in:  # in gcloud, whose answers come from the local server, and not in the clients
        for name, value in google.environment().items():
            monkeypatch.setenv(name, value)
        google.accounts.add("anomaly-worker@local-project.iam.gserviceaccount.com")
    else:
        monkeypatch.delenv("CLOUDSDK_AUTH_DISABLE_CREDENTIALS")
    assert launch.main([*flags, "--project=local-project"]) == 1
    said = capsys.readouterr().err
    assert said.rstrip().endswith("error: not launched: fix the checks that failed, or pass --skip_preflight")
    assert "gcloud auth application-default login" in said
    assert "Traceback" not in said + caplog.text
    assert (
        "roles/dataflow.worker on project local-project for the workers: is not granted" in said
    ) is signed_in
    assert ("gcloud auth login" in said) is not signed_in


@pytest.mark.parametrize(
    "raised", [exceptions.ServiceUnavailable("down"), exceptions.RetryError("late", None), ConnectTimeout()]
)
def test_where_nothing_answers_that_is_said_and_what_to_do(raised):
    def call() -> None:
        raise raised

    answer, findings = finding.Lookup("x", "create it", "p", "r", "project").run(call)
    assert answer is None
    assert only(findings).problem.startswith("no answer: ")
    assert "run this again" in only(findings).remedy


def test_the_callers_permissions(google: Google):
    assert only(permissions.check_project("local-project")).status == "ok"
    google.granted = {"dataflow.jobs.get"}
    finding = only(permissions.check_project("local-project"))
    assert finding.problem == "you lack dataflow.jobs.create, dataflow.jobs.list (roles/dataflow.developer)"
    assert finding.remedy == (
        f"gcloud projects add-iam-policy-binding local-project --member={CALLER} "
        "--role=roles/dataflow.developer --condition=None"
    )


def test_the_callers_right_to_run_jobs_as_the_workers(google: Google):
    stream = job("streaming")
    assert only(permissions.check_act_as(stream)).status == "ok"
    google.granted = set()
    finding = only(permissions.check_act_as(stream))
    assert finding.problem == "you lack iam.serviceAccounts.actAs (roles/iam.serviceAccountUser)"
    assert finding.remedy == (
        "gcloud iam service-accounts add-iam-policy-binding "
        "anomaly-worker@local-project.iam.gserviceaccount.com --project=local-project "
        f"--member={CALLER} --role=roles/iam.serviceAccountUser"
    )


def test_a_name_that_a_running_job_has_is_for_update_alone(google: Google):
    flag = f"--dataflow_endpoint={google.url}"
    launched, updated = job("streaming", flag), job("streaming", flag, "--update")
    assert only(services.check_job_name(launched)).status == "ok"
    assert "nothing to update: leave out --update" in only(services.check_job_name(updated)).problem
    google.add_job(
        {
            "name": launched.job_name,
            "currentState": "JOB_STATE_RUNNING",
            "type": "JOB_TYPE_STREAMING",
        }
    )
    finding = only(services.check_job_name(launched))
    assert finding.problem.startswith("runs already (2026-01-01_00_00_00-1): pass --update")
    assert finding.remedy == (
        "anomaly launch drain transaction-anomaly-streaming --project local-project --region us-central1"
    )
    assert only(services.check_job_name(updated)).status == "ok"
    google.jobs["2026-01-01_00_00_00-1"]["currentState"] = "JOB_STATE_DRAINING"
    for request in (launched, updated):
        finding = only(services.check_job_name(request))
        assert finding.problem.startswith("is DRAINING (2026-01-01_00_00_00-1): wait for its end, or pass")
        place = "--project local-project --region us-central1"
        assert finding.remedy == f"anomaly launch status transaction-anomaly-streaming {place} --wait"
    load = job("batch", flag, "--input=gs://b-1/x.parquet", "--job_name=load")
    google.add_job({"name": "load", "currentState": "JOB_STATE_RUNNING", "type": "JOB_TYPE_BATCH"})
    assert "launch cancel load --project" in only(services.check_job_name(load)).remedy


def test_the_documented_roles_are_enough_to_launch(clients: Clients, google: Google, monkeypatch):
    """The roles of docs/google-cloud.md under "You: launch", which do not include reading the bucket."""

    def refuse(*_: object) -> None:
        raise Refusal(403, "PERMISSION_DENIED", "storage.buckets.get is missing")

    reroute(monkeypatch, storage_server, r"/storage/v1/b/[^/]+", refuse)
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    objects = ("create", "delete", "get", "list", "update", "getIamPolicy", "setIamPolicy")
    google.storage.granted = {f"storage.objects.{verb}" for verb in objects}
    jobs = ("create", "get", "list", "cancel", "updateContents", "snapshot")
    google.granted = {*(f"dataflow.jobs.{verb}" for verb in jobs), "iam.serviceAccounts.actAs"}
    assert only(storage.check_location(clients, f"gs://{BUCKET}/temp", "--temp_location")).status == "ok"
    assert only(permissions.check_project("local-project")).status == "ok"
    assert only(permissions.check_act_as(job("streaming"))).status == "ok"


def disabled(service: str, details: bool, consumer: str = "123456", reason: str = "SERVICE_DISABLED"):
    """A route that answers as Google does where an API is not enabled in the project `consumer`."""
    page = f"https://console.developers.google.com/apis/api/{service}/overview?project={consumer}"
    refusal = Refusal(
        403,
        "PERMISSION_DENIED",
        f"Some API has not been used in project {consumer} before or it is disabled."
        + ("" if details else f" Enable it by visiting {page} then retry."),
    )
    if details:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        names = {"service": service, "consumer": f"projects/{consumer}"}
        info = {"@type": kind, "reason": reason, "domain": "googleapis.com", "metadata": names}
        refusal.body["error"]["details"] = [info]

    def route(*_: object) -> None:
        raise refusal

    return route


@pytest.mark.parametrize("details", [True, False])
def test_an_api_that_is_not_enabled_is_named_with_the_command(
    details, clients: Clients, google: Google, monkeypatch
):
    for server, pattern, service in (
        (storage_server, r"(/download)?/storage/v1/b/.+", "storage"),
        (google_server, r"/v3/projects/[^/:]+:testIamPermissions", "cloudresourcemanager"),
        (google_server, r"/v1/projects/-/serviceAccounts/.+", "iam"),
        (google_server, r"/v1b3/projects/.+/jobs", "dataflow"),
    ):
        reroute(monkeypatch, server, pattern, disabled(f"{service}.googleapis.com", details))
    found = [
        only(storage.check_location(clients, f"gs://{BUCKET}/temp", "--temp_location")),
        check_model(f"gs://{BUCKET}/model"),
        only(permissions.check_project("local-project")),
        only(permissions.check_act_as(job("streaming"))),
        only(services.check_job_name(job("streaming", f"--dataflow_endpoint={google.url}"))),
    ]
    assert [finding.status for finding in found] == ["failed"] * 5
    assert [finding.remedy for finding in found] == [
        f"gcloud services enable {name}.googleapis.com --project=local-project"
        for name in ("storage", "storage", "cloudresourcemanager", "iam", "dataflow")
    ]


@pytest.mark.parametrize(
    ("reason", "consumer", "remedy"),
    [
        (
            *("SERVICE_DISABLED", SIGN_IN_PROJECT),
            "gcloud auth application-default set-quota-project local-project",
        ),
        (
            *("USER_PROJECT_DENIED", "local-project"),
            f"gcloud projects add-iam-policy-binding local-project --member={CALLER} "
            "--role=roles/serviceusage.serviceUsageConsumer --condition=None",
        ),
    ],
)
def test_a_sign_in_without_a_usable_quota_project_is_told_from_an_api_that_is_off(
    reason, consumer, remedy, google: Google, monkeypatch
):
    for pattern in (r"/v3/projects/[^/:]+:testIamPermissions", r"/v1/projects/-/serviceAccounts/.+"):
        refuse = disabled("iam.googleapis.com", True, consumer, reason)
        reroute(monkeypatch, google_server, pattern, refuse)
    found = [*permissions.check_project("local-project"), *permissions.check_act_as(job("streaming"))]
    assert [(one.status, one.remedy) for one in found] == [("failed", remedy)] * 2
    assert not any("not enabled" in one.problem for one in found)


def test_remedies_name_who_is_signed_in(google: Google, tmp_path, monkeypatch):
    assert finding.member() == CALLER
    adc = {"type": "authorized_user", "client_id": "x", "client_secret": "y", "refresh_token": "z"}
    key = tmp_path / "adc.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    key.write_text(json.dumps({**adc, "account": "me@example.com"}))
    assert finding.member() == "user:me@example.com"
    key.write_text(json.dumps(adc))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert finding.member() == "user:$(gcloud config get-value account)"


@pytest.mark.integration
def test_gcloud_tells_who_is_signed_in_where_the_credentials_do_not(gcloud, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    assert finding.member() == "user:$(gcloud config get-value account)"
    monkeypatch.setenv("CLOUDSDK_CORE_ACCOUNT", "me@example.com")
    assert finding.member() == "user:me@example.com"

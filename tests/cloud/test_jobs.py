"""Jobs of several regions, and what following one survives: against a local Dataflow."""

from __future__ import annotations

import pytest

from cloud import launch
from cloud.jobs import JobError, Jobs
from cloud.resources.base import LABEL
from tests.cloud.google_server import Google
from tests.http_server import Refusal

RUNNING = {"currentState": "JOB_STATE_RUNNING"}


def client(google: Google, region: str = "europe-west1") -> Jobs:
    return Jobs("local-project", region, google.url, poll_seconds=0.01)


def test_a_region_lists_its_own_jobs_and_active_those_of_all(google: Google):
    google.add_job({"name": "here", **RUNNING}, "europe-west1")
    google.add_job({"name": "there", **RUNNING}, "us-east1")
    google.add_job({"name": "over", "currentState": "JOB_STATE_DONE"}, "us-east1")
    assert [job.name for job in client(google).listing()] == ["here"]
    found = {job.name: job.location for job in client(google).active()}
    assert found == {"here": "europe-west1", "there": "us-east1"}


def test_mine_are_those_with_the_label(google: Google):
    google.add_job({"name": "ours", "labels": LABEL, **RUNNING})
    google.add_job({"name": "theirs", **RUNNING})
    assert [job.name for job in client(google).mine()] == ["ours"]
    assert [job.name for job in client(google).listing()] == ["theirs", "ours"]


@pytest.mark.parametrize(
    "description",
    [
        {"environment": {"tempStoragePrefix": "storage.googleapis.com/b-1/temp"}},
        {"environment": {"sdkPipelineOptions": {"options": {"output": "gs://b-1/scores"}}}},
        {"jobMetadata": {"fileDetails": [{"filePattern": "gs://b-1/history-*"}]}},
        {"tempFiles": ["storage.googleapis.com/b-1/temp/x"]},
        {"environment": {"serviceAccountEmail": "w@p.iam.gserviceaccount.com"}},
    ],
)
def test_a_job_of_files_alone_is_told_by_bucket_or_account(google: Google, description):
    google.add_job({"name": "files", **RUNNING, **description})
    (job,) = client(google).active()
    assert job.uses("p", "d", "", "b-1", "w@p.iam.gserviceaccount.com")
    assert not job.uses("p", "d", "", "b-12", "other@p.iam.gserviceaccount.com")
    assert not job.uses("p", "d", "")


def test_a_refused_question_does_not_end_the_following(google: Google):
    job = google.add_job({"name": "load", **RUNNING})
    google.course = ("JOB_STATE_RUNNING", "JOB_STATE_DONE")
    google.failures = [Refusal(503, "UNAVAILABLE", "try again")] * 2
    lines: list[str] = []
    assert client(google).wait(job["id"], lines.append).state == "DONE"
    assert sum("asking again" in line for line in lines) == 2


def test_the_following_ends_when_nothing_answers_for_long(google: Google):
    job = google.add_job({"name": "load", **RUNNING})
    google.failures = [Refusal(503, "UNAVAILABLE", "try again")] * 1000
    following = client(google)
    following.patience = 0.1
    with pytest.raises(JobError, match="try again") as raised:
        following.wait(job["id"])
    assert raised.value.is_transient


def test_a_job_that_somebody_cancelled_is_no_success(google: Google):
    job = google.add_job({"name": "load", "currentState": "JOB_STATE_CANCELLED"})
    google.course = ("JOB_STATE_CANCELLED",)
    with pytest.raises(JobError, match="job load was cancelled before its end"):
        client(google).wait(job["id"])
    asked = client(google)
    asked.request_state(job["id"], "cancel")
    assert asked.wait(job["id"]).state == "CANCELLED"


def test_an_endpoint_where_nobody_answers_is_named(capsys):
    flags = ["--project=local-project", "--dataflow_endpoint=http://localhost:1"]
    assert launch.main(["list", *flags]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: list jobs in local-project, us-central1: no answer: ")
    assert shown.endswith("check --dataflow_endpoint=http://localhost:1\n")
    assert shown.count("\n") == 1


def test_credentials_that_nobody_takes_are_named(google: Google, monkeypatch):
    from google.auth.exceptions import RefreshError

    jobs = client(google)
    monkeypatch.setattr(jobs, "_client", lambda kind: (_ for _ in ()).throw(RefreshError("expired")))
    with pytest.raises(JobError, match=r"no valid credentials: expired. To fix it: gcloud auth"):
        jobs.listing()

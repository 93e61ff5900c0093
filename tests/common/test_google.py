"""Errors of Google's clients as data: their kind, the service that is off, the step that fixes them."""

from __future__ import annotations

import json

import google.auth
import pytest
import requests
from apache_beam.internal.gcp import auth as beam_auth
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core import exceptions
from google.auth import _cloud_sdk
from google.auth.environment_vars import GOOGLE_CLOUD_QUOTA_PROJECT
from google.auth.exceptions import DefaultCredentialsError
from requests.exceptions import ConnectTimeout

from common.google import LOGIN, SIGN_IN_PROJECT, explain, remedy, use_quota_project

DISABLED = exceptions.Forbidden(
    "Cloud Pub/Sub API has not been used in project 1 before or it is disabled. Enable it by visiting "
    "https://console.developers.google.com/apis/api/pubsub.googleapis.com/overview?project=1"
)


@pytest.mark.parametrize(
    ("error", "kind", "text", "fix"),
    [
        (exceptions.NotFound("no topic t"), "missing", "it does not exist: no topic t", "make it"),
        (exceptions.Forbidden("no right"), "forbidden", "not allowed: no right", "grant it"),
        (DefaultCredentialsError("nobody"), "credentials", "no valid credentials: nobody", LOGIN),
        (exceptions.BadRequest("bad\n  SQL"), "refused", "the request is refused: bad SQL", ""),
        (
            exceptions.NotFound("no table t\n\nLocation: None\nJob ID: 0c2d\n"),
            "missing",
            "it does not exist: no table t",
            "make it",
        ),
        (exceptions.InternalServerError("boom"), "failed", "the request failed: boom", ""),
    ],
)
def test_an_error_has_a_kind_a_text_and_a_remedy(error, kind, text, fix):
    problem = explain(error)
    assert (problem.kind, str(problem)) == (kind, text)
    assert remedy(problem, "my-project", create="make it", grant="grant it") == fix


@pytest.mark.parametrize("error", [exceptions.ServiceUnavailable("down"), ConnectTimeout("late")])
def test_where_nothing_answers_the_network_is_to_be_checked(error):
    assert explain(error).kind == "unreachable"
    assert "check the network" in remedy(explain(error), "my-project")


def test_an_api_that_is_off_is_named_and_enabled():
    problem = explain(DISABLED)
    assert (problem.kind, problem.service) == ("disabled", "pubsub.googleapis.com")
    assert remedy(problem, "my-project") == (
        "gcloud services enable pubsub.googleapis.com --project=my-project"
    )


def refused(reason: str, consumer: str, text: str) -> exceptions.Forbidden:
    """The 403 of an API whose details name the project that the request counts against."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"consumer": f"projects/{consumer}", "service": "iam.googleapis.com"},
    }
    body = {"error": {"code": 403, "message": text, "status": "PERMISSION_DENIED", "details": [info]}}
    answer = requests.Response()
    answer.status_code, answer._content = 403, json.dumps(body).encode()
    answer.request = requests.Request("POST", "https://iam.googleapis.com/x").prepare()
    return exceptions.from_http_response(answer)


def test_a_sign_in_without_a_quota_project_is_told_from_an_api_that_is_off():
    assert _cloud_sdk.CLOUD_SDK_CLIENT_ID.startswith(f"{SIGN_IN_PROJECT}-")
    text = "The iam.googleapis.com API requires a quota project, which is not set by default."
    problem = explain(refused("SERVICE_DISABLED", SIGN_IN_PROJECT, text))
    assert (problem.kind, problem.is_setup) == ("no_quota_project", True)
    assert remedy(problem, "my-project") == "gcloud auth application-default set-quota-project my-project"
    problem = explain(refused("SERVICE_DISABLED", "123456", "IAM API has not been used in project 123456"))
    assert remedy(problem, "my-project") == "gcloud services enable iam.googleapis.com --project=my-project"
    # The same without details, as an older API says it.
    old = f"IAM API has not been used in project {SIGN_IN_PROJECT} before or it is disabled."
    assert explain(exceptions.Forbidden(old)).kind == "no_quota_project"


def test_who_may_not_use_the_quota_of_the_project_is_told_the_role():
    text = "Caller does not have required permission to use project my-project."
    problem = explain(refused("USER_PROJECT_DENIED", "my-project", text))
    assert problem.kind == "quota_denied"
    assert "--role=roles/serviceusage.serviceUsageConsumer" in remedy(problem, "my-project")


def test_a_quota_that_is_used_up_is_no_missing_permission():
    error = exceptions.Forbidden("Quota exceeded", errors=[{"reason": "quotaExceeded"}])
    assert explain(error).kind == "failed"
    error = exceptions.Forbidden("Access Denied", errors=[{"reason": "accessDenied"}])
    assert explain(error).kind == "forbidden"


PERSON = {"type": "authorized_user", "client_id": "x", "client_secret": "y", "refresh_token": "z"}


@pytest.mark.parametrize(
    ("credentials", "quota_project"),
    [
        (PERSON, "my-project"),
        ({**PERSON, "quota_project_id": "chosen"}, "chosen"),
    ],
)
def test_requests_of_a_person_use_the_quota_of_the_project(credentials, quota_project, tmp_path, monkeypatch):
    (key := tmp_path / "key.json").write_text(json.dumps(credentials))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "other")
    monkeypatch.setenv(GOOGLE_CLOUD_QUOTA_PROJECT, "")
    monkeypatch.setattr(beam_auth._Credentials, "_credentials_init", False)
    monkeypatch.setattr(beam_auth._Credentials, "_credentials", None)
    use_quota_project("my-project")
    of_beam = beam_auth.get_service_credentials(PipelineOptions([])).get_google_auth_credentials()
    for found in (google.auth.default()[0], of_beam):
        headers: dict[str, str] = {}
        found.apply(headers, token="t")
        assert headers["x-goog-user-project"] == quota_project


def test_a_service_account_keeps_its_own_project(tmp_path, monkeypatch):
    from local.credentials import write_service_account

    key = write_service_account(tmp_path / "key.json", "local-project", "http://127.0.0.1:1")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    monkeypatch.setenv(GOOGLE_CLOUD_QUOTA_PROJECT, "")
    use_quota_project("my-project")
    headers: dict[str, str] = {}
    google.auth.default()[0].apply(headers, token="t")
    assert "x-goog-user-project" not in headers

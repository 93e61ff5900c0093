"""Errors of Google's clients as data: their kind, the service that is off, the step that fixes them."""

from __future__ import annotations

import pytest
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError
from requests.exceptions import ConnectTimeout

from common.google import LOGIN, explain, remedy

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

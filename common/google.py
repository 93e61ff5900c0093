"""Errors of Google's clients as data: one translation for every command. Who prints it makes the sentence."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import google.auth
from google.api_core.exceptions import (
    AlreadyExists,
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    GatewayTimeout,
    GoogleAPICallError,
    NotFound,
    RetryError,
    ServiceUnavailable,
    Unauthorized,
)
from google.auth.environment_vars import GOOGLE_CLOUD_QUOTA_PROJECT
from google.auth.exceptions import GoogleAuthError, TransportError
from google.oauth2.credentials import Credentials as PersonalCredentials
from requests.exceptions import RequestException

LOGIN: Final = "gcloud auth application-default login"
"""Gives Google's clients credentials, or new ones in place of those that ran out."""

Kind = Literal[
    "missing",
    "exists",
    "forbidden",
    "disabled",
    "no_quota_project",
    "quota_denied",
    "credentials",
    "unreachable",
    "refused",
    "failed",
]
ERRORS: Final = (GoogleAPICallError, RetryError, GoogleAuthError, RequestException)
"""Everything that Google's clients raise about a call: what `explain` takes."""

_UNREACHABLE: Final = (
    RetryError,
    RequestException,
    ServiceUnavailable,
    DeadlineExceeded,
    GatewayTimeout,
    TransportError,
)
_REASONS: Final[dict[Kind, str]] = {
    "missing": "it does not exist",
    "exists": "it exists already",
    "forbidden": "not allowed",
    "disabled": "the API is not enabled",
    "no_quota_project": "your sign-in names no project whose quota the request could use",
    "quota_denied": "you may not use the quota of the project",
    "credentials": "no valid credentials",
    "unreachable": "no answer",
    "refused": "the request is refused",
    "failed": "the request failed",
}
_QUOTA: Final = ("quotaExceeded", "rateLimitExceeded")
"""Reasons of BigQuery's that come with the status of a missing permission."""
_DISABLED: Final = ("SERVICE_DISABLED", "has not been used in project")
_QUOTA_DENIED: Final = "USER_PROJECT_DENIED"
SIGN_IN_PROJECT: Final = "764086051850"
"""Number of Google's own project, whose quota a person's requests use where the sign-in names no other."""
QUOTA_ROLE: Final = "roles/serviceusage.serviceUsageConsumer"
_FOOTER: Final = re.compile(r"\n\nLocation: \S*\nJob ID: \S*\s*$")
"""BigQuery's client ends the error of a query with this."""
_CONSUMER: Final = re.compile(r"\bprojects?[ /](\d+)\b")
_SERVICE: Final = re.compile(r"\b([a-z][a-z0-9-]*\.googleapis\.com)\b")


@dataclass(frozen=True)
class GoogleProblem:
    """The reason why a call to Google failed.

    Attributes:
      kind: missing: it does not exist; exists: it is there already; forbidden: a permission is missing;
        disabled: an API is not enabled; no_quota_project: the credentials are a person's and name no project,
        so that Google looks for the API in its own; quota_denied: the caller may not use the project that
        they name; credentials: nobody is signed in; unreachable: no answer; refused: the request is wrong;
        failed: anything else.
      text: Google's own words, without the request.
      service: the API that is not enabled, such as "pubsub.googleapis.com"; "" where the error names none.
    """

    kind: Kind
    text: str
    service: str = ""

    @property
    def is_setup(self) -> bool:
        """Tells whether every request to this API fails, whatever it asks for."""
        return self.kind in ("disabled", "no_quota_project", "quota_denied", "credentials")

    def __str__(self) -> str:
        return f"{_REASONS[self.kind]}: {' '.join(self.text.split())}"


def explain(error: BaseException) -> GoogleProblem:
    """Translates an error of Google's clients."""
    text = _FOOTER.sub("", str(getattr(error, "message", "") or error))
    if isinstance(error, _UNREACHABLE):
        return GoogleProblem("unreachable", str(error.__cause__ or text))
    if isinstance(error, GoogleAuthError | Unauthorized):
        return GoogleProblem("credentials", text)
    if isinstance(error, Forbidden):
        # The error names the API in its details, or in the address of the console's page.
        details = f"{error} {error.reason} {error.metadata}"
        if _QUOTA_DENIED in details:
            return GoogleProblem("quota_denied", text)
        if any(mark in details for mark in _DISABLED):
            consumer = _CONSUMER.search(details)
            if consumer and consumer[1] == SIGN_IN_PROJECT:
                return GoogleProblem("no_quota_project", text)
            service = _SERVICE.search(details.replace("type.googleapis.com", ""))
            return GoogleProblem("disabled", text, service[1] if service else "")
        if any(isinstance(item, dict) and item.get("reason") in _QUOTA for item in error.errors):
            return GoogleProblem("failed", text)
        return GoogleProblem("forbidden", text)
    if isinstance(error, NotFound):
        return GoogleProblem("missing", text)
    if isinstance(error, AlreadyExists):
        return GoogleProblem("exists", text)
    return GoogleProblem("refused" if isinstance(error, BadRequest) else "failed", text)


def remedy(problem: GoogleProblem, project: str, *, create: str = "", grant: str = "") -> str:
    """The command or the step that fixes a problem.

    Args:
      problem: of a call.
      project: in which it was made.
      create: the command that makes what is missing.
      grant: the command that gives the permission that is missing.
    """
    if problem.kind == "disabled":
        if not problem.service:
            return f"anomaly resources create --project={project}"
        return f"gcloud services enable {problem.service} --project={project}"
    return {
        "missing": create,
        "forbidden": grant,
        "credentials": LOGIN,
        "no_quota_project": f"gcloud auth application-default set-quota-project {project or 'PROJECT'}",
        "quota_denied": grant_on_project(project or "PROJECT", QUOTA_ROLE, "user:EMAIL"),
        "unreachable": "check the network and https://status.cloud.google.com, and run this again",
    }.get(problem.kind, "")


def use_quota_project(project: str) -> GoogleAuthError | None:
    """Has a person's requests use the quota of a project, where the sign-in names none.

    Otherwise they use that of Google's own project, in which some APIs are not enabled. A variable of the
    environment reaches the clients that Beam makes as well. A service account has a project of its own.

    Returns:
      The reason why there are no credentials; None where there are some, or where the variable is set.
    """
    if os.environ.get(GOOGLE_CLOUD_QUOTA_PROJECT):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about just this
            credentials = google.auth.default()[0]
    except GoogleAuthError as error:
        return error  # the first request says so as well
    if isinstance(credentials, PersonalCredentials) and not credentials.quota_project_id:
        os.environ[GOOGLE_CLOUD_QUOTA_PROJECT] = project
    return None


def grant_on_project(project: str, role: str, member: str) -> str:
    """Makes the command that grants a role on a project.

    >>> grant_on_project("my-project", "roles/bigquery.jobUser", "user:me@example.com").split()[3:]
    ['my-project', '--member=user:me@example.com', '--role=roles/bigquery.jobUser', '--condition=None']
    """
    # Where the policy has conditional bindings, gcloud asks without --condition.
    return (
        f"gcloud projects add-iam-policy-binding {project} --member={member} --role={role} --condition=None"
    )


def grant_on_dataset(dataset: str, role: str, member: str) -> str:
    """Makes the command that grants a role on a dataset, "PROJECT.DATASET"."""
    return f"bq query --use_legacy_sql=false {shlex.quote(grant_sql(dataset, role, member))}"


def grant_sql(dataset: str, role: str, member: str) -> str:
    """Makes the statement that grants a role on a dataset.

    >>> grant_sql("my-project.anomaly", "roles/bigquery.dataViewer", "user:me@example.com")
    'GRANT `roles/bigquery.dataViewer` ON SCHEMA `my-project.anomaly` TO "user:me@example.com"'
    """
    return f'GRANT `{role}` ON SCHEMA `{dataset}` TO "{member}"'

"""What a check found, and how to look a thing up so that whatever fails is said with its cure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import google.auth
from google.api_core.exceptions import (
    BadRequest,
    Forbidden,
    GoogleAPICallError,
    MethodNotImplemented,
    NotFound,
)
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import bigquery

from cloud.resources.base import LOGIN, UNREACHABLE
from cloud.resources.gcloud import Gcloud, GcloudError
from common.loopback import is_loopback_address

AGAIN: Final = "check the network and https://status.cloud.google.com, and run this again"

BIGQUERY_PATIENCE: Final[dict[str, Any]] = {
    "retry": bigquery.DEFAULT_RETRY.with_timeout(20.0),
    "timeout": 20.0,
}
"""For one question to BigQuery, whose client alone would ask for ten minutes, without a word."""

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_DISABLED: Final = ("SERVICE_DISABLED", "has not been used in project")
_SERVICE: Final = re.compile(r"\b([a-z][a-z0-9-]*\.googleapis\.com)\b")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      what: the thing that was checked.
      status: "ok"; "note", worth knowing, or not to be found out; "failed".
      problem: what is wrong.
      remedy: the command that mends it.
    """

    what: str
    status: Literal["ok", "note", "failed"] = "ok"
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Look:
    """How to look a thing up, and what to say when that fails.

    Attributes:
      what: its name.
      create: the command that makes it.
      permission: needed to look.
      role: the narrowest role with that permission.
      project: in which the role is granted.
      bucket: "gs://BUCKET", where the role is granted on that alone.
    """

    what: str
    create: str
    permission: str
    role: str
    project: str
    bucket: str = ""

    def up(self, call: Callable[[], Any]) -> tuple[Any, list[Finding]]:
        """What `call` gives and no finding, or None and the failure."""
        try:
            return call(), []
        except NotFound:
            return None, [Finding(self.what, "failed", "does not exist", self.create)]
        except Forbidden as error:
            return None, [self.forbidden(error)]
        except BadRequest as error:
            return None, [Finding(self.what, "failed", f"is refused: {error.message}", self.create)]
        except GoogleAuthError as error:
            return None, [no_credentials(self.what, error)]
        except UNREACHABLE as error:
            return None, [Finding(self.what, "failed", f"no answer: {error}", AGAIN)]
        except MethodNotImplemented:
            raise
        except GoogleAPICallError as error:
            return None, [Finding(self.what, "failed", f"cannot be read: {error.message}", AGAIN)]

    def forbidden(self, error: Forbidden) -> Finding:
        """The failure of a look that Google did not allow."""
        enable = enabling(f"{error} {error.reason} {error.metadata}", self.project)
        if enable:
            return Finding(self.what, "failed", f"the API is not enabled: {error.message}", enable)
        problem = f"you lack {self.permission} ({self.role}): {error.message}"
        remedy = grant_on_bucket(self.bucket, self.role) if self.bucket else grant(self.project, self.role)
        return Finding(self.what, "failed", problem, remedy)


def enabling(said: str, project: str) -> str:
    """The command that enables the API which Google's error says is not; "" where it says something else."""
    if not any(mark in said for mark in _DISABLED):
        return ""
    # The error names it in its details, or in the address of the console's page.
    named = _SERVICE.search(said.replace("type.googleapis.com", ""))
    if named is None:
        return f"python -m cloud.resources create --project {project}"
    return f"gcloud services enable {named[1]} --project={project}"


def no_credentials(what: str, error: GoogleAuthError) -> Finding:
    """The failure where nobody is signed in, or no longer."""
    return Finding(what, "failed", f"no valid credentials: {error}", LOGIN)


def grant(project: str, role: str) -> str:
    """The command that gives the caller a role on a project."""
    words = f"gcloud projects add-iam-policy-binding {project} --member={member()} --role={role}"
    return f"{words} --condition=None"  # without it, gcloud asks where the policy has conditional bindings


def grant_on_bucket(bucket: str, role: str) -> str:
    """The command that gives the caller a role on a bucket, "gs://BUCKET"."""
    return f"gcloud storage buckets add-iam-policy-binding {bucket} --member={member()} --role={role}"


def member() -> str:
    """The caller as policies name an account: whom the credentials tell, or else gcloud."""
    try:
        credentials: Any = google.auth.default()[0]
    except GoogleAuthError:
        credentials = None
    email = getattr(credentials, "service_account_email", "") or getattr(credentials, "account", "")
    if not email or email == "default":  # a machine's own account has no other name before it is asked
        try:
            email = Gcloud().read("config", "get-value", "account")
        except GcloudError:
            email = ""
    if not email:
        return "user:$(gcloud config get-value account)"  # filled in by the shell where gcloud is
    return f"{'serviceAccount' if email.endswith('gserviceaccount.com') else 'user'}:{email}"


def bucket_of(uri: str) -> str:
    """gs://BUCKET of gs://BUCKET/PATH."""
    return f"gs://{uri.split('/')[2]}"


def project_of(name: str) -> str:
    """PROJECT of PROJECT.DATASET or PROJECT.DATASET.TABLE; a project of a domain has dots itself."""
    domain, colon, rest = name.rpartition(":")
    return f"{domain}{colon}{rest.partition('.')[0]}"


def session(variable: str, public: str) -> tuple[AuthorizedSession, str]:
    """A session with the caller's credentials, and the base URL of an API.

    Args:
      variable: gcloud's own for another endpoint; obeyed here too. One on this machine gets no credentials.
      public: Google's endpoint.

    Raises:
      GoogleAuthError: nobody is signed in.
    """
    base = os.environ.get(variable, public).rstrip("/")
    local = is_loopback_address(base)
    return AuthorizedSession(
        AnonymousCredentials() if local else google.auth.default(scopes=_SCOPES)[0]
    ), base

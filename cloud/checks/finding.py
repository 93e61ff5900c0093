"""The result of a check, and lookups whose failure names its remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import google.auth
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery

from cloud.resources.gcloud import Gcloud, GcloudError
from common import google as google_errors
from common.retry import LOOK_SECONDS

BIGQUERY_PATIENCE: Final[dict[str, Any]] = {
    "retry": bigquery.DEFAULT_RETRY.with_timeout(LOOK_SECONDS),
    "timeout": LOOK_SECONDS,
}
"""For one request to BigQuery. By default its client tries for ten minutes in silence."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
      subject: the thing that was checked.
      status: "ok"; "note", worth knowing, or not checked; "failed".
      problem: what is wrong.
      remedy: the command that fixes it.
      cause: kind of Google's error, where one is the problem.
    """

    subject: str
    status: Literal["ok", "note", "failed"] = "ok"
    problem: str = ""
    remedy: str = ""
    cause: google_errors.Kind | None = None


@dataclass(frozen=True)
class Lookup:
    """One look at a thing.

    Attributes:
      subject: name of the thing.
      create: the command that makes it.
      permission: needed to look.
      role: the narrowest role with that permission.
      project: in which the role is granted.
      bucket: "gs://BUCKET", where the role is granted on that alone.
    """

    subject: str
    create: str
    permission: str
    role: str
    project: str
    bucket: str = ""

    def run(self, call: Callable[[], _T]) -> tuple[_T | None, list[Finding]]:
        """Returns the answer of `call` and no finding, or None and the failure."""
        try:
            return call(), []
        except google_errors.ERRORS as error:
            return None, [self.failure(error)]

    def failure(self, error: BaseException) -> Finding:
        """Makes a finding of an error of Google's clients."""
        problem = google_errors.explain(error)
        text = {
            "missing": "does not exist",
            "forbidden": f"you lack {self.permission} ({self.role}): {problem.text}",
        }.get(problem.kind, str(problem))
        if problem.kind == "refused":
            remedy = self.create
        elif problem.kind == "forbidden":  # the caller's name may cost a call of gcloud
            remedy = self._grant()
        elif problem.kind == "quota_denied":
            remedy = grant(self.project, google_errors.QUOTA_ROLE)
        else:
            remedy = google_errors.remedy(problem, self.project, create=self.create)
        return Finding(self.subject, "failed", text, remedy, problem.kind)

    def missing_permissions(self, wanted: list[str], held: list[str]) -> list[Finding]:
        """Makes the finding about permissions: ok where the caller holds all that are wanted."""
        missing = [permission for permission in wanted if permission not in held]
        if not missing:
            return [Finding(self.subject)]
        problem = f"you lack {', '.join(missing)} ({self.role})"
        return [Finding(self.subject, "failed", problem, self._grant(), "forbidden")]

    def _grant(self) -> str:
        return grant_on_bucket(self.bucket, self.role) if self.bucket else grant(self.project, self.role)


def left_to_the_workers(findings: list[Finding]) -> list[Finding]:
    """Lowers to a note that the caller may not look at a thing which the workers alone read or write."""
    return [
        replace(
            finding, status="note", problem=f"not checked, the workers must be able to: {finding.problem}"
        )
        if finding.cause == "forbidden"
        else finding
        for finding in findings
    ]


def grant(project: str, role: str) -> str:
    """Makes the command that grants the caller a role on a project."""
    return google_errors.grant_on_project(project, role, member())


def grant_on_bucket(bucket: str, role: str) -> str:
    """Makes the command that grants the caller a role on "gs://BUCKET"."""
    return f"gcloud storage buckets add-iam-policy-binding {bucket} --member={member()} --role={role}"


def member() -> str:
    """Names the caller as policies do: by the credentials, or by gcloud where those have no name."""
    try:
        credentials: Any = google.auth.default()[0]
    except GoogleAuthError:
        credentials = None
    email = getattr(credentials, "service_account_email", "") or getattr(credentials, "account", "")
    if not email or email == "default":  # the account of a virtual machine, before its first request
        try:
            email = Gcloud().read("config", "get-value", "account")
        except GcloudError:
            email = ""
    if not email:
        return "user:$(gcloud config get-value account)"  # the shell fills it in where gcloud is installed
    return f"{'serviceAccount' if email.endswith('gserviceaccount.com') else 'user'}:{email}"


def bucket_of(uri: str) -> str:
    """Cuts gs://BUCKET out of gs://BUCKET/PATH.

    >>> bucket_of("gs://my-bucket/model/manifest.json")
    'gs://my-bucket'
    """
    return f"gs://{uri.split('/')[2]}"


def project_of(name: str) -> str:
    """Cuts PROJECT out of PROJECT.DATASET or PROJECT.DATASET.TABLE; only a domain's project has dots.

    >>> project_of("example.com:my-project.anomaly.scores")
    'example.com:my-project'
    """
    domain, colon, rest = name.rpartition(":")
    return f"{domain}{colon}{rest.partition('.')[0]}"

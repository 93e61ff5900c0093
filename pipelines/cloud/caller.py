"""What the launch itself takes: a free job name, and the right to act as the workers' account."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import urlsplit

import google.auth
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from pipelines.cloud.checks import Finding, no_credentials
from pipelines.cloud.jobs import JobError, Jobs
from pipelines.cloud.request import JobRequest
from pipelines.resources.base import UNREACHABLE
from transforms.clients import is_loopback

IAM_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM"
"""gcloud's own variable for another endpoint of IAM; obeyed here too."""

_ACT_AS: Final = "iam.serviceAccounts.actAs"
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)


def check_job_name(request: JobRequest) -> list[Finding]:
    """Whether the name is free, or taken by the job that is to be updated.

    Dataflow refuses a name that is taken only when the launcher of a template is up, minutes later.
    """
    args = request.args
    what = f"job {args.job_name}"
    place = f"--project {args.project} --region {args.region}"
    try:
        active = Jobs(args.project, args.region, args.dataflow_endpoint).listing(active=True)
    except JobError as error:
        return [Finding(what, "note", f"not looked up: {error}", f"python -m pipelines.launch list {place}")]
    running = next((job for job in active if job.name == args.job_name), None)
    if running and not args.update:
        problem = f"runs already ({running.id}); replace it with --update, give another --job_name, or end it"
        return [Finding(what, "failed", problem, f"python -m pipelines.launch drain {args.job_name} {place}")]
    if args.update and not running:
        problem = "does not run, so that there is nothing to update: leave out --update"
        return [Finding(what, "failed", problem, f"python -m pipelines.launch list --active {place}")]
    return [Finding(what)]


def check_act_as(request: JobRequest) -> list[Finding]:
    """Whether the caller may start jobs that run as the workers' account."""
    account = request.args.service_account_email
    what = f"your right to run jobs as {account}"
    base = os.environ.get(IAM_VARIABLE, "https://iam.googleapis.com/").rstrip("/")
    try:
        local = is_loopback(urlsplit(base).hostname or "")
        credentials = AnonymousCredentials() if local else google.auth.default(scopes=_SCOPES)[0]
        with AuthorizedSession(credentials) as session:
            answer = session.post(
                f"{base}/v1/projects/-/serviceAccounts/{account}:testIamPermissions",
                json={"permissions": [_ACT_AS]},
                timeout=30,
            )
    except GoogleAuthError as error:
        return [no_credentials(what, error)]
    except UNREACHABLE as error:
        return [Finding(what, "note", f"not checked, no answer: {error}")]
    if answer.status_code != 200:  # of an account that is missing, its own check tells
        return [Finding(what, "note", f"not checked: IAM answers {answer.status_code}")]
    if _ACT_AS in answer.json().get("permissions", ()):
        return [Finding(what)]
    grant = (
        f"gcloud iam service-accounts add-iam-policy-binding {account} --project={request.args.project} "
        "--member=user:YOUR_EMAIL --role=roles/iam.serviceAccountUser"
    )
    return [Finding(what, "failed", f"you lack {_ACT_AS} (roles/iam.serviceAccountUser)", grant)]

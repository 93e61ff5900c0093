"""What the launch itself takes: a free job name, and the right to act as the workers' account."""

from __future__ import annotations

from typing import Final

from google.auth.exceptions import GoogleAuthError

from cloud.jobs import JobError, Jobs
from cloud.look import Finding, enabling, member, no_credentials, session
from cloud.request import JobRequest
from cloud.resources.base import UNREACHABLE

IAM_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM"
"""gcloud's own variable for another endpoint of IAM; obeyed here too."""

_ACT_AS: Final = "iam.serviceAccounts.actAs"


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
        enable = enabling(f"{error} {error.__cause__}", args.project)
        if enable:
            return [Finding(what, "failed", f"not looked up: {error}", enable)]
        return [Finding(what, "note", f"not looked up: {error}", f"python -m cloud.launch list {place}")]
    running = next((job for job in active if job.name == args.job_name), None)
    if running and not args.update:
        problem = f"runs already ({running.id}); replace it with --update, give another --job_name, or end it"
        end = "drain" if running.kind == "streaming" else "cancel"  # a batch cannot be drained
        return [Finding(what, "failed", problem, f"python -m cloud.launch {end} {args.job_name} {place}")]
    if args.update and not running:
        problem = "does not run, so that there is nothing to update: leave out --update"
        return [Finding(what, "failed", problem, f"python -m cloud.launch list --active {place}")]
    return [Finding(what)]


def check_act_as(request: JobRequest) -> list[Finding]:
    """Whether the caller may start jobs that run as the workers' account."""
    account = request.args.service_account_email
    what = f"your right to run jobs as {account}"
    try:
        http, base = session(IAM_VARIABLE, "https://iam.googleapis.com/")
        with http:
            answer = http.post(
                f"{base}/v1/projects/-/serviceAccounts/{account}:testIamPermissions",
                json={"permissions": [_ACT_AS]},
                timeout=30,
            )
    except GoogleAuthError as error:
        return [no_credentials(what, error)]
    except UNREACHABLE as error:
        return [Finding(what, "note", f"not checked, no answer: {error}")]
    enable = enabling(answer.text, request.args.project) if answer.status_code == 403 else ""
    if enable:
        return [Finding(what, "failed", "the API is not enabled: iam.googleapis.com", enable)]
    if answer.status_code != 200:  # of an account that is missing, its own check tells
        return [Finding(what, "note", f"not checked: IAM answers {answer.status_code}")]
    if _ACT_AS in answer.json().get("permissions", ()):
        return [Finding(what)]
    grant = (
        f"gcloud iam service-accounts add-iam-policy-binding {account} --project={request.args.project} "
        f"--member={member()} --role=roles/iam.serviceAccountUser"
    )
    return [Finding(what, "failed", f"you lack {_ACT_AS} (roles/iam.serviceAccountUser)", grant)]

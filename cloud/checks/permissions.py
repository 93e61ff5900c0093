"""Checks of the permissions of whoever launches."""

from __future__ import annotations

import dataclasses
import os
from typing import Final

from google.api_core.exceptions import MethodNotImplemented, from_http_response

from cloud.checks.finding import Finding, Lookup, member
from cloud.endpoints import RESOURCE_MANAGER_VARIABLE, client_arguments, iam_session
from cloud.request import JobRequest
from common import google
from common.retry import LOOK_SECONDS

_ACT_AS: Final = "iam.serviceAccounts.actAs"


def check_project(project: str) -> list[Finding]:
    """Checks that the caller may launch jobs."""
    from google.cloud import resourcemanager_v3

    subject = f"project {project}, your permissions"
    wanted = ["dataflow.jobs.create", "dataflow.jobs.get", "dataflow.jobs.list"]
    endpoint = os.environ.get(RESOURCE_MANAGER_VARIABLE)
    browse = Lookup(subject, "gcloud projects list", "resourcemanager.projects.get", "roles/browser", project)

    def ask() -> list[str] | None:
        client = resourcemanager_v3.ProjectsClient(**client_arguments(endpoint, RESOURCE_MANAGER_VARIABLE))
        request = {"resource": f"projects/{project}", "permissions": wanted}
        try:
            return list(client.test_iam_permissions(request=request).permissions)
        except MethodNotImplemented:
            return None

    held, failed = browse.run(ask)
    if failed:
        return failed
    if held is None:
        return [Finding(subject, "note", "not checked: this endpoint does not tell permissions")]
    launch = dataclasses.replace(browse, role="roles/dataflow.developer")
    return launch.missing_permissions(wanted, held)


def check_act_as(request: JobRequest) -> list[Finding]:
    """Checks that the caller may start jobs that run as the workers' account."""
    account, project = request.account, request.installation.project
    subject = f"your right to run jobs as {account}"
    lookup = Lookup(subject, "", _ACT_AS, "roles/iam.serviceAccountUser", project)
    try:
        http, base = iam_session()
        with http:
            answer = http.post(
                f"{base}/v1/projects/-/serviceAccounts/{account}:testIamPermissions",
                json={"permissions": [_ACT_AS]},
                timeout=LOOK_SECONDS,
            )
    except google.ERRORS as error:
        return [_note_unreachable(lookup.failure(error))]
    if answer.status_code != 200:
        problem = google.explain(from_http_response(answer))
        if problem.is_setup:
            return [lookup.failure(from_http_response(answer))]
        # A missing account has a check of its own.
        return [Finding(subject, "note", f"not checked: IAM answers {answer.status_code}")]
    if _ACT_AS in answer.json().get("permissions", ()):
        return [Finding(subject)]
    grant = (
        f"gcloud iam service-accounts add-iam-policy-binding {account} --project={project} "
        f"--member={member()} --role={lookup.role}"
    )
    return [Finding(subject, "failed", f"you lack {_ACT_AS} ({lookup.role})", grant)]


def _note_unreachable(finding: Finding) -> Finding:
    """Lowers a failure to a note where IAM gave no answer: a launch may still succeed."""
    is_unreachable = finding.cause == "unreachable"
    return dataclasses.replace(finding, status="note") if is_unreachable else finding

"""Failures of jobs and requests in BigQuery's words, never in DuckDB's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import jobs, upload
from bqemulator.catalog.etag import generate_etag
from bqemulator.catalog.models import JobMeta, JobType
from bqemulator.domain.errors import NotFoundError, ResourceRef
from bqemulator.observability.logging_ import get_logger
from fastapi import Depends, Query

from local.bqemulator_patches.replace import replace, replace_route
from local.bqemulator_patches.rest import context, paged

_log = get_logger(__name__)


class JobError(Exception):
    """A job that fails, as its `status` tells it.

    Attributes:
      reason: BigQuery's word for the kind of failure: invalid, notFound, duplicate.
      details: More messages, which `status.errors` has after the first.
    """

    def __init__(self, reason: str, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.details = tuple(details)

    def result(self) -> dict[str, Any]:
        """The error as it is kept with the job."""
        result: dict[str, Any] = {"reason": self.reason, "message": str(self)}
        if self.details:
            result["errors"] = [{"reason": self.reason, "message": detail} for detail in self.details]
        return result


def failed(
    project_id: str,
    job_id: str,
    kind: JobType,
    config: dict[str, Any],
    error: JobError | NotFoundError | duckdb.Error,
    ctx: AppContext,
) -> JobMeta:
    """A job that has ended with `error`. What DuckDB says goes to the log alone."""
    if isinstance(error, duckdb.Error):
        _log.error("job.failed", job=job_id, error=str(error))
        error = JobError("invalid", "The rows do not fit the columns of the destination table.")
    result = error.result() if isinstance(error, JobError) else jobs._domain_error_to_error_result(error)
    return jobs._failed_job_meta(project_id, job_id, kind, config, result, ctx.clock.now())


def done(
    project_id: str,
    job_id: str,
    kind: JobType,
    config: dict[str, Any],
    statistics: dict[str, Any],
    ctx: AppContext,
) -> JobMeta:
    """A job that has ended well."""
    now = ctx.clock.now()
    return JobMeta(
        project_id=project_id,
        job_id=job_id,
        job_type=kind,
        state="DONE",
        configuration=config,
        statistics=statistics,
        creation_time=now,
        start_time=now,
        end_time=now,
        etag=generate_etag(project_id, job_id, str(now)),
    )


def tell_all_errors_of_a_job() -> None:
    """Defects of jobs.insert, jobs.get and jobs.list.

    `status.errors` has at most one error, and in the list a job that has failed is one that went well. The
    list ends after one page. An upload's job lacks the times of its statistics.
    """
    stock = jobs._build_job_response

    def build_job_response(
        project_id: str, job_id: str, meta: JobMeta, configuration: dict[str, Any]
    ) -> dict[str, Any]:
        answer = stock(project_id, job_id, meta, configuration)
        if meta.error_result:
            first = {key: value for key, value in meta.error_result.items() if key != "errors"}
            answer["status"] |= {
                "errorResult": first,
                "errors": [first, *meta.error_result.get("errors", ())],
            }
        return answer

    def list_jobs(
        project_id: str,
        ctx: AppContext = Depends(context),  # noqa: B008 - FastAPI's way
        max_results: int = Query(default=100, alias="maxResults"),
        page_token: int = Query(default=0, alias="pageToken"),
        state: str | None = Query(default=None, alias="stateFilter"),
        parent: str | None = Query(default=None, alias="parentJobId"),
    ) -> dict[str, Any]:
        wanted = page_token + max_results + 1
        found = ctx.catalog.list_jobs(project_id, state_filter=state and state.upper(), max_results=wanted)
        # A script runs as one job here.
        page, following = paged(() if parent else found, max_results, page_token)
        resources = [build_job_response(project_id, job.job_id, job, job.configuration) for job in page]
        listed = [resource | {"state": resource["status"]["state"]} for resource in resources]
        return {"kind": "bigquery#jobList", "jobs": listed} | following

    replace(jobs, "_build_job_response", build_job_response)
    replace(upload, "_build_job_response", build_job_response)
    replace_route(jobs.router, "list_jobs", list_jobs)


def name_resources_as_bigquery() -> None:
    """Defect: a message says `table:project.dataset.table` instead of `Table project:dataset.table`."""

    def name(self: ResourceRef) -> str:
        below = ".".join(filter(None, (self.dataset_id, self.resource_id)))
        return f"{self.kind.capitalize()} {self.project_id}:{below}"

    replace(ResourceRef, "format", name)


PATCHES = (tell_all_errors_of_a_job, name_resources_as_bigquery)

"""Dataflow jobs: list, follow, drain, cancel; and the launch of Flex templates."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.api_core.exceptions import ServerError, TooManyRequests
from google.cloud import dataflow_v1beta3 as dataflow
from google.protobuf import json_format

from cloud.endpoints import client_arguments
from cloud.resources.base import has_label
from common import google
from common.command import CommandError
from common.retry import Patience

DATASET_LABEL: Final = "anomaly_dataset"
PIPELINE_LABEL: Final = "pipeline"

_FIRST_PAUSE: Final = 0.5
_BUCKETS: Final = re.compile(r"(?:gs://|storage\.googleapis\.com/)([a-z0-9][a-z0-9._-]+)")
_FINAL: Final = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
ENDING: Final = ("DRAINING", "CANCELLING")
"""States of a job that somebody has asked to end."""
_REQUESTS: Final = {
    "cancel": dataflow.JobState.JOB_STATE_CANCELLED,
    "drain": dataflow.JobState.JOB_STATE_DRAINED,
}


class JobError(CommandError):
    """Dataflow refused or cannot be reached; the text says what to do.

    Attributes:
      problem: the reason, where Google's client gave one.
      is_transient: whether the same request may be answered later.
    """

    def __init__(
        self, text: str, problem: google.GoogleProblem | None = None, is_transient: bool = False
    ) -> None:
        super().__init__(text)
        self.problem = problem
        self.is_transient = is_transient


def label_value(text: str) -> str:
    """Changes a text into the value of a label: lower case, at most 63 characters.

    >>> label_value("my-project.Anomaly")
    'my-project-anomaly'
    """
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in text.lower())[:63]


@dataclass(frozen=True)
class JobInfo:
    """One job.

    Attributes:
      id: its id.
      name: its name.
      kind: "streaming" or "batch".
      state: "RUNNING", "DONE" and so on, without JOB_STATE_.
      created: time of its creation.
      labels: its labels.
      reads: subscriptions, topics ("projects/...") and datasets ("PROJECT.DATASET") that it uses, as far as
        Dataflow knows.
      location: its region.
      buckets: the buckets that its options and files name.
      account: e-mail address of the service account of its workers.
    """

    id: str
    name: str
    kind: str
    state: str
    created: dt.datetime | None
    labels: dict[str, str] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    location: str = ""
    buckets: frozenset[str] = frozenset()
    account: str = ""

    @property
    def ended(self) -> bool:
        """Returns whether its state is final."""
        return self.state in _FINAL

    @property
    def ours(self) -> bool:
        """Returns whether `anomaly launch` started it."""
        return has_label(self.labels)

    def uses(self, project: str, dataset: str, prefix: str, bucket: str = "", account: str = "") -> bool:
        """Returns whether it uses a subscription, topic, dataset, bucket or account with these names."""
        if f"{project}.{dataset}" in self.reads or bucket in self.buckets:
            return True
        if account and account == self.account:
            return True
        names = (
            f"projects/{project}/subscriptions/{prefix}transactions-pipeline",
            *(f"projects/{project}/topics/{prefix}{topic}" for topic in ("transactions", "alerts")),
        )
        if self.reads.intersection(names):
            return True
        return self.ours and self.labels.get(DATASET_LABEL) == label_value(f"{project}-{dataset}")


@dataclass
class Jobs:
    """The jobs of one project in one region.

    Attributes:
      project: its id.
      region: such as us-central1.
      endpoint: URL in place of Google's; with http:// it must be this machine, and no credentials are sent.
      poll_seconds: longest pause between two requests while a job is followed; the first pauses are shorter.
      patience: seconds without an answer after which the following of a job fails.
    """

    project: str
    region: str
    endpoint: str | None = None
    poll_seconds: float = 5.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        self._arguments = client_arguments(self.endpoint, "--dataflow_endpoint")
        self._clients: dict[Any, Any] = {}
        self._cancelled: set[str] = set()

    def _client(self, kind: Any) -> Any:
        if kind not in self._clients:
            self._clients[kind] = kind(**self._arguments)
        return self._clients[kind]

    def url(self, job_id: str) -> str:
        """The job's page in the Google Cloud console."""
        return f"https://console.cloud.google.com/dataflow/jobs/{self.region}/{job_id}?project={self.project}"

    def at(self, region: str) -> Jobs:
        """Makes a client of the same project in another region."""
        return self if region in ("", self.region) else replace(self, region=region)

    def active(self) -> Iterator[JobInfo]:
        """Looks up the jobs of every region that have not ended, with labels and options."""
        for job in self.listing(active=True, everywhere=True):
            yield self.at(job.location).get(job.id)

    def mine(self, active: bool = False) -> list[JobInfo]:
        """Looks up the region's jobs that `anomaly launch` started, one by one: a list has no labels."""
        return [job for job in (self.get(each.id) for each in self.listing(active)) if job.ours]

    def listing(self, active: bool = False, everywhere: bool = False) -> list[JobInfo]:
        """Lists everybody's jobs, newest first.

        Args:
          active: only jobs that have not ended; otherwise all jobs that Dataflow still knows.
          everywhere: the jobs of all regions.

        Raises:
          JobError: Dataflow refused, or a region does not answer.
        """
        states = dataflow.ListJobsRequest.Filter.ACTIVE if active else dataflow.ListJobsRequest.Filter.ALL
        request = dataflow.ListJobsRequest(project_id=self.project, filter=states)
        if not everywhere:
            request.location = self.region
        with self._explained("list jobs", "roles/dataflow.viewer", "all regions" if everywhere else ""):
            client = self._client(dataflow.JobsV1Beta3Client)
            list_jobs = client.aggregated_list_jobs if everywhere else client.list_jobs
            pages = list(list_jobs(request=request).pages)
        silent = {failed.name for page in pages for failed in page.failed_location}
        if silent and everywhere:
            regions = ", ".join(sorted(silent))
            raise JobError(f"list jobs in {self.project}: no answer from {regions}", is_transient=True)
        jobs = [_info(job) for page in pages for job in page.jobs]
        oldest = dt.datetime.min.replace(tzinfo=dt.UTC)
        return sorted(jobs, key=lambda job: job.created or oldest, reverse=True)

    def get(self, job_id: str) -> JobInfo:
        """Looks up one job.

        Raises:
          JobError: there is none, or Dataflow refused.
        """
        return _info(self.describe(job_id))

    def describe(self, job_id: str) -> dataflow.Job:
        """Looks up one job with all that Dataflow says of it.

        Raises:
          JobError: there is none, or Dataflow refused.
        """
        request = dataflow.GetJobRequest(
            project_id=self.project,
            location=self.region,
            job_id=job_id,
            view=dataflow.JobView.JOB_VIEW_ALL,  # a summary need not have labels and options
        )
        with self._explained(f"job {job_id}", "roles/dataflow.viewer"):
            return self._client(dataflow.JobsV1Beta3Client).get_job(request=request)

    def find(self, name_or_id: str) -> JobInfo:
        """Looks up the active job with a name, or any job with an id.

        Raises:
          JobError: there is none.
        """
        for job in self.listing(active=True):
            if name_or_id in (job.name, job.id):
                return job
        try:
            return self.get(name_or_id)
        except JobError as error:
            raise JobError(
                f"no active job {name_or_id} in {self.project}, {self.region}; see them with: "
                f"anomaly launch list --project={self.project} --region={self.region}"
            ) from error

    def request_state(self, job_id: str, action: str) -> None:
        """Asks for the end of a job.

        Args:
          job_id: the job.
          action: "drain" lets it finish what it has read, "cancel" does not.

        Raises:
          JobError: Dataflow refused.
        """
        change = dataflow.Job(requested_state=_REQUESTS[action])
        request = dataflow.UpdateJobRequest(
            project_id=self.project, location=self.region, job_id=job_id, job=change
        )
        with self._explained(f"{action} job {job_id}", "roles/dataflow.developer"):
            self._client(dataflow.JobsV1Beta3Client).update_job(request=request)
        if action == "cancel":
            self._cancelled.add(job_id)

    def messages(self, job_id: str, since: dt.datetime | None = None) -> list[tuple[dt.datetime, str, str]]:
        """Lists the messages of a job: time, importance (basic, warning, error) and text, oldest first."""
        request = dataflow.ListJobMessagesRequest(
            project_id=self.project,
            location=self.region,
            job_id=job_id,
            minimum_importance=dataflow.JobMessageImportance.JOB_MESSAGE_BASIC,
            start_time=since,
        )
        with self._explained(f"messages of job {job_id}", "roles/dataflow.viewer"):
            messages = self._client(dataflow.MessagesV1Beta3Client).list_job_messages(request=request)
            return [
                (message.time, _last_word(message.message_importance), message.message_text)
                for message in messages
            ]

    def wait(self, job_id: str, show: Callable[[str], None] | None = None, timeout: float = 0.0) -> JobInfo:
        """Follows a job to its end.

        Args:
          job_id: the job.
          show: takes a line for each message and each change of state.
          timeout: seconds; 0 waits for ever.

        Returns:
          The job in its final state.

        Raises:
          JobError: Dataflow refused, or the time is over; or somebody cancelled the job, without
            `request_state` of this object.
        """
        deadline = time.monotonic() + timeout
        state, since, seen = "", None, set[tuple[dt.datetime, str]]()
        pause = min(_FIRST_PAUSE, self.poll_seconds)
        while True:
            job, messages = self._look(job_id, since, show)
            for moment, importance, text in messages:
                since = moment
                if show and (moment, text) not in seen:
                    seen.add((moment, text))
                    show(f"{moment:%H:%M:%S} {importance:8} {text}")
            if show and job.state != state:
                show(f"{dt.datetime.now(dt.UTC):%H:%M:%S} state    {job.state}")
            state = job.state
            if job.state == "CANCELLED" and job_id not in self._cancelled:
                raise JobError(f"job {job.name} was cancelled before its end: {self.url(job_id)}")
            if job.ended:
                return job
            if timeout and time.monotonic() > deadline:
                raise JobError(f"job {job.name} is {state} after {timeout:.0f} s: {self.url(job_id)}")
            time.sleep(pause)
            pause = min(2 * pause, self.poll_seconds)

    def _look(
        self, job_id: str, since: dt.datetime | None, show: Callable[[str], None] | None
    ) -> tuple[JobInfo, list[tuple[dt.datetime, str, str]]]:
        """Looks up a job and its new messages, again and again while Dataflow gives no answer."""

        def announce(error: BaseException, seconds: float) -> None:
            if show:
                show(f"{dt.datetime.now(dt.UTC):%H:%M:%S} asking again, {error}")

        patience = Patience(self.patience, min(_FIRST_PAUSE, self.poll_seconds), self.poll_seconds)
        return patience.call(
            lambda: (self.get(job_id), self.messages(job_id, since) if show else []),
            lambda error: isinstance(error, JobError) and error.is_transient,
            announce,
        )

    def launch(self, parameter: dataflow.LaunchFlexTemplateParameter, validate_only: bool = False) -> JobInfo:
        """Launches a Flex template.

        Raises:
          JobError: Dataflow refused; the text is Dataflow's.
        """
        request = dataflow.LaunchFlexTemplateRequest(
            project_id=self.project,
            location=self.region,
            launch_parameter=parameter,
            validate_only=validate_only,
        )
        with self._explained(f"launch {parameter.container_spec_gcs_path}", "roles/dataflow.developer"):
            answer = self._client(dataflow.FlexTemplatesServiceClient).launch_flex_template(request=request)
        return _info(answer.job)

    @contextmanager
    def _explained(self, subject: str, role: str, where: str = "") -> Iterator[None]:
        """Turns errors of Google's clients into JobError."""
        try:
            yield
        except google.ERRORS as error:
            problem = google.explain(error)
            is_transient = problem.kind == "unreachable" or isinstance(error, ServerError | TooManyRequests)
            grant = f"gcloud projects add-iam-policy-binding {self.project} --member=user:EMAIL --role={role}"
            remedy = google.remedy(problem, self.project, grant=grant)
            if is_transient and self.endpoint:
                remedy = f"check --dataflow_endpoint={self.endpoint}"
            text = f"{subject} in {self.project}, {where or self.region}: {problem}"
            raise JobError(
                f"{text}. To fix it: {remedy}" if remedy else text, problem, is_transient
            ) from error


def _last_word(member: Any) -> str:
    """JOB_MESSAGE_BASIC -> basic."""
    return str(member.name).rpartition("_")[2].lower()


def _info(job: dataflow.Job) -> JobInfo:
    metadata = job.job_metadata
    reads = {name for details in metadata.pubsub_details for name in (details.topic, details.subscription)}
    reads |= {f"{details.project_id}.{details.dataset}" for details in metadata.bigquery_details}
    # Where a job reads, writes and stages stands in several places of its description.
    described = (
        *(json_format.MessageToJson(type(part).pb(part)) for part in (job.environment, metadata)),
        *job.temp_files,
    )
    return JobInfo(
        id=job.id,
        name=job.name,
        kind=_last_word(job.type_),
        state=job.current_state.name.removeprefix("JOB_STATE_"),
        created=job.create_time or None,
        labels=dict(job.labels),
        reads=frozenset(reads - {""}),
        location=job.location,
        buckets=frozenset(name for text in described for name in _BUCKETS.findall(text)),
        account=job.environment.service_account_email,
    )

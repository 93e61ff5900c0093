"""Dataflow jobs: list, follow, drain, cancel; and the launch of Flex templates."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import dataflow_v1beta3 as dataflow
from google.protobuf import json_format
from requests.exceptions import RequestException

from common.loopback import is_loopback

LABEL: Final = {"app": "transaction-anomaly"}
DATASET_LABEL: Final = "anomaly_dataset"
ENDPOINT_FLAG: Final = "--dataflow_endpoint"
ENDPOINT_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_DATAFLOW"

LOGIN: Final = "gcloud auth application-default login"

_FIRST_PAUSE: Final = 0.5
_TRANSIENT: Final = (
    *(RequestException, TransportError, exceptions.RetryError),
    *(exceptions.ServerError, exceptions.TooManyRequests),
)
_BUCKETS: Final = re.compile(r"(?:gs://|storage\.googleapis\.com/)([a-z0-9][a-z0-9._-]+)")
_FINAL: Final = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
_REQUESTS: Final = {
    "cancel": dataflow.JobState.JOB_STATE_CANCELLED,
    "drain": dataflow.JobState.JOB_STATE_DRAINED,
}


class JobError(RuntimeError):
    """Dataflow refused or cannot be reached; the text says what to do."""


class NoAnswerError(JobError):
    """Dataflow cannot be reached, or not now; the same question may be answered later."""


def add_endpoint_argument(parser: argparse._ActionsContainer) -> None:
    """Declares --dataflow_endpoint, which Beam's runner has under the same name."""
    parser.add_argument(
        ENDPOINT_FLAG,
        metavar="URL",
        default=os.environ.get(ENDPOINT_VARIABLE, "").rstrip("/") or None,
        help=f"Dataflow endpoint other than Google's public one (default: {ENDPOINT_VARIABLE}). "
        "Example: http://localhost:8080",
    )


def label_value(text: str) -> str:
    """`text` as a label takes it: lower case, 63 characters at the most."""
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in text.lower())[:63]


@dataclass(frozen=True)
class JobInfo:
    """One job.

    Attributes:
      id: its id.
      name: its name.
      kind: "streaming" or "batch".
      state: "RUNNING", "DONE" and so on, without JOB_STATE_.
      created: when it was.
      labels: its labels.
      reads: subscriptions, topics ("projects/...") and tables' datasets ("PROJECT.DATASET") that Dataflow
        knows it to use.
      location: its region.
      buckets: that its options and files name.
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
        """Whether its state is final."""
        return self.state in _FINAL

    @property
    def ours(self) -> bool:
        """Whether this project's launch started it."""
        return all(self.labels.get(key) == value for key, value in LABEL.items())

    def uses(self, project: str, dataset: str, prefix: str, bucket: str = "", account: str = "") -> bool:
        """Whether it uses a thing of the installation with these names: subscription, topic, dataset,
        bucket, or the workers' account.
        """
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
      poll_seconds: longest pause between two questions while a job is followed; the first ones are shorter.
      patience: seconds without an answer after which a job is followed no longer.
    """

    project: str
    region: str
    endpoint: str | None = None
    poll_seconds: float = 5.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        arguments: dict[str, Any] = {}
        if self.endpoint:
            url = urlsplit(self.endpoint if "//" in self.endpoint else f"https://{self.endpoint}")
            arguments["client_options"] = ClientOptions(api_endpoint=self.endpoint.rstrip("/"))
            arguments["transport"] = "rest"
            if url.scheme == "http":
                if not is_loopback(url.hostname or ""):
                    raise JobError(f"{ENDPOINT_FLAG}={self.endpoint}: use https://, credentials travel there")
                arguments["credentials"] = AnonymousCredentials()
        self._client = lambda kind: _client(kind, arguments)
        self._cache: dict[Any, Any] = {}
        self._cancelled: set[str] = set()

    def _of(self, kind: Any) -> Any:
        if kind not in self._cache:
            self._cache[kind] = self._client(kind)
        return self._cache[kind]

    def url(self, job_id: str) -> str:
        """The job's page in the Google Cloud console."""
        return f"https://console.cloud.google.com/dataflow/jobs/{self.region}/{job_id}?project={self.project}"

    def at(self, region: str) -> Jobs:
        """The same project in another region."""
        return self if region in ("", self.region) else replace(self, region=region)

    def active(self) -> Iterator[JobInfo]:
        """The jobs of every region that have not ended, with labels and options."""
        for job in self.listing(active=True, everywhere=True):
            yield self.at(job.location).get(job.id)

    def mine(self, active: bool = False) -> list[JobInfo]:
        """The region's jobs that this project's launch started; a list has no labels, so each is asked."""
        return [job for job in (self.get(each.id) for each in self.listing(active)) if job.ours]

    def listing(self, active: bool = False, everywhere: bool = False) -> list[JobInfo]:
        """Everybody's jobs, newest first.

        Args:
          active: those that have not ended; else all that Dataflow still knows.
          everywhere: of all regions.

        Raises:
          JobError: Dataflow refused, or a region does not answer.
        """
        chosen = dataflow.ListJobsRequest.Filter.ACTIVE if active else dataflow.ListJobsRequest.Filter.ALL
        request = dataflow.ListJobsRequest(project_id=self.project, filter=chosen)
        if not everywhere:
            request.location = self.region
        with _Explained(self, "list jobs", "roles/dataflow.viewer", "all regions" if everywhere else ""):
            client = self._of(dataflow.JobsV1Beta3Client)
            ask = client.aggregated_list_jobs if everywhere else client.list_jobs
            pages = list(ask(request=request).pages)
        silent = {failed.name for page in pages for failed in page.failed_location}
        if silent and everywhere:
            raise NoAnswerError(f"list jobs in {self.project}: no answer from {', '.join(sorted(silent))}")
        found = [_info(job) for page in pages for job in page.jobs]
        oldest = dt.datetime.min.replace(tzinfo=dt.UTC)
        return sorted(found, key=lambda job: job.created or oldest, reverse=True)

    def get(self, job_id: str) -> JobInfo:
        """One job.

        Raises:
          JobError: there is none, or Dataflow refused.
        """
        request = dataflow.GetJobRequest(
            project_id=self.project,
            location=self.region,
            job_id=job_id,
            view=dataflow.JobView.JOB_VIEW_ALL,  # a summary need not have labels and options
        )
        with _Explained(self, f"job {job_id}", "roles/dataflow.viewer"):
            return _info(self._of(dataflow.JobsV1Beta3Client).get_job(request=request))

    def find(self, name_or_id: str) -> JobInfo:
        """The active job of that name, or the job with that id.

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
                f"python -m cloud.launch list --project={self.project} --region={self.region}"
            ) from error

    def request_state(self, job_id: str, what: str) -> None:
        """Asks for the end of a job.

        Args:
          job_id: the job.
          what: "drain" lets it finish what it has read, "cancel" does not.

        Raises:
          JobError: Dataflow refused.
        """
        wanted = dataflow.Job(requested_state=_REQUESTS[what])
        request = dataflow.UpdateJobRequest(
            project_id=self.project, location=self.region, job_id=job_id, job=wanted
        )
        with _Explained(self, f"{what} job {job_id}", "roles/dataflow.developer"):
            self._of(dataflow.JobsV1Beta3Client).update_job(request=request)
        if what == "cancel":
            self._cancelled.add(job_id)

    def messages(self, job_id: str, since: dt.datetime | None = None) -> list[tuple[dt.datetime, str, str]]:
        """What Dataflow said of a job: time, importance (basic, warning, error) and text, oldest first."""
        request = dataflow.ListJobMessagesRequest(
            project_id=self.project,
            location=self.region,
            job_id=job_id,
            minimum_importance=dataflow.JobMessageImportance.JOB_MESSAGE_BASIC,
            start_time=since,
        )
        with _Explained(self, f"messages of job {job_id}", "roles/dataflow.viewer"):
            found = self._of(dataflow.MessagesV1Beta3Client).list_job_messages(request=request)
            return [
                (message.time, _last_word(message.message_importance), message.message_text)
                for message in found
            ]

    def wait(self, job_id: str, say: Callable[[str], None] | None = None, timeout: float = 0.0) -> JobInfo:
        """Follows a job to its end.

        Args:
          job_id: the job.
          say: takes a line for each message and each change of state.
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
        heard = time.monotonic()
        while True:
            try:
                job = self.get(job_id)
                messages = self.messages(job_id, since) if say else []
            except NoAnswerError as error:
                if time.monotonic() - heard > self.patience:
                    raise
                if say:
                    say(f"{dt.datetime.now(dt.UTC):%H:%M:%S} asking again, {error}")
                time.sleep(pause)
                pause = min(2 * pause, self.poll_seconds)
                continue
            heard = time.monotonic()
            if say:
                for moment, importance, text in messages:
                    since = moment
                    if (moment, text) not in seen:
                        seen.add((moment, text))
                        say(f"{moment:%H:%M:%S} {importance:8} {text}")
                if job.state != state:
                    say(f"{dt.datetime.now(dt.UTC):%H:%M:%S} state    {job.state}")
            state = job.state
            if job.state == "CANCELLED" and job_id not in self._cancelled:
                raise JobError(f"job {job.name} was cancelled before its end: {self.url(job_id)}")
            if job.ended:
                return job
            if timeout and time.monotonic() > deadline:
                raise JobError(f"job {job.name} is {state} after {timeout:.0f} s: {self.url(job_id)}")
            time.sleep(pause)
            pause = min(2 * pause, self.poll_seconds)

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
        with _Explained(self, f"launch {parameter.container_spec_gcs_path}", "roles/dataflow.developer"):
            answer = self._of(dataflow.FlexTemplatesServiceClient).launch_flex_template(request=request)
        return _info(answer.job)


def _client(kind: Any, arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except Exception as error:  # google.auth raises several kinds where there are no credentials
        raise JobError(f"no credentials: {error}. Run `{LOGIN}`.") from error


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


class _Explained:
    """Turns the errors of Google's client into JobError."""

    def __init__(self, jobs: Jobs, what: str, role: str, where: str = "") -> None:
        self.jobs, self.what, self.role, self.where = jobs, what, role, where or jobs.region

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        where = f"{self.what} in {self.jobs.project}, {self.where}"
        if isinstance(error, Forbidden):
            raise JobError(
                f"{where}: not allowed: {error.message}\nGrant it with: gcloud projects "
                f"add-iam-policy-binding {self.jobs.project} --member=user:EMAIL --role={self.role}"
            ) from error
        if isinstance(error, NotFound):
            raise JobError(f"{where}: not found: {error.message}") from error
        if isinstance(error, _TRANSIENT):
            at = f" at {self.jobs.endpoint}; is {ENDPOINT_FLAG} right" if self.jobs.endpoint else ""
            said = getattr(error, "message", None) or error
            raise NoAnswerError(f"{where}: no answer{at}: {said}") from error
        if isinstance(error, GoogleAuthError):
            raise JobError(f"{where}: no valid credentials: {error}. Run `{LOGIN}`.") from error
        if isinstance(error, GoogleAPICallError):
            raise JobError(f"{where}: {error.message}") from error

"""A job to be launched: the options of the launch, and those of the pipeline itself."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

from cloud import pipeline, update, versions
from cloud.jobs import DATASET_LABEL, PIPELINE_LABEL, label_value
from cloud.machines import machine_for
from cloud.monitoring.options import STREAM_JOB
from cloud.options import InstallationOptions
from cloud.pipeline import PipelineCommand, PipelineName
from cloud.resources.base import LABEL
from cloud.resources.declared import Names
from cloud.update import RunningJob
from common.google import use_quota_project
from common.names import GCS, GPU, JOB
from common.options import OptionError, add_options, option, read_options
from common.values import at_least

MACHINE_TYPE: Final = "n2-standard-2"
GPU_IMAGE: Final = "an --image with a build of torch for CUDA, which the project's own image does not have"
StreamingMode = Literal["at_least_once", "exactly_once"]


def _renaming(text: str) -> str:
    """Reads OLD=NEW."""
    if text.count("=") != 1 or text.startswith("="):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got {text!r}")
    return text


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options of the job itself. A flag with the meaning of one of Beam's has the name of Beam's."""

    via: Literal["flex", "direct"] = option(
        "flex",
        help="flex launches the template that `anomaly templates` uploaded; direct submits from this "
        "machine (default: %(default)s)",
    )
    job_name: str | None = option(
        None,
        type=JOB,
        metavar="NAME",
        help="default: transaction-anomaly-streaming, or transaction-anomaly-batch-TIME",
    )
    template: str | None = option(
        None, type=GCS, metavar="GS", help="default: gs://BUCKET/templates/PIPELINE.json"
    )
    image: str | None = option(
        None,
        metavar="IMAGE",
        help="image of the workers. flex: the template's own is the default; direct: without one, this "
        "checkout is staged as a package and every worker installs it at start, which takes minutes. "
        "Example: us-central1-docker.pkg.dev/my-project/anomaly/pipelines:1",
    )
    temp_location: str | None = option(None, type=GCS, metavar="GS", help="default: gs://BUCKET/temp")
    staging_location: str | None = option(None, type=GCS, metavar="GS", help="default: gs://BUCKET/staging")
    update: bool = option(
        False,
        action="store_true",
        help="replace the running streaming job of this name, keeping its state. Options that are not passed "
        "stay as the job has them; what changes is shown, and asked for",
    )
    reset: tuple[str, ...] = option(
        (),
        action="append",
        metavar="NAME",
        help="with --update, an option that goes back to its default; `all` for every one. May be passed "
        "several times. Example: high_threshold",
    )
    transform_name_mapping: tuple[str, ...] = option(
        (),
        type=_renaming,
        action="append",
        metavar="OLD=NEW",
        help="with --update, for a step that was renamed; may be passed several times",
    )

    def __post_init__(self) -> None:
        for flag in ("transform_name_mapping", "reset"):
            if getattr(self, flag) and not self.update:
                raise OptionError(f"--{flag}: expected --update with it, got none")
        if self.template and self.via == "direct":
            raise OptionError("--template: expected --via=flex with it, got --via=direct, which needs none")
        difference = versions.difference() if self.via == "direct" and self.image else ""
        if difference:
            raise OptionError(f"--image: expected the versions of this machine, but {difference}")

    @property
    def renamed_steps(self) -> dict[str, str]:
        """New names of steps by their old names."""
        return dict(pair.split("=", 1) for pair in self.transform_name_mapping)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The workers that run the job."""

    service_account_email: str | None = option(
        None, metavar="EMAIL", help="default: anomaly-worker@PROJECT..., see `anomaly resources`"
    )
    min_num_workers: int | None = option(
        None, type=at_least(1), metavar="N", help="fewest workers that autoscaling keeps"
    )
    num_workers: int | None = option(None, type=at_least(1), metavar="N", help="workers at the start")
    max_num_workers: int = option(
        4,
        type=at_least(1),
        metavar="N",
        help="most workers that autoscaling starts, which bounds the bill (default: %(default)s)",
    )
    machine_type: str | None = option(
        None, metavar="TYPE", help=f"default: {MACHINE_TYPE}, or the smallest with --gpu"
    )
    network: str | None = option(None, help="VPC network. Example: default")
    subnetwork: str | None = option(
        None, metavar="URL", help="Example: regions/us-central1/subnetworks/my-subnet"
    )
    no_use_public_ips: bool = option(
        False,
        action="store_true",
        help="workers without public addresses; the subnetwork needs Private Google Access",
    )
    streaming_mode: StreamingMode | None = option(
        None,
        help="of a stream: at_least_once costs less, and the views over the tables keep one row a "
        "transaction; exactly_once where the alert topic must not get a message twice "
        "(default: at_least_once)",
    )
    prime: bool = option(False, action="store_true", help="Dataflow Prime, which chooses the machines itself")
    gpu: str | None = option(
        None,
        type=GPU,
        metavar="TYPE[:COUNT]",
        help=f"GPU of a worker; needs {GPU_IMAGE}. Example: nvidia-l4:1",
    )

    def __post_init__(self) -> None:
        most = self.max_num_workers
        for flag in ("min_num_workers", "num_workers"):
            if (getattr(self, flag) or 0) > most:
                raise OptionError(
                    f"--{flag}: expected at most --max_num_workers={most}, got {getattr(self, flag)}"
                )
        if self.prime and self.machine_type:
            raise OptionError(f"--prime: expected no --machine_type with it, got {self.machine_type!r}")
        if self.prime and self.gpu:
            # With Prime, GPUs come from resource hints on the steps, and these pipelines have none.
            raise OptionError(f"--prime: expected no --gpu with it, got {self.gpu!r}")
        if self.gpu:
            machine_for(self.gpu, self.machine_type)

    @property
    def machine(self) -> str:
        """The machine type; "" for Prime, which refuses a job that names one."""
        if self.prime:
            return ""
        if self.gpu:
            return machine_for(self.gpu, self.machine_type)
        return self.machine_type or MACHINE_TYPE

    @property
    def service_options(self) -> list[str]:
        """The service options of Dataflow that the flags stand for."""
        options = []
        if self.min_num_workers:
            options.append(f"min_num_workers={self.min_num_workers}")
        if self.prime:
            options.append("enable_prime")
        if self.gpu:
            kind, _, count = self.gpu.partition(":")
            options.append(f"worker_accelerator=type:{kind};count:{count or 1};install-nvidia-driver")
        return options


@dataclass(frozen=True)
class JobRequest:
    """A job to be launched. Its properties fill in the defaults of the options.

    Attributes:
      running: the job that it replaces, for an update.
    """

    installation: InstallationOptions
    job: JobOptions
    workers: WorkerOptions
    pipeline: PipelineCommand
    created: dt.datetime
    running: RunningJob | None = None

    @cached_property
    def names(self) -> Names:
        """The names of the installation."""
        return self.installation.names

    @property
    def job_name(self) -> str:
        """Name of the job; that of a batch job has the time of the launch."""
        default = f"transaction-anomaly-batch-{self.created:%Y%m%d-%H%M%S}"
        return self.job.job_name or (STREAM_JOB if self.pipeline.name == "streaming" else default)

    @property
    def template(self) -> str:
        """Container spec of the Flex template."""
        return self.job.template or f"{self.names.bucket_url}/templates/{self.pipeline.name}.json"

    @property
    def temp_location(self) -> str:
        """Place for temporary files."""
        return _temp_location(self.job, self.names)

    @property
    def staging_location(self) -> str:
        """Place for staged files."""
        return self.job.staging_location or f"{self.names.bucket_url}/staging"

    @property
    def account(self) -> str:
        """E-mail address of the workers' service account."""
        return self.workers.service_account_email or self.names.account

    @property
    def streaming_mode(self) -> StreamingMode:
        """Delivery guarantee of a stream."""
        return self.workers.streaming_mode or "at_least_once"

    @property
    def labels(self) -> dict[str, str]:
        """Labels that mark the job as this project's."""
        dataset = self.pipeline.output_dataset
        of_dataset = {DATASET_LABEL: label_value(dataset)} if dataset else {}
        return {**LABEL, **of_dataset, PIPELINE_LABEL: self.pipeline.name}


_STREAMING_ONLY: Final = ("update", "reset", "transform_name_mapping", "streaming_mode")


def add_launch_options(parser: argparse.ArgumentParser, name: PipelineName | None = None) -> None:
    """Declares the options of a launch; with "batch", the help leaves out those of streams."""
    hidden = _STREAMING_ONLY if name == "batch" else ()
    add_options(parser, InstallationOptions, "project")
    add_options(parser, JobOptions, "job", hidden=hidden)
    add_options(parser, WorkerOptions, "workers", hidden=hidden)


def read_request(
    name: PipelineName,
    namespace: argparse.Namespace,
    rest: Sequence[str],
    now: dt.datetime | None = None,
    without: Collection[str] = (),
) -> JobRequest:
    """Makes a request from the command line. This is where the Namespace of a launch ends.

    Args:
      name: of the pipeline.
      namespace: from a parser with the options of a launch.
      rest: the flags that the parser does not know: the pipeline's and Beam's.
      now: time of the launch.
      without: options that get no default from the names of the installation.

    Raises:
      OptionError: an option does not fit; the text names the flag.
    """
    installation = read_options(InstallationOptions, namespace)
    job = read_options(JobOptions, namespace)
    workers = read_options(WorkerOptions, namespace)
    check_fit(name, job, workers)
    names = installation.names
    defaults = [flag for flag in _default_flags(name, names, rest) if _option_of(flag) not in without]
    argv = [*rest, *defaults]
    command = pipeline.parse(name, argv, _temp_location(job, names), job.via)
    return JobRequest(installation, job, workers, command, now or dt.datetime.now(dt.UTC))


def read_update(
    name: PipelineName, namespace: argparse.Namespace, rest: Sequence[str], words: Sequence[str]
) -> JobRequest:
    """Makes a request from the command line; that of an update starts from the options of the running job.

    Args:
      name: of the pipeline.
      namespace: from a parser with the options of a launch.
      rest: the flags that the parser does not know: the pipeline's and Beam's.
      words: the whole command line.

    Raises:
      OptionError: an option does not fit; the text names the flag.
      JobError: there is no such job, or Dataflow refused.
    """
    if not namespace.update or name == "batch":
        return read_request(name, namespace, rest)
    installation = read_options(InstallationOptions, namespace)
    use_quota_project(installation.project)
    running = update.find(installation.jobs(), read_options(JobOptions, namespace).job_name or STREAM_JOB)
    completed, flags = update.start_from(running, namespace, rest, words, installation.names.image)
    # The default of the launch is not taken for a choice: another GPU needs another machine.
    if completed.machine_type == _default_machine(running) and "machine_type" in running.launch:
        completed.machine_type = namespace.machine_type
    # What the job does without, the one that replaces it does not get by default.
    without = set() if update.ALL in namespace.reset else {"alert_topic"} - {*namespace.reset}
    return replace(read_request(name, completed, flags, without=without), running=running)


def _default_machine(running: RunningJob) -> str:
    try:
        return WorkerOptions(gpu=running.launch.get("gpu")).machine
    except OptionError:  # a GPU that is newer than the table of machines
        return ""


def check_fit(name: PipelineName, job: JobOptions, workers: WorkerOptions) -> None:
    """Refuses options that Dataflow would ignore, or refuse minutes later.

    Raises:
      OptionError: two options do not fit; the text names them.
    """
    if name == "batch" and job.update:
        raise OptionError("--update: expected a streaming job, got batch")
    if name == "batch" and workers.streaming_mode:
        raise OptionError("--streaming_mode: expected a streaming job, got batch")
    if workers.gpu and not job.image:
        raise OptionError(f"--gpu: expected {GPU_IMAGE}, got no --image")


def _temp_location(job: JobOptions, names: Names) -> str:
    return job.temp_location or f"{names.bucket_url}/temp"


def _option_of(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--")


def _default_flags(name: PipelineName, names: Names, rest: Sequence[str]) -> list[str]:
    """Makes the flags that follow from the names, except those that the user passed."""
    passed = {word.split("=", 1)[0] for word in rest}
    flags = []
    if "--model" not in passed:
        flags.append(f"--model={names.bucket_url}/model")
    if not passed & {"--output_dataset", "--output"}:
        flags.append(f"--output_dataset={names.dataset_name}")
    if name == "streaming":
        if not passed & {"--subscription", "--topic"}:
            flags.append(f"--subscription={names.subscription('transactions-pipeline')}")
        if "--alert_topic" not in passed:
            flags.append(f"--alert_topic={names.topic('alerts')}")
    return flags

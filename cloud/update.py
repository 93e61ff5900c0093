"""An update of a running job: it starts from the job's options, and shows what changes before it is sent."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.cloud import dataflow_v1beta3 as dataflow
from google.protobuf import json_format

from cloud import pipeline
from cloud.jobs import DATASET_LABEL, ENDING, PIPELINE_LABEL, JobError, Jobs
from cloud.resources.base import LABEL
from common.options import NO, OptionError, flags_of, option_values

if TYPE_CHECKING:
    from cloud.request import JobRequest

ALL: Final = "all"
"""For --reset, every option."""
_SOURCES: Final = frozenset({"subscription", "topic"})
"""Options of which a stream has one."""

_PRIVATE: Final = dataflow.WorkerIPAddressConfiguration.WORKER_IP_PRIVATE
_MODE: Final = dataflow.StreamingMode.STREAMING_MODE_AT_LEAST_ONCE
_AT_LEAST_ONCE: Final = "streaming_mode_at_least_once"
_ACCELERATOR: Final = re.compile(r"worker_accelerator=type:([^;]+);count:(\d+)")
# Beam and Dataflow add these by themselves.
_OWN_EXPERIMENTS: Final = {
    "beam_fn_api",
    "enable_prime",
    "enable_streaming_engine",
    "enable_windmill_service",
    "use_multiple_sdk_containers",
    "use_portable_job_submission",
    "use_runner_v2",
    "use_unified_worker",
}
LAUNCHED: Final = {
    *("project", "region", "runner", "streaming", "job_name", "job_record", "update"),
    *("transform_name_mapping", "enable_streaming_engine"),
    *("temp_location", "staging_location", "template_location"),
    *("dataflow_endpoint", "save_main_session", "setup_file", "requirements_file", "sdk_location"),
    *("sdk_container_image", "worker_harness_container_image", "service_account_email", "num_workers"),
    *("max_num_workers", "machine_type", "network", "subnetwork", "use_public_ips", "experiments"),
    *("dataflow_service_options", "labels"),
}
"""Options of Beam that a launch or the launcher of a template sets."""


@dataclass(frozen=True)
class RunningJob:
    """A job that runs, as it describes itself.

    Attributes:
      id: its id.
      name: its name.
      options: the pipeline's own options by their names; None for a job that does not say.
      steps: full names of its steps.
      launch: the options of the launch by their names, those that differ from Dataflow's defaults.
      beam: the options of Beam that its command line had.
      lists: options of Beam that have several values, without those that every launch sets.
    """

    id: str
    name: str
    options: dict[str, Any] | None
    steps: tuple[str, ...]
    launch: dict[str, Any]
    beam: dict[str, Any]
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find(jobs: Jobs, name: str) -> RunningJob:
    """Looks up the running job that an update replaces.

    Raises:
      JobError: there is none, or Dataflow refused.
    """
    place = f"--project={jobs.project} --region={jobs.region}"
    job = next((job for job in jobs.listing(active=True) if job.name == name), None)
    if job is None:
        raise JobError(
            f"--update: expected a running job {name} in {jobs.project}, {jobs.region}, got none: leave out "
            f"--update, or pass --job_name; see them with: anomaly launch list --active {place}"
        )
    if job.state in ENDING:
        raise JobError(
            f"--update: expected a running job, got {name}, which is {job.state}: wait for its end with "
            f"`anomaly launch status {name} {place} --wait`, then launch without --update"
        )
    return read(jobs.describe(job.id))


def read(job: dataflow.Job) -> RunningJob:
    """Reads what a job says of itself, whichever tool launched it."""
    from pipelines.record import OPTION, JobRecord  # Beam takes seconds to load

    environment = job.environment
    described = json_format.MessageToDict(type(environment).pb(environment).sdk_pipeline_options)
    beam = described.get("options", {})
    record = JobRecord.read(beam[OPTION]) if OPTION in beam else None
    experiments = {*environment.experiments, *beam.get("experiments", ())}
    services = {*environment.service_options, *beam.get("dataflow_service_options", ())}
    labels = [
        f"{key}={value}"
        for key, value in job.labels.items()
        if key not in (*LABEL, DATASET_LABEL, PIPELINE_LABEL) and not key.startswith("goog-")
    ]
    lists = {"experiments": experiments, "dataflow_service_options": services, "labels": labels}
    return RunningJob(
        id=job.id,
        name=job.name,
        options=record.options if record else None,
        steps=record.steps if record else (),
        # A template gets service options as experiments.
        launch=_launch(job, beam, experiments | services),
        beam=record.beam if record else {},
        lists={
            name: tuple(sorted(value for value in values if not _is_set_by_launch(value)))
            for name, values in lists.items()
        },
    )


def _launch(job: dataflow.Job, beam: Mapping[str, Any], settings: Collection[str]) -> dict[str, Any]:
    """Reads the options of the launch by the names of their flags."""
    environment, changed = job.environment, job.runtime_updatable_params
    pool = next(iter(environment.worker_pools), dataflow.WorkerPool())
    fewest = next((one.partition("=")[2] for one in settings if one.startswith("min_num_workers=")), "0")
    gpu = next((match for match in map(_ACCELERATOR.match, settings) if match), None)
    at_least_once = _AT_LEAST_ONCE in settings or environment.streaming_mode == _MODE
    values = {
        "service_account_email": environment.service_account_email or beam.get("service_account_email"),
        # `gcloud dataflow jobs update-options` changes both while a job runs.
        "max_num_workers": changed.max_num_workers
        or pool.autoscaling_settings.max_num_workers
        or int(beam.get("max_num_workers") or 0),
        "min_num_workers": changed.min_num_workers or int(fewest),
        "num_workers": int(beam.get("num_workers") or 0),
        "machine_type": beam.get("machine_type") or pool.machine_type,
        "network": beam.get("network") or pool.network,
        "subnetwork": beam.get("subnetwork") or pool.subnetwork,
        "no_use_public_ips": beam.get("use_public_ips") is False or pool.ip_configuration == _PRIVATE,
        # Dataflow's default is the other one, and a job need not name it.
        "streaming_mode": "at_least_once" if at_least_once else "exactly_once",
        "prime": "enable_prime" in settings,
        "gpu": f"{gpu[1]}:{gpu[2]}" if gpu else None,
        "image": beam.get("sdk_container_image"),  # Beam's own, which a job without one gets, is no choice
        "temp_location": _given_location(beam, "temp_location"),
        "staging_location": _given_location(beam, "staging_location"),
    }
    return {name: value for name, value in values.items() if value}


def _given_location(beam: Mapping[str, Any], name: str) -> str:
    """Reads a place for files without the directory of the job, JOB_NAME.TIME, that Beam adds to it."""
    return re.sub(rf"/{re.escape(beam.get('job_name', ''))}\.[0-9.]+$", "", beam.get(name, ""))


def _is_set_by_launch(setting: str) -> bool:
    """Returns whether an experiment or service option follows from an option of the launch, or from Beam."""
    return (
        setting in _OWN_EXPERIMENTS
        or setting == _AT_LEAST_ONCE
        or setting.startswith(("min_num_workers=", "worker_accelerator="))
    )


def start_from(
    running: RunningJob,
    namespace: argparse.Namespace,
    rest: Sequence[str],
    words: Sequence[str],
    own_image: str,
) -> tuple[argparse.Namespace, list[str]]:
    """Completes the command line of an update by the options that the running job has.

    Args:
      running: the job.
      namespace: options of the launch.
      rest: flags of the pipeline and of Beam.
      words: the whole command line: an option that it passes is not taken from the job.
      own_image: the installation's image without a tag. Its versions come with the template, so that an
        update is not held back at the job's; an image of another name is kept.

    Returns:
      Both, completed.

    Raises:
      JobError: the job does not say which options it has.
      OptionError: there is no option of that name to reset.
    """
    parser, beam_parser = pipeline.parsers("streaming")
    own = {action.dest: action.default for action in parser._actions}
    beams = {action.dest for action in beam_parser._actions}
    unknown = {*namespace.reset} - {ALL, *vars(namespace), *own, *beams}
    if unknown:
        raise OptionError(f"--reset: expected the name of an option, or {ALL}, got {min(unknown)!r}")
    if ALL in namespace.reset:
        return namespace, [*rest]
    if running.options is None:
        raise JobError(
            f"--update: expected a job that names its options, got {running.name}, which an earlier version "
            f"launched: pass all options that it needs, and --reset={ALL}"
        )
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    given = {flag.removeprefix(NO).removeprefix("--") for flag in flags} | {*namespace.reset}
    given |= {flag.removeprefix("--") for flag in flags}  # --no_use_public_ips is the name of an option
    if given & _SOURCES:
        given |= _SOURCES
    launch = {name: value for name, value in running.launch.items() if name not in given}
    if namespace.via == "flex" and re.match(rf"{re.escape(own_image)}[:@]", launch.get("image", "")):
        del launch["image"]
    kept = {
        name: value
        for name, value in running.options.items()
        if name in own and name not in given and value != own[name]
    }
    of_beam = _of_beam(running.beam, beam_parser) | running.lists
    of_beam = {name: value for name, value in of_beam.items() if name not in given}
    completed = argparse.Namespace(**{**vars(namespace), **launch})
    return completed, [*flags_of(kept), *_beam_flags(of_beam), *rest]


def _beam_flags(values: Mapping[str, Any]) -> list[str]:
    """Makes flags of Beam's options; a switch has no value."""
    flags = [f"--{name}" for name, value in values.items() if value is True]
    with_value = {name: value for name, value in values.items() if value is not True}
    return flags + flags_of(
        {name: json.dumps(value) if isinstance(value, dict) else value for name, value in with_value.items()}
    )


@dataclass(frozen=True)
class Change:
    """A difference between a running job and the one that replaces it."""

    option: str
    now: str
    after: str


def changes(running: RunningJob, request: JobRequest, image: str) -> list[Change]:
    """Lists the options that an update changes, those of the pipeline first.

    Args:
      running: the job.
      request: for the job that replaces it.
      image: of the new workers, or words for it.
    """
    command, workers = request.pipeline, request.workers
    options = {} if running.options is None else running.options
    after = {name: value for name, value in option_values(command.options).items() if value is not None}
    launch = {
        **option_values(workers),
        "service_account_email": request.account,
        "machine_type": workers.machine,
        "streaming_mode": request.streaming_mode,
        "temp_location": request.temp_location,
        "staging_location": request.staging_location,
        "image": image,
    }
    beams = pipeline.parsers(command.name)[1]
    parsed = vars(beams.parse_known_args(command.argv)[0])
    passed = _of_beam(parsed, beams) | {name: parsed[name] for name in running.lists}
    return [
        *_differences(options, after),
        *_differences(running.launch, launch),
        *_differences(_of_beam(running.beam, beams) | running.lists, passed),
    ]


def _of_beam(values: Mapping[str, Any], beams: argparse.ArgumentParser) -> dict[str, Any]:
    """Chooses the options of Beam that a person passed: those not at their default, nor set by a launch."""
    defaults = {action.dest: action.default for action in beams._actions}
    return {
        name: value
        for name, value in values.items()
        # A switch that is off and not so by default has a flag of another name, which only a launch sets.
        if name in defaults and name not in LAUNCHED and value not in (defaults[name], False)
    }


def _differences(now: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    names = sorted({*now, *after})
    return [
        Change(name, _shown(now.get(name)), _shown(after.get(name)))
        for name in names
        if _shown(now.get(name)) != _shown(after.get(name))
    ]


def _shown(value: Any) -> str:
    """A value for people."""
    if isinstance(value, list | tuple):
        return ", ".join(sorted(map(str, value))) or "none"
    return "none" if value is None or value == "" or value is False else str(value)


def step_changes(
    running: RunningJob, steps: Sequence[str], renamed: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Compares the graphs: the steps that go, and those that come.

    Of a step whose parts all go, the step alone is named.

    Args:
      running: the job.
      steps: full names of the steps that replace its.
      renamed: new names by old names, "" for a step that goes.
    """
    old = {renamed.get(step, step) for step in running.steps} - {""}
    gone, added = old - {*steps}, {*steps} - old
    return _outermost(gone), _outermost(added)


def _outermost(steps: Collection[str]) -> list[str]:
    return sorted(step for step in steps if step.rpartition("/")[0] not in steps)

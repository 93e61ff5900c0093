"""Launches the pipelines on Dataflow, and lists, updates, drains and cancels their jobs."""

from __future__ import annotations

import datetime as dt
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format

from cloud import direct, flex, pipeline, preflight, update
from cloud.checks import storage
from cloud.jobs import JobError, JobInfo, Jobs
from cloud.options import PlaceOptions
from cloud.pipeline import PIPELINES
from cloud.request import JobRequest, add_launch_options, read_update
from cloud.resources.base import Clients
from cloud.update import RunningJob
from common.command import Parser, command, confirm
from common.google import use_quota_project
from common.options import OptionError, add_options, option, read_options
from common.output import Format, add_format, print_rows

EXAMPLES: Final = """
  anomaly launch streaming --project my-project --region europe-west1 --batch_millis=50
  anomaly launch streaming --project my-project --region europe-west1 --update --max_num_workers=8
  anomaly launch batch --project my-project --via direct --wait \\
      --input_table=bigquery-public-data.ml_datasets.ulb_fraud_detection
  anomaly launch list --project my-project --region europe-west1
  anomaly launch drain transaction-anomaly-streaming --project my-project --region europe-west1

The pipeline's own flags follow the launch's; see `anomaly streaming --help`. --model, --subscription,
--alert_topic and --output_dataset default to the names that `anomaly resources create` uses.
"""


@dataclass(frozen=True, kw_only=True)
class FollowOptions:
    """The following of a job to its end."""

    wait: bool = option(False, action="store_true", help="follow the job to its end; Ctrl-C lets it run")
    poll_seconds: float = option(5.0, metavar="S", help="with --wait (default: %(default)s)")


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(FollowOptions):
    """The options of a launch that are not part of its request."""

    skip_preflight: bool = option(False, action="store_true", help="launch without checks")
    dry_run: bool = option(False, action="store_true", help="show what would be sent, and send nothing")
    yes: bool = option(False, action="store_true", help="with --update: do not ask")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """The choice of the jobs that are listed."""

    active: bool = option(False, action="store_true", help="only jobs that have not ended")
    all: bool = option(False, action="store_true", help="everybody's jobs in the project and region")


def _make_parser() -> Parser:
    parser = Parser("anomaly launch", __doc__, EXAMPLES)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    for name in PIPELINES:
        action: Any = actions.add_parser(name, help=f"launch the {name} pipeline", examples=EXAMPLES)
        add_launch_options(action, name)
        add_options(action, LaunchOptions, "this command")
        add_format(action)
    for verb, text in (
        ("list", "show the jobs that this launched"),
        ("status", "show a job and follow it with --wait"),
        ("drain", "end a streaming job after what it has read"),
        ("cancel", "end a job at once; the next job reads again what it had in progress"),
    ):
        action = actions.add_parser(verb, help=text, description=text, examples=EXAMPLES)
        if verb == "list":
            add_options(action, ListOptions)
        else:
            action.add_argument("job", metavar="JOB", help="name or id")
            add_options(action, FollowOptions)
        add_options(action, PlaceOptions)
        add_format(action)
    return parser


def _row(job: JobInfo, client: Jobs) -> dict[str, Any]:
    return {
        "state": job.state,
        "type": job.kind,
        "created": job.created.astimezone(dt.UTC) if job.created else None,
        "name": job.name,
        "id": job.id,
        "url": client.url(job.id),
    }


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _follow(client: Jobs, job_id: str) -> int:
    """Follows a job to its end; returns the exit status."""
    try:
        job = client.wait(job_id, _print_progress)
    except KeyboardInterrupt:
        _print_progress(f"\nThe job goes on: {client.url(job_id)}")
        return 130
    return 0 if job.state in ("DONE", "DRAINED", "UPDATED", "CANCELLED") else 1


def show(request: JobRequest) -> str:
    """Formats the launch request of a template, or the command line of a direct submission."""
    if request.job.via == "flex":
        parameter = flex.launch_parameter(request)
        return json_format.MessageToJson(type(parameter).pb(parameter), sort_keys=True, indent=1)
    return shlex.join(["python", "-m", f"pipelines.{request.pipeline.name}", *direct.argv(request)])


def _show_update(request: JobRequest, running: RunningJob) -> str:
    """Formats what an update changes: the options, and the graph as this version builds it."""
    changes = update.changes(running, request, _image(request))
    lines = [f"Update of {running.name} ({running.id}). Options that change:"]
    lines += [f"  --{change.option}: {change.now} -> {change.after}" for change in changes] or ["  none"]
    if not running.steps:
        return "\n".join([*lines, "The job does not name its steps: the graphs cannot be compared."])
    try:
        steps = pipeline.steps(request.pipeline, request.temp_location)
    except OptionError as error:
        return "\n".join([*lines, f"The graphs cannot be compared: {error}"])
    gone, added = update.step_changes(running, steps, request.job.renamed_steps)
    if not (gone or added):
        return "\n".join([*lines, "The graph has the same steps."])
    lines.append("The graph differs. Dataflow refuses an update that loses a step with state, unless")
    lines.append("--transform_name_mapping=OLD=NEW names the step that takes its place:")
    return "\n".join([*lines, *(f"  - {step}" for step in gone), *(f"  + {step}" for step in added)])


def _image(request: JobRequest) -> str:
    """The image that the workers of a request get, or words for it."""
    if request.job.image:
        return request.job.image
    if request.job.via == "direct":
        return "Beam's, and this checkout as a package"
    clients = Clients(request.installation.project)
    return storage.template_image(clients, request.template) or f"that of {request.template}"


def launch(request: JobRequest, options: LaunchOptions, form: Format) -> int:
    """Checks, launches and, with --wait, follows a job; returns the exit status.

    Raises:
      JobError: Dataflow refused.
    """
    client = request.installation.jobs(options.poll_seconds)
    if request.running:
        _print_progress(_show_update(request, request.running))
    if options.dry_run:
        print(show(request))
        return 0
    use_quota_project(request.installation.project)
    if not options.skip_preflight:
        findings = preflight.run_checks(request, progress=sys.stderr.isatty())
        problems = preflight.text(finding for finding in findings if finding.status != "ok")
        if problems:
            _print_progress(problems)
        if preflight.failed(findings):
            raise JobError("not launched: fix the checks that failed, or pass --skip_preflight")
    if request.running and not options.yes and not confirm(f"Update {request.job_name}?"):
        _print_progress("Nothing was updated.")
        return 1
    is_flex = request.job.via == "flex"
    job_id = client.launch(flex.launch_parameter(request)).id if is_flex else direct.submit(request)
    print_rows([{"name": request.job_name, "id": job_id, "url": client.url(job_id)}], form)
    return _follow(client, job_id) if options.wait else 0


def _act(action: str, name: str, client: Jobs, options: FollowOptions, form: Format) -> int:
    """Shows, drains or cancels a job; returns the exit status."""
    job = client.find(name)
    if action == "drain" and job.kind != "streaming":
        raise JobError(f"job {job.name}: expected a streaming job to drain, got a batch job: cancel it")
    if action == "status":
        print_rows([_row(job, client)], form)
    else:
        client.request_state(job.id, action)
        _print_progress(f"Asked Dataflow to {action} {job.name}: {client.url(job.id)}")
    return _follow(client, job.id) if options.wait else 0


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 1 on an error, a failed check or a failed job."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    words = sys.argv[1:] if argv is None else argv
    args, rest = _make_parser().parse_known_args(words)
    if args.action in PIPELINES:
        request = read_update(args.action, args, rest, words)
        return launch(request, read_options(LaunchOptions, args), args.format)
    if rest:
        raise OptionError(f"{rest[0]}: expected an option of `anomaly launch {args.action}`")
    place = read_options(PlaceOptions, args)
    use_quota_project(place.project)
    if args.action == "list":
        client, options = place.jobs(), read_options(ListOptions, args)
        jobs = client.listing(options.active) if options.all else client.mine(options.active)
        print_rows([_row(job, client) for job in jobs], args.format, "No jobs.")
        return 0
    follow = read_options(FollowOptions, args)
    return _act(args.action, args.job, place.jobs(follow.poll_seconds), follow, args.format)

"""Launches the pipelines on Dataflow, and lists, updates, drains and cancels their jobs."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import json_format

from cloud import direct, flex, preflight
from cloud.jobs import JobError, JobInfo, Jobs, add_endpoint_argument
from cloud.request import PIPELINES, JobRequest, add_arguments, request
from common.command import Parser

EXAMPLE: Final = """examples:
  python -m cloud.launch streaming --project my-project --region europe-west1
  python -m cloud.launch streaming --project my-project --update --max_num_workers=8
  python -m cloud.launch batch --project my-project --via direct --wait \\
      --input_table=bigquery-public-data.ml_datasets.ulb_fraud_detection
  python -m cloud.launch list --project my-project
  python -m cloud.launch drain transaction-anomaly-streaming --project my-project

The pipeline's own flags follow the launch's; see `python -m pipelines.streaming --help`. --model,
--subscription, --alert_topic and --output_dataset default to what `cloud.resources create` makes.
"""


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    found = argparse.ArgumentParser(
        prog="python -m cloud.launch",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions: Any = found.add_subparsers(dest="action", required=True, parser_class=Parser)
    for name in PIPELINES:
        action = actions.add_parser(name, help=f"launch the {name} pipeline", examples=EXAMPLE)
        add_arguments(action)
        group = action.add_argument_group("this command")
        group.add_argument(
            "--skip-preflight", "--skip_preflight", action="store_true", help="launch without checks"
        )
        group.add_argument(
            "--dry-run", "--dry_run", action="store_true", help="show what would be sent, and send nothing"
        )
        group.add_argument(
            "--wait", action="store_true", help="follow the job to its end; Ctrl-C lets it run"
        )
        _add_common(group)
    listing = actions.add_parser("list", help="show the jobs that this launched")
    listing.add_argument("--active", action="store_true", help="those that have not ended")
    listing.add_argument("--all", action="store_true", help="everybody's jobs in the project and region")
    _add_place(listing)
    for name, text in (
        ("drain", "end a streaming job after what it has read"),
        ("cancel", "end a job at once; what is in flight is read again by the next one"),
        ("status", "show a job and follow it with --wait"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("job", metavar="JOB", help="name or id")
        action.add_argument("--wait", action="store_true", help="follow the job to its end")
        _add_place(action)
    return found


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", required=True, help="Google Cloud project id. Example: my-project")
    parser.add_argument("--region", default="us-central1", help="default: %(default)s")
    add_endpoint_argument(parser)
    _add_common(parser)


def _add_common(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--poll_seconds", type=float, default=5.0, metavar="S", help="with --wait (default: %(default)s)"
    )


def table(found: Sequence[JobInfo]) -> str:
    """Jobs for people."""
    if not found:
        return "No jobs."
    rows = [("STATE", "TYPE", "CREATED", "NAME", "ID")]
    for job in found:
        moment = f"{job.created:%Y-%m-%d %H:%M}" if job.created else "-"
        rows.append((job.state, job.kind, moment, job.name, job.id))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _dict(job: JobInfo, client: Jobs) -> dict[str, Any]:
    created = job.created.astimezone(dt.UTC).isoformat() if job.created else None
    return {
        "id": job.id,
        "name": job.name,
        "type": job.kind,
        "state": job.state,
        "created": created,
        "labels": job.labels,
        "url": client.url(job.id),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _follow(client: Jobs, job_id: str, form: str) -> int:
    try:
        job = client.wait(job_id, _say)
    except KeyboardInterrupt:
        _say(f"\nThe job goes on: {client.url(job_id)}")
        return 130
    if form == "json":
        print(json.dumps(_dict(job, client), indent=1))
    return 0 if job.state in ("DONE", "DRAINED", "UPDATED", "CANCELLED") else 1


def show(job: JobRequest) -> str:
    """What would be sent: the launch request of a template, or the command line of a direct submission."""
    if job.args.via == "flex":
        message = type(flex.launch_parameter(job)).pb(flex.launch_parameter(job))
        return json_format.MessageToJson(message, sort_keys=True, indent=1)
    return shlex.join(["python", "-m", f"pipelines.{job.pipeline}", *direct.argv(job)])


def launch(job: JobRequest, client: Jobs) -> int:
    """Checks, launches and, with --wait, follows a job; returns the exit code.

    Raises:
      JobError: Dataflow refused.
    """
    args = job.args
    if args.dry_run:
        print(show(job))
        return 0
    if not args.skip_preflight:
        findings = preflight.preflight(job, progress=sys.stderr.isatty())
        said = preflight.text(findings, verbose=False)
        if said:
            _say(said)
        if preflight.failed(findings):
            _say("Not launched. Mend what failed, or give --skip-preflight.")
            return 1
    job_id = client.launch(flex.launch_parameter(job)).id if args.via == "flex" else direct.submit(job)
    if args.format == "json":
        print(json.dumps({"id": job_id, "name": args.job_name, "url": client.url(job_id)}, indent=1))
    else:
        print(f"Job {args.job_name} ({job_id})\n{client.url(job_id)}")
    return _follow(client, job_id, "table") if args.wait else 0


def _list(args: argparse.Namespace, client: Jobs) -> int:
    found = client.listing(args.active) if args.all else client.mine(args.active)
    print(
        json.dumps([_dict(job, client) for job in found], indent=1) if args.format == "json" else table(found)
    )
    return 0


def _act(args: argparse.Namespace, client: Jobs) -> int:
    job = client.find(args.job)
    if args.action in ("drain", "cancel"):
        if args.action == "drain" and job.kind != "streaming":
            raise JobError(f"{job.name} is a batch job, which cannot be drained; cancel it")
        client.request_state(job.id, args.action)
        _say(f"Asked Dataflow to {args.action} {job.name}: {client.url(job.id)}")
    elif args.format == "table":
        print(f"{table([job])}\n{client.url(job.id)}")
    elif not args.wait:
        print(json.dumps(_dict(job, client), indent=1))
    return _follow(client, job.id, args.format) if args.wait else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 on an error, a failed check or a failed job."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    found = parser()
    args, rest = found.parse_known_args(argv)
    if rest and args.action not in PIPELINES:
        found.error(f"unknown option {rest[0]}")
    try:
        client = Jobs(args.project, args.region, args.dataflow_endpoint, args.poll_seconds)
        if args.action in PIPELINES:
            return launch(request(found, args.action, args, rest), client)
        return _list(args, client) if args.action == "list" else _act(args, client)
    except JobError as error:
        found.exit(1, f"{found.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())

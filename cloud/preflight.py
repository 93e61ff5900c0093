"""Checks that everything a job needs is there before it is launched, and says how to mend what is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Final

from tqdm import tqdm

from cloud import caller, checks, workers
from cloud.look import Finding
from cloud.request import PIPELINES, JobRequest, add_arguments, request
from cloud.resources.base import Clients
from common.command import command
from pipelines import options
from transforms.clients import BigQueryEndpoints

EXAMPLE: Final = """examples:
  python -m cloud.preflight streaming --project my-project --region europe-west1
  python -m cloud.preflight batch --project my-project --input=gs://my-bucket/2026-03-*.parquet

Takes the flags of `python -m cloud.launch` and of the pipeline. Ends with 1 when something failed.
"""

Check = Callable[[], list[Finding]]


def planned(job: JobRequest, clients: Clients) -> list[Check]:
    """The checks that this job needs, none run yet."""
    args = job.pipeline_args
    found: list[Check] = [
        _bound(checks.check_project, job.args.project),
        _bound(caller.check_job_name, job),
        _bound(caller.check_act_as, job),
    ]
    for flag in ("temp_location", "staging_location"):
        found.append(
            _bound(checks.check_location, clients, getattr(job.args, flag), f"--{flag}", job.args.region)
        )
    if job.args.via == "flex":
        given = [word.removeprefix("--").removeprefix("no-").split("=", 1)[0] for word in job.pipeline_argv]
        flags = [name for name in given if name in vars(args)]
        found.append(_bound(checks.check_template, clients, job.args.template, flags))
    found.append(_bound(checks.check_model, job.args.project, args, job.names.bucket_url))
    if job.pipeline == "streaming":
        if args.subscription:
            found.append(
                _bound(checks.check_subscription, clients, args.subscription, job.names.topic("transactions"))
            )
        for topic in filter(None, (args.topic, args.alert_topic)):
            found.append(_bound(checks.check_topic, clients, topic))
    else:
        if args.input:
            found.append(_bound(checks.check_files, job.args.project, args.input, "--input"))
        if args.input_table:
            found.append(_bound(checks.check_input_table, clients, args.input_table))
        if args.input_query:
            found.append(_bound(checks.check_input_query, clients, args.input_query))
    if args.output:
        found.append(_bound(checks.check_location, clients, args.output, "--output", job.args.region))
    if args.output_dataset:
        full = args.output_detail == "full"
        where = (args.output_dataset, full, args.create_tables, job.args.region)
        found.append(_bound(checks.check_dataset, clients, *where))
    scorer = getattr(args, "scorer", "pytorch")
    if scorer == "vertex":
        found.append(_bound(checks.check_vertex, args.vertex_endpoint, args.vertex_api_endpoint))
    if scorer == "torchserve":
        found.append(_bound(checks.check_torchserve, args.torchserve_url))
    found.append(_bound(workers.check_worker, clients, job))
    return found


def _bound(function: Callable[..., list[Finding]], *args: object) -> Check:
    return lambda: function(*args)


def preflight(job: JobRequest, progress: bool = True) -> list[Finding]:
    """Runs every check, also after one that failed, so that one run tells all.

    Args:
      job: what is to be launched.
      progress: whether to show a bar on stderr.
    """
    args = job.pipeline_args
    endpoints = BigQueryEndpoints(args.bigquery_endpoint, args.bigquery_storage_endpoint)
    clients = Clients(job.args.project, endpoints)
    findings: list[Finding] = []
    try:
        bar = tqdm(planned(job, clients), "Preflight", unit="check", disable=not progress, leave=False)
        for check in bar:
            findings += check()
    finally:
        clients.close()
    return findings


def failed(findings: Sequence[Finding]) -> bool:
    """Whether a launch would fail."""
    return any(finding.status == "failed" for finding in findings)


def text(findings: Sequence[Finding], verbose: bool = True) -> str:
    """The findings for people; without `verbose` those alone that are not ok."""
    lines = []
    for finding in findings:
        if finding.status == "ok" and not verbose:
            continue
        lines.append(
            f"{finding.status:6}  {finding.what}" + (f": {finding.problem}" if finding.problem else "")
        )
        if finding.remedy:
            lines.append(f"        {finding.remedy}")
    return "\n".join(lines)


def parser() -> options.OptionsParser:
    """The options of this command."""
    found = options.OptionsParser(prog="python -m cloud.preflight", description=__doc__, epilog=EXAMPLE)
    found.add_argument("pipeline", choices=PIPELINES)
    add_arguments(found)
    found.add_argument("--format", choices=("table", "json"), default="table")
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 when something failed."""
    found = parser()
    args, rest = found.parse_known_args(argv)
    job: JobRequest = request(found, args.pipeline, args, rest)
    findings = preflight(job, progress=sys.stderr.isatty())
    if args.format == "json":
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        print(text(findings))
    return 1 if failed(findings) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks that everything a job needs is there before it is launched, and says how to mend what is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from tqdm import tqdm

from cloud import caller, checks, workers
from cloud.look import Finding
from cloud.request import PIPELINES, JobRequest, add_arguments, module, request
from cloud.resources.base import Clients
from common.command import Parser

EXAMPLE: Final = """
  python -m cloud.preflight streaming --project my-project --region europe-west1
  python -m cloud.preflight batch --project my-project --input=gs://my-bucket/2026-03-*.parquet

Takes the flags of `python -m cloud.launch` and of the pipeline. Ends with 1 when something failed.
"""

Check = Callable[[], list[Finding]]


def planned(job: JobRequest, clients: Clients) -> list[Check]:
    """The checks that this job needs, none run yet."""
    own = job.pipeline_options
    source: Any = own.source
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
        declared = module(job.pipeline).parser()._option_string_actions
        given = [word.removeprefix("--").removeprefix("no-").split("=", 1)[0] for word in job.pipeline_argv]
        flags = [name for name in given if f"--{name}" in declared]
        found.append(_bound(checks.check_template, clients, job.args.template, flags))
    found.append(_bound(checks.check_model, job.args.project, own.detection, job.names.bucket_url))
    if job.pipeline == "streaming":
        if source.subscription:
            topic = job.names.topic("transactions")
            found.append(_bound(checks.check_subscription, clients, source.subscription, topic))
        for topic in filter(None, (source.topic, getattr(own, "alert_topic", None))):
            found.append(_bound(checks.check_topic, clients, topic))
    else:
        if source.input:
            found.append(_bound(checks.check_files, job.args.project, source.input, "--input"))
        if source.input_table:
            found.append(_bound(checks.check_input_table, clients, source.input_table))
        if source.input_query:
            found.append(_bound(checks.check_input_query, clients, source.input_query))
        output = getattr(own, "files").output  # noqa: B009
        if output:
            found.append(_bound(checks.check_location, clients, output, "--output", job.args.region))
    if own.tables.output_dataset:
        full = own.detection.output_detail == "full"
        where = (own.tables.output_dataset, full, own.tables.create_tables, job.args.region)
        found.append(_bound(checks.check_dataset, clients, *where))
    scorer = own.scorer
    if scorer.scorer == "vertex":
        found.append(_bound(checks.check_vertex, scorer.vertex_endpoint, scorer.vertex_api_endpoint))
    if scorer.scorer == "torchserve":
        found.append(_bound(checks.check_torchserve, scorer.torchserve_url))
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
    clients = Clients(job.args.project, job.pipeline_options.endpoints.endpoints())
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


def parser() -> Parser:
    """The options of this command."""
    found = Parser("anomaly preflight", __doc__, EXAMPLE)
    found.add_argument("pipeline", choices=PIPELINES)
    add_arguments(found)
    found.add_argument("--format", choices=("table", "json"), default="table")
    return found


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

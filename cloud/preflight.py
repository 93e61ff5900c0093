"""Checks that everything a job needs exists before it is launched, and names the fix of each failure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from rich.console import Console
from rich.progress import track

from cloud import flex
from cloud.checks import permissions, places, services, storage, workers
from cloud.checks.finding import Finding
from cloud.pipeline import PIPELINES
from cloud.request import JobRequest, add_launch_options, read_update
from cloud.resources.base import Clients
from common.command import Parser, command
from common.google import use_quota_project
from common.output import add_format, print_rows

EXAMPLES: Final = """
  anomaly preflight streaming --project my-project --region europe-west1
  anomaly preflight batch --project my-project --input=gs://my-bucket/2026-03-*.parquet

Takes the flags of `anomaly launch` and of the pipeline. The exit status is 1 when a check failed.
"""

Check = Callable[[], list[Finding]]


def plan_checks(request: JobRequest, clients: Clients) -> Iterator[Check]:
    """Lists the checks that this job needs; none has run yet."""
    project, region = request.installation.project, request.installation.region
    command = request.pipeline

    def location(uri: str, flag: str) -> Check:
        return partial(storage.check_location, clients, uri, flag, region)

    yield partial(permissions.check_project, project)
    yield partial(services.check_job_name, request)
    yield partial(permissions.check_act_as, request)
    yield location(request.temp_location, "--temp_location")
    yield location(request.staging_location, "--staging_location")
    yield partial(places.check_regions, clients, request)
    yield partial(places.check_machine, request)
    yield partial(places.check_network, request)
    if request.job.via == "flex":
        parameters = flex.launch_parameter(request).parameters
        yield partial(storage.check_template, clients, request.template, tuple(parameters))
    yield partial(storage.check_model, project, command, request.names.bucket_url)
    if command.shadow_model:
        shadow = command.shadow_model
        yield partial(storage.check_model, project, command, request.names.bucket_url, shadow)
    if command.history:
        yield partial(storage.check_history, clients, command, command.history)
    if command.subscription:
        topic = request.names.topic("transactions")
        yield partial(services.check_subscription, clients, command.subscription, topic)
    for name in filter(None, (command.topic, command.alert_topic, command.scores_topic)):
        yield partial(services.check_topic, clients, name)
    if command.input:
        yield partial(storage.check_files, clients, command.input, "--input")
    if command.input_table:
        yield partial(services.check_input_table, clients, command.input_table, command)
    if command.input_query:
        yield partial(services.check_input_query, clients, command.input_query)
    if command.output:
        yield location(command.output, "--output")
    if command.output_dataset:
        is_full = command.output_detail == "full"
        by_caller = request.job.via == "direct"
        options = (command.output_dataset, is_full, command.create_tables, region, by_caller)
        yield partial(services.check_dataset, clients, *options)
    if command.scorer == "vertex" and command.vertex_endpoint:
        yield partial(services.check_vertex, command.vertex_endpoint, command.vertex_api_endpoint)
    if command.scorer == "torchserve" and command.torchserve_url:
        yield partial(services.check_torchserve, command.torchserve_url)
    yield partial(workers.check_worker, clients, request)


def run_checks(request: JobRequest, progress: bool = True) -> list[Finding]:
    """Runs every check, also after one that failed, so that one run finds all problems.

    Args:
      request: the job to be launched.
      progress: whether to show a bar on stderr.
    """
    use_quota_project(request.installation.project)
    clients = Clients(request.installation.project, request.pipeline.bigquery)
    try:
        bar = track(
            list(plan_checks(request, clients)),
            "Preflight",
            console=Console(stderr=True),
            transient=True,
            disable=not progress,
        )
        return [finding for check in bar for finding in check()]
    finally:
        clients.close()


def failed(findings: Iterable[Finding]) -> bool:
    """Returns whether a launch would fail."""
    return any(finding.status == "failed" for finding in findings)


def text(findings: Iterable[Finding]) -> str:
    """Formats findings for people: a line for each, and below it the command that fixes it."""
    lines = []
    for finding in findings:
        problem = f": {finding.problem}" if finding.problem else ""
        lines.append(f"{finding.status:6}  {finding.subject}{problem}")
        if finding.remedy:
            lines.append(f"        {finding.remedy}")
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 1 when a check failed."""
    parser = Parser("anomaly preflight", __doc__, EXAMPLES)
    parser.add_argument("pipeline", choices=PIPELINES)
    add_launch_options(parser)
    add_format(parser)
    words = sys.argv[1:] if argv is None else argv
    args, rest = parser.parse_known_args(words)
    request = read_update(args.pipeline, args, rest, words)
    findings = run_checks(request, progress=sys.stderr.isatty())
    if args.format == "table":
        print(text(findings))  # commands to copy do not fit into a column
    else:
        keys = ("status", "subject", "problem", "remedy")
        print_rows([{key: getattr(finding, key) for key in keys} for finding in findings], args.format)
    return 1 if failed(findings) else 0

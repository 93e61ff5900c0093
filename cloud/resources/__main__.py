"""Creates, compares and deletes the resources that the product needs in a Google Cloud project."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cloud.jobs import JobError, JobInfo, Jobs
from cloud.monitoring.options import MonitoringOptions
from cloud.options import InstallationOptions
from cloud.resources.accounts import Apis
from cloud.resources.base import MISSING, Clients, Resource, explained
from cloud.resources.changes import Change, create, delete, inspect, inspect_all
from cloud.resources.declared import Names, declare, declare_monitoring
from cloud.resources.gcloud import Gcloud
from cloud.resources.monitoring import NotificationChannel
from cloud.resources.storage import Bucket
from common.clients import BigQueryEndpoints, EndpointOptions
from common.command import CommandError, Parser, command, confirm
from common.google import explain, remedy, use_quota_project
from common.names import KMS_KEY
from common.options import OptionError, add_options, group, option, read_options
from common.output import Format, add_format, print_rows

EXAMPLES: Final = """
  anomaly resources create --project my-project --region europe-west1
  anomaly resources status --project my-project --region europe-west1 --format json
  anomaly resources delete --project my-project --region europe-west1 --keep_tables
  anomaly resources create --project my-project --region europe-west1 --monitoring \\
    --notify projects/my-project/notificationChannels/1234567890

On this machine, after `anomaly local up` and the exports that it prints:
  anomaly resources create --project local-project --emulators
"""

_CANCEL_SECONDS: Final = 900.0
"""A streaming job takes minutes to end; one that takes longer needs somebody to look at it."""


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(InstallationOptions):
    """The options of this command."""

    dataset_location: str = option("", metavar="LOCATION", help="such as EU (default: the region)")
    vertex: bool = option(False, action="store_true", help="also allow calls of Vertex AI endpoints")
    scores_topic: bool = option(
        False,
        action="store_true",
        help="also a topic named scores, with roles, for --scores_topic of the stream; `delete` looks for it "
        "in any case",
    )
    kms_key: str | None = option(
        None,
        type=KMS_KEY,
        metavar="KEY",
        help="Cloud KMS key that encrypts bucket, repository, topics and dataset, in their region. Example: "
        "projects/my-keys/locations/us-central1/keyRings/data/cryptoKeys/anomaly",
    )
    full: bool = option(
        False,
        action="store_true",
        help="scores table with every output of the model (--output_detail=full)",
    )
    dry_run: bool = option(False, action="store_true", help="show what would be done, change nothing")
    print_gcloud: bool = option(
        False,
        action="store_true",
        help="print the gcloud commands for APIs, repository, accounts and roles, for an administrator to "
        "run; with --dry_run nothing else is made or deleted",
    )
    emulators: bool = option(
        False,
        action="store_true",
        help="on the local stack that the environment names, without APIs, accounts, roles, repository and "
        "bucket, which it does not have",
    )
    keep_tables: bool = option(False, action="store_true", help="delete: keep the dataset and its tables")
    yes: bool = option(False, action="store_true", help="delete: do not ask")
    bigquery: EndpointOptions = group()
    monitor: MonitoringOptions = group("monitoring")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.emulators and self.monitor.monitoring:
            raise OptionError(
                "--monitoring: expected a Google project, got --emulators: the local stack has no monitoring"
            )
        if self.emulators and not (self.endpoints.rest and os.environ.get("PUBSUB_EMULATOR_HOST")):
            raise OptionError(
                "--emulators: expected PUBSUB_EMULATOR_HOST and BIGQUERY_EMULATOR_HOST in the environment: "
                "start the local stack with `anomaly local up` and run the exports that it prints"
            )

    @property
    def endpoints(self) -> BigQueryEndpoints:
        """The addresses of BigQuery; on the local stack, the environment names them."""
        options = self.bigquery.with_environment(os.environ) if self.emulators else self.bigquery
        return options.endpoints()

    @property
    def names(self) -> Names:
        """The names of the resources."""
        names = super().names
        return replace(
            names,
            dataset_location=self.dataset_location,
            vertex=self.vertex,
            scores_topic=self.scores_topic,
            full=self.full,
            kms_key=self.kms_key or "",
        )


def report(changes: Sequence[Change], form: Format) -> None:
    """Prints a row for each resource."""
    rows: list[dict[str, Any]] = []
    for change in changes:
        lines = [change.reason] if change.reason else change.state.lines
        rows.append(
            {
                "kind": change.resource.kind,
                "name": change.resource.title,
                "status": change.state.status,
                "done": change.action,
                "details": lines if form == "json" else " ".join("; ".join(lines).split()),
            }
        )
    print_rows(rows, form)


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _delete(options: ResourceOptions, resources: Sequence[Resource], clients: Clients, form: Format) -> int:
    # APIs stay enabled: other work in the project may need them. Channels belong to whoever made them.
    kept = (Apis, NotificationChannel)
    doomed = [r for r in resources if not (isinstance(r, kept) or (options.keep_tables and r.data))]
    is_local = options.emulators and not options.endpoint
    running = [] if is_local else _jobs_in_the_way(options, doomed, clients)
    _print_progress(f"This deletes, in project {options.project}, what this command made:")
    for resource in doomed:
        _print_progress(f"  {resource.kind} {resource.title}")
    for job in running:
        _print_progress(f"  and cancels job {job.name} ({job.id}, {job.location})")
    if not options.dry_run and not options.yes and not confirm("Delete all of this?"):
        _print_progress("Nothing was deleted.")
        return 1
    if running and not options.dry_run:
        _cancel(running, options.jobs())
    changes = delete(doomed, clients, options.dry_run)
    report(changes, form)
    refused = [change.reason for change in changes if change.action == "not deleted"]
    for reason in refused:
        _print_progress(f"Not deleted: {reason}")
    return 1 if refused else 0


def _jobs_in_the_way(options: ResourceOptions, doomed: Sequence[Resource], clients: Clients) -> list[JobInfo]:
    """Lists the active jobs of all regions that read or write a resource to be deleted."""
    names = options.names
    bucket, is_ours = names.bucket_url.removeprefix("gs://"), False
    for resource in doomed:
        if isinstance(resource, Bucket):  # a bucket that somebody else made stays, and so do the jobs on it
            with explained(resource):
                is_ours = resource.inspect(clients) != MISSING and resource.owned(clients)
    return [
        job
        for job in options.jobs().active()
        if job.uses(
            names.project,
            names.dataset,
            names.prefix,
            bucket if is_ours or job.ours else "",
            names.account,
        )
    ]


def _cancel(running: Sequence[JobInfo], client: Jobs) -> None:
    """Cancels jobs and waits until they have ended."""
    regions = {job.location: client.at(job.location) for job in running}
    for job in running:
        regions[job.location].request_state(job.id, "cancel")
    for job in running:
        _print_progress(f"Waiting for job {job.name} to end ...")
        try:
            regions[job.location].wait(
                job.id, lambda line: _print_progress(f"  {line}"), timeout=_CANCEL_SECONDS
            )
        except JobError as error:
            raise JobError(
                f"{error}. Nothing was deleted: run this again when the job {job.name} has ended"
            ) from error


def _left_over(resources: Sequence[Resource], flag: str, clients: Clients) -> list[Resource]:
    """Lists those of a flag's resources that an earlier run has made, as far as the caller may see."""
    made, unseen = [], {}
    for resource in resources:
        state = inspect(resource, clients)
        if state.error:
            unseen[resource.kind] = state.error
        elif state != MISSING:
            made.append(resource)
    for error in unseen.values():
        _print_progress(f"Not looked at, as {flag} is not passed: {error}")
    return made


def _declared(names: Names, on_emulators: bool) -> list[Resource]:
    return [resource for resource in declare(names) if resource.emulated or not on_emulators]


def run(action: str, options: ResourceOptions, form: Format) -> int:
    """Runs "create", "status" or "delete"; returns the exit status."""
    signed_out = None if options.emulators else use_quota_project(options.project)
    if action == "status" and signed_out:
        # Each resource would look again: 12 s where a firewall drops what goes to the metadata server.
        problem = explain(signed_out)
        step = remedy(problem, options.project)
        raise CommandError(f"no resource can be looked at: {str(problem).rstrip('.')}. To fix it: {step}")
    clients = Clients(
        options.project, options.endpoints, Gcloud(print_only=options.print_gcloud), options.emulators
    )
    resources = _declared(options.names, options.emulators)
    monitoring = declare_monitoring(options.names, options.monitor)
    try:
        if action == "delete" and not options.scores_topic:
            all_topics = _declared(replace(options.names, scores_topic=True), options.emulators)
            resources += _left_over([r for r in all_topics if r not in resources], "--scores_topic", clients)
        if options.monitor.monitoring:
            resources += monitoring
        elif action == "delete" and not options.emulators:
            resources += _left_over(monitoring, "--monitoring", clients)
        if action == "delete":
            return _delete(options, resources, clients, form)
        if action == "create":
            if options.monitor.monitoring and not options.monitor.notify:
                _print_progress("Without --notify a new alert policy tells nobody: it opens incidents alone.")
            report(create(resources, clients, options.dry_run), form)
            return 0
        states = inspect_all(resources, clients)
        errors = [state.error for state in states if state.error]
        # Without credentials, for example: each has the same reason.
        if errors and len(errors) == len(states):
            raise CommandError(
                f"none of the {len(states)} resources can be looked at; the first: {errors[0]}"
            )
        report([Change(resource, state) for resource, state in zip(resources, states, strict=True)], form)
        return 0 if all(state.status == "ok" for state in states) else 1
    finally:
        clients.close()


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status of `status` is 1 where something differs."""
    parser = Parser("anomaly resources", __doc__, EXAMPLES)
    parser.add_argument("action", choices=("create", "status", "delete"))
    add_options(parser, ResourceOptions)
    add_format(parser)
    args = parser.parse_args(argv)
    return run(args.action, read_options(ResourceOptions, args), args.format)

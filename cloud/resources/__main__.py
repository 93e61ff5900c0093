"""Creates, compares and deletes what the product needs in a Google Cloud project."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

from cloud import jobs
from cloud.resources.accounts import Apis
from cloud.resources.base import MISSING, Clients, Resource, ResourceError, explained
from cloud.resources.changes import STAYS, Done, create, delete, inspect_all
from cloud.resources.declared import Names, declare
from cloud.resources.gcloud import Gcloud, GcloudError
from cloud.resources.storage import Bucket
from common.options import add_options
from transforms import clients as endpoints

EXAMPLE: Final = """examples:
  python -m cloud.resources create --project my-project --region europe-west1
  python -m cloud.resources status --project my-project --region europe-west1 --format json
  python -m cloud.resources delete --project my-project --region europe-west1 --keep-tables

On this machine, after `python -m local up` and the exports that it prints:
  python -m cloud.resources create --project local-project --emulators
"""

_CANCEL_SECONDS: Final = 900.0
"""A streaming job takes minutes to end; one that takes longer needs somebody to look at it."""

_MARKS: Final = {"ok": "ok", "missing": "missing", "drift": "differs", "unknown": "unknown"}


def add_name_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags from which `names` makes Names."""
    parser.add_argument("--project", required=True, help="Google Cloud project id. Example: my-project")
    parser.add_argument("--region", default="us-central1", help="default: %(default)s")
    parser.add_argument(
        "--bucket", default="", help="bucket without gs:// (default: PREFIX + PROJECT-anomaly)"
    )
    parser.add_argument("--dataset", default="anomaly", help="BigQuery dataset (default: %(default)s)")
    parser.add_argument(
        "--dataset-location", default="", metavar="LOCATION", help="such as EU (default: the region)"
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="before the names of topics, subscriptions, account and repository. Example: staging-",
    )
    parser.add_argument("--vertex", action="store_true", help="allow calls of Vertex AI endpoints too")
    parser.add_argument(
        "--full",
        action="store_true",
        help="scores table with every output of the model (--output_detail=full)",
    )


def names(args: argparse.Namespace) -> Names:
    """The names that the flags of `add_name_arguments` give.

    Raises:
      ValueError: a flag has the wrong form; the text names it.
    """
    return Names(
        args.project,
        args.region,
        args.bucket.removeprefix("gs://"),
        args.dataset,
        args.dataset_location,
        args.prefix,
        args.vertex,
        args.full,
    )


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    found = argparse.ArgumentParser(
        prog="python -m cloud.resources",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("action", choices=("create", "status", "delete"))
    add_name_arguments(found)
    found.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    found.add_argument(
        "--print-gcloud",
        action="store_true",
        help="print the gcloud commands for APIs, repository, account and roles, for an administrator to "
        "run; with --dry-run they are printed, and nothing else is made or deleted",
    )
    found.add_argument(
        "--emulators",
        action="store_true",
        help="on the local stack that the environment names; leaves out what it has not: APIs, accounts, "
        "roles, repository, bucket",
    )
    found.add_argument("--keep-tables", action="store_true", help="delete: keep the dataset and its tables")
    found.add_argument("--yes", action="store_true", help="delete: do not ask")
    found.add_argument("--format", choices=("table", "json"), default="table")
    add_options(found, endpoints.EndpointOptions)
    jobs.add_endpoint_argument(found)
    return found


def report(done: Sequence[Done], form: str) -> None:
    """Prints what was found and done: a table, or one JSON array."""
    if form == "json":
        rows = [
            {
                "kind": resource.kind,
                "name": resource.title,
                "status": state.status,
                "details": list(state.details),
                "done": what,
            }
            for resource, state, what in done
        ]
        print(json.dumps(rows, indent=1))
        return
    width = max((len(resource.kind) for resource, _, _ in done), default=0)
    for resource, state, what in done:
        name = resource.title
        print(f"{(what or _MARKS[state.status]).ljust(12)}  {resource.kind.ljust(width)}  {name}")
        if not what or state.status == "drift":
            for detail in state.details:
                print(" " * 14 + detail.replace("\n", "\n" + " " * 14))


def confirm(question: str) -> bool:
    """Asks on the terminal; no terminal means no."""
    if not sys.stdin.isatty():
        print(f"{question} Nobody to ask: give --yes.", file=sys.stderr)
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _delete(args: argparse.Namespace, found: Names, wanted: Sequence[Resource], clients: Clients) -> int:
    # APIs stay enabled: other work in the project may need them.
    going = [r for r in wanted if not (isinstance(r, Apis) or (args.keep_tables and r.data))]
    running = [] if args.emulators and not args.dataflow_endpoint else _using(args, found, going, clients)
    print(f"This deletes, in project {found.project}, what this command made:", file=sys.stderr)
    for resource in going:
        print(f"  {resource.kind} {resource.title}", file=sys.stderr)
    for job in running:
        print(f"  and cancels job {job.name} ({job.id}, {job.location})", file=sys.stderr)
    if not args.dry_run and not args.yes and not confirm("Delete all of this?"):
        print("Nothing was deleted.", file=sys.stderr)
        return 1
    if running and not args.dry_run:
        _end(running, jobs.Jobs(found.project, found.region, args.dataflow_endpoint))
    done = delete(going, clients, args.dry_run)
    report(done, args.format)
    left = [state.details[0] for _, state, what in done if what == STAYS]
    for reason in left:
        print(f"Not deleted: {reason}", file=sys.stderr)
    return 1 if left else 0


def _using(
    args: argparse.Namespace, found: Names, going: Sequence[Resource], clients: Clients
) -> list[jobs.JobInfo]:
    """The active jobs, in whatever region, that read or write what is about to be deleted."""
    client = jobs.Jobs(found.project, found.region, args.dataflow_endpoint)
    bucket, ours = found.bucket_url.removeprefix("gs://"), False
    for resource in going:
        if isinstance(resource, Bucket):  # one of another hand stays, and so do other people's jobs on it
            with explained(resource):
                ours = resource.inspect(clients) != MISSING and resource.owned(clients)
    return [
        job
        for job in client.active()
        if job.uses(
            found.project, found.dataset, found.prefix, bucket if ours or job.ours else "", found.account
        )
    ]


def _end(running: Sequence[jobs.JobInfo], client: jobs.Jobs) -> None:
    """Cancels jobs and waits until they have ended."""
    regions = {job.location: client.at(job.location) for job in running}
    for job in running:
        regions[job.location].request_state(job.id, "cancel")
    for job in running:
        print(f"Waiting for job {job.name} to end ...", file=sys.stderr, flush=True)
        try:
            regions[job.location].wait(job.id, _say_state, timeout=_CANCEL_SECONDS)
        except jobs.JobError as error:
            raise jobs.JobError(
                f"{error}\nNothing was deleted. Run this again when the job {job.name} has ended."
            ) from error


def _say_state(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 on an error, and for status where something differs."""
    found = parser()
    args = found.parse_args(argv)
    try:
        called = names(args)
        rest = args.bigquery_endpoint or (
            os.environ.get("BIGQUERY_EMULATOR_HOST") if args.emulators else None
        )
        where = endpoints.BigQueryEndpoints(rest, args.bigquery_storage_endpoint)
    except ValueError as error:
        found.error(str(error))
    if args.emulators and not (rest and os.environ.get("PUBSUB_EMULATOR_HOST")):
        found.error(
            "--emulators needs PUBSUB_EMULATOR_HOST and BIGQUERY_EMULATOR_HOST in the environment: start the "
            "local stack with `python -m local up` and run the exports that it prints"
        )
    gcloud = Gcloud(print_only=args.print_gcloud)
    clients = Clients(args.project, where, gcloud, args.emulators)
    wanted = [resource for resource in declare(called) if resource.emulated or not args.emulators]
    try:
        if args.action == "delete":
            return _delete(args, called, wanted, clients)
        if args.action == "create":
            report(create(wanted, clients, args.dry_run), args.format)
            return 0
        states = inspect_all(wanted, clients)
        done = [(resource, state, "") for resource, state in zip(wanted, states, strict=True)]
        report(done, args.format)
        return 0 if all(state.status == "ok" for _, state, _ in done) else 1
    except (ResourceError, GcloudError, jobs.JobError) as error:
        found.exit(1, f"{found.prog}: {error}\n")
    finally:
        clients.close()


if __name__ == "__main__":
    sys.exit(main())

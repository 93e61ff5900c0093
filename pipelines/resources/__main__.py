"""Creates, compares and deletes what the product needs in a Google Cloud project."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pipelines.cloud import jobs
from pipelines.resources.base import Clients, Resource, ResourceError, State, explained
from pipelines.resources.declared import Names, declare
from pipelines.resources.gcloud import Gcloud, GcloudError
from transforms import clients as endpoints

EXAMPLE: Final = """examples:
  python -m pipelines.resources create --project my-project --region europe-west1
  python -m pipelines.resources status --project my-project --region europe-west1 --format json
  python -m pipelines.resources delete --project my-project --region europe-west1 --keep-tables

On this machine, after `python -m pipelines.local up` and the exports that it prints:
  python -m pipelines.resources create --project local-project --emulators
"""

_THREADS: Final = 4
_MARKS: Final = {"ok": "ok", "missing": "missing", "drift": "differs", "unknown": "unknown"}


def add_name_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags from which `names` makes Names."""
    parser.add_argument("--project", required=True, help="Google Cloud project id. Example: my-project")
    parser.add_argument("--region", default="us-central1", help="default: %(default)s")
    parser.add_argument("--bucket", default="", help="bucket without gs:// (default: PROJECT-anomaly)")
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
        prog="python -m pipelines.resources",
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
        help="print the gcloud commands for APIs, accounts and roles, for an administrator to run",
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
    endpoints.add_arguments(found)
    jobs.add_endpoint_argument(found)
    return found


def inspect(resource: Resource, clients: Clients) -> State:
    """The state of a resource; "unknown" with the reason where it cannot be read."""
    try:
        with explained(resource):
            return resource.inspect(clients)
    except (ResourceError, GcloudError) as error:
        return State("unknown", (str(error),))


Done = tuple[Resource, State, str]
"""A resource, what was found, and what was done."""


def inspect_all(resources: Sequence[Resource], clients: Clients) -> list[State]:
    """The states of all, a few at a time: each question waits for Google, gcloud's a second or more."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda resource: inspect(resource, clients), resources))


def create(resources: Sequence[Resource], clients: Clients, dry_run: bool) -> list[Done]:
    """Makes what is missing and repairs what differs.

    Returns:
      For each resource what was found, and what was done: "", "created", "repaired", "would create",
      "would repair", "printed" for gcloud commands that were not run.

    Raises:
      ResourceError: a resource could not be made; those before it stay.
      GcloudError: a gcloud command failed.
    """
    # Where the APIs are off, nothing else can be asked.
    apis = [resource for resource in resources if resource.kind == "APIs"]
    if apis:
        rest = [resource for resource in resources if resource not in apis]
        first = [_create(resource, inspect(resource, clients), clients, dry_run) for resource in apis]
        return [*first, *create(rest, clients, dry_run)]
    states = inspect_all(resources, clients)
    return [
        _create(resource, state, clients, dry_run) for resource, state in zip(resources, states, strict=True)
    ]


def _create(resource: Resource, state: State, clients: Clients, dry_run: bool) -> Done:
    verb = {"missing": "create", "drift": "repair"}.get(state.status, "")
    if state.status == "unknown" and not dry_run:
        if not clients.gcloud.print_only:
            raise ResourceError(state.details[0])
        verb = "create"  # the administrator's gcloud will see, and most of its commands can be run again
    if not verb or dry_run:
        return resource, state, f"would {verb}" if verb else ""
    before = len(clients.gcloud.printed)
    with explained(resource):
        if verb == "create":
            resource.create(clients)
        else:
            resource.repair(clients, state)
    only_printed = clients.gcloud.print_only and len(clients.gcloud.printed) > before
    return resource, state, "printed" if only_printed else f"{verb.rstrip('e')}ed"


def delete(resources: Sequence[Resource], clients: Clients, dry_run: bool) -> list[Done]:
    """Removes what this project made, last first. What lacks its label is left and said.

    Raises:
      ResourceError: a resource could not be removed.
      GcloudError: a gcloud command failed.
    """
    done = []
    states = inspect_all(resources, clients)
    for resource, state in reversed(list(zip(resources, states, strict=True))):
        if state.status == "missing":
            done.append((resource, state, ""))
            continue
        with explained(resource):
            if state.status != "unknown" and not resource.owned(clients):
                done.append((resource, state, "left alone"))
                continue
            if not dry_run:
                resource.delete(clients)
        done.append((resource, state, "would delete" if dry_run else "deleted"))
    return done


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
    kept = [resource for resource in wanted if not (args.keep_tables and resource.data)]
    # A role on the dataset goes with it, and without the account no role is of use.
    running = [] if args.emulators and not args.dataflow_endpoint else _using(args, found)
    print(f"This deletes, in project {found.project}, what this command made:", file=sys.stderr)
    for resource in kept:
        print(f"  {resource.kind} {resource.title}", file=sys.stderr)
    for job in running:
        print(f"  and cancels job {job.name} ({job.id})", file=sys.stderr)
    if not args.dry_run and not args.yes and not confirm("Delete all of this?"):
        print("Nothing was deleted.", file=sys.stderr)
        return 1
    if running and not args.dry_run:
        client = jobs.Jobs(found.project, found.region, args.dataflow_endpoint)
        for job in running:
            client.request_state(job.id, "cancel")
        for job in running:
            client.wait(job.id)
    report(delete(kept, clients, args.dry_run), args.format)
    return 0


def _using(args: argparse.Namespace, found: Names) -> list[jobs.JobInfo]:
    """The active jobs that read or write what is about to be deleted."""
    client = jobs.Jobs(found.project, found.region, args.dataflow_endpoint)
    return [job for job in client.active() if job.uses(found.project, found.dataset, found.prefix)]


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
            "local stack with `python -m pipelines.local up` and run the exports that it prints"
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

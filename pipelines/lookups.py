"""What the batch pipeline looks up at launch, so that a job is not started that would fail minutes later."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, TypeVar

from apache_beam.io.filesystems import FileSystems
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud import bigquery

from common.pubsub import EMULATOR_VARIABLE, publisher_client, subscriber_client
from transforms.bigquery.source import arrow_schema
from transforms.bigquery.streams import table_reference
from transforms.clients import BigQueryEndpoints
from transforms.columnar import SourceColumnsError, check_columns
from transforms.files import FileColumnsError, parquet_schema
from transforms.sinks import output_files

PATIENCE: Final = 20.0
"""Seconds for one look at the cloud. A launch never waits longer for what it could do without."""

_ONCE: Final = Retry(predicate=lambda error: False)
_T = TypeVar("_T")


def check_local_files(parser: argparse.ArgumentParser, pattern: str, parquet: bool) -> None:
    """Ends the program where --input matches nothing, or a Parquet file lacks what a transaction needs."""
    flag = f"--input={pattern}"
    matched = [file.path for file in FileSystems.match([pattern])[0].metadata_list]
    if not matched:
        parser.error(f"{flag}: no such file; `python -m publisher --jsonl FILE --count 1000` writes one")
    for path in matched:
        if Path(path).is_dir():
            parser.error(f"{flag}: {path} is a directory; give the files in it, such as {path}/*.parquet")
        try:
            if parquet:
                check_columns(parquet_schema(path))
        except SourceColumnsError as error:
            parser.error(f"{flag}: {path}: {error}")
        except FileColumnsError as error:
            parser.error(f"{flag}: {error}; give --input_format=jsonl where it is JSON lines")
        except OSError as error:
            parser.error(f"{flag}: {path} cannot be read: {error}")


def check_table(
    parser: argparse.ArgumentParser, name: str, project: str | None, endpoints: BigQueryEndpoints
) -> None:
    """Ends the program where --input_table is not there, is a view, or lacks what a transaction needs.

    Whoever launches a job need not be allowed to look at its tables, so what cannot be looked up is left to
    the job.
    """
    flag = f"--input_table={name}"
    reference = table_reference(name)

    def look() -> bigquery.Table:
        with closing(endpoints.client(project or reference.project)) as client:
            return client.get_table(reference, retry=_ONCE, timeout=PATIENCE)

    try:
        table = within(PATIENCE, look)
    except exceptions.NotFound as error:
        tables = f"{reference.project}:{reference.dataset_id}"
        parser.error(f"{flag}: no such table; `bq ls {tables}` lists those that there are ({error.message})")
    except Exception as error:  # no permission, no credentials, no network
        logging.warning("%s: cannot look it up, which is left to the job: %s", flag, error)
        return
    if table.table_type in ("VIEW", "MATERIALIZED_VIEW"):
        parser.error(f"{flag} is a view, which has no rows of its own; use --input_query to select from it")
    try:
        check_columns(arrow_schema(table.schema))
    except SourceColumnsError as error:
        parser.error(f"{flag}: {error}; --input_query can rename and convert columns")


def check_output(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where --output cannot be written, or has files of an earlier job.

    Parquet files of two jobs in one directory are read as one output, with rows of both. A gs:// directory
    that may not be listed is left to the job.
    """
    flag = f"--output={args.output}"
    if any(sign in args.output for sign in "*?["):
        parser.error(f"{flag}: *, ? and [ make a pattern of it; give a directory without them")
    if "://" not in args.output:
        _check_local_directory(parser, Path(args.output), flag)
    try:
        found = within(PATIENCE, lambda: output_files(args.output))
    except Exception as error:  # whatever the client of Cloud Storage raises: no permission, no network
        logging.warning("%s: cannot look for files of an earlier job there: %s", flag, error)
        return
    if found and not args.overwrite:
        parser.error(
            f"{flag} has {len(found)} files of an earlier job, such as {found[0]}, whose rows would be mixed "
            "with this one's: give another directory, or --overwrite to replace them"
        )


def _check_local_directory(parser: argparse.ArgumentParser, path: Path, flag: str) -> None:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        parser.error(f"{flag}: {there} is a file, not a directory; give another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        parser.error(f"{flag}: no permission to write in {there}; give another directory")


def within(seconds: float, look: Callable[[], _T]) -> _T:
    """What `look` gives or raises; TimeoutError after `seconds`, whatever it waits for.

    The clients of Google Cloud retry for minutes, and not all of their waits take a limit.
    """
    found: list[_T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(look())
        except Exception as error:  # raised again by the caller's thread
            failed.append(error)

    # A daemon, which does not hold up the end of the program.
    thread = threading.Thread(target=run, name="lookup", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:.0f} seconds")
    return found[0]


def missing_pubsub(name: str) -> str | None:
    """What is to be done where a topic or a subscription does not exist; None where it does.

    Whoever may use it need not be allowed to look it up: that counts as existing.

    Args:
      name: "projects/PROJECT/topics/TOPIC" or "projects/PROJECT/subscriptions/SUBSCRIPTION".

    Raises:
      GoogleAPIError: Pub/Sub does not answer within 20 s.
    """
    patience = {"retry": Retry(timeout=PATIENCE), "timeout": PATIENCE}
    try:
        if "/subscriptions/" in name:
            with subscriber_client() as subscriber:
                subscriber.get_subscription(subscription=name, **patience)
        else:
            publisher = publisher_client()
            try:
                publisher.get_topic(topic=name, **patience)
            finally:
                publisher.transport.close()
    except exceptions.PermissionDenied:
        return None
    except exceptions.NotFound:
        return f"{name} does not exist. Make it with: {_how_to_make(name)}"
    return None


def _how_to_make(name: str) -> str:
    _, project, kind, short = name.split("/")
    emulator = os.environ.get(EMULATOR_VARIABLE)
    if emulator is None:
        topic = " --topic=TOPIC" if kind == "subscriptions" else ""
        return f"gcloud pubsub {kind} create {short} --project={project}{topic}"
    body = f'{{"topic": "projects/{project}/topics/TOPIC"}}' if kind == "subscriptions" else "{}"
    return (
        f"curl -X PUT -H 'Content-Type: application/json' -d '{body}' http://{emulator}/v1/{name}\n"
        f"(python -m cloud.resources create --project={project} --emulators makes the project's own)"
    )

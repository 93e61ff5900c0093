"""Looks at files, tables and topics at launch, so that no job starts that would fail minutes later."""

from __future__ import annotations

import codecs
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import orjson
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud import bigquery

from common import file_kinds
from common.bigquery import table_reference
from common.clients import BigQueryEndpoints
from common.google import ERRORS, explain, remedy
from common.options import OptionError
from common.pubsub import EMULATOR_VARIABLE, publisher_client, subscriber_client
from common.retry import LOOK_SECONDS
from model.roles import unused_columns
from transforms.bigquery.source import arrow_schema
from transforms.columnar import SourceColumnsError, check_columns, source_columns
from transforms.compressed import CompressedFileError, compression, decompressed
from transforms.files import FileColumnsError, parquet_schema
from transforms.message import MessageRules
from transforms.sinks import output_files

_ONCE: Final = Retry(predicate=lambda error: False)
_T = TypeVar("_T")


class LocalFile(NamedTuple):
    """A file of --input: its path, its schema where it is Parquet, and the names of its columns or keys."""

    path: str
    schema: pa.Schema | None
    names: Sequence[str]


def find_local_files(pattern: str, parquet: bool) -> list[LocalFile]:
    """Checks that --input matches files: Parquet, or lines of text.

    Raises:
      OptionError: a file is missing, cannot be read, or is of another kind.
    """
    flag = f"--input={pattern}"
    paths = [file.path for file in FileSystems.match([pattern])[0].metadata_list]
    if not paths:
        raise OptionError(f"{flag}: no such file; `anomaly publish --jsonl FILE --count 1000` writes one")
    files = []
    for path in paths:
        if Path(path).is_dir():
            raise OptionError(
                f"{flag}: {path} is a directory; pass the files in it, such as {path}/*.parquet"
            )
        try:
            if parquet:
                schema = parquet_schema(path)
                files.append(LocalFile(path, schema, schema.names))
                continue
            head = _head(path)
        except FileColumnsError as error:
            raise OptionError(f"{flag}: {error}; pass --input_format=jsonl where it is JSON lines") from error
        except OSError as error:
            raise OptionError(f"{flag}: {path} cannot be read: {error}") from error
        if problem := file_kinds.problem(head):
            raise OptionError(f"{flag}: {path} {problem}")
        files.append(LocalFile(path, None, _keys(head)))
    return files


def check_local_files(pattern: str, files: Sequence[LocalFile], rules: MessageRules | None = None) -> None:
    """Checks that Parquet files have the columns of a transaction.

    It says of the first file which columns, or keys, are not used.

    Raises:
      OptionError: a column is missing, or has a type that cannot be used.
    """
    rules = rules or MessageRules()
    for file in files:
        try:
            if file.schema is not None:
                check_columns(file.schema, rules)
        except SourceColumnsError as error:
            raise OptionError(f"--input={pattern}: {file.path}: {error}") from error
    first = files[0]
    if first.names:
        what = "" if first.schema is not None else ", first line"
        _say_unused(f"--input={pattern}{what}", first.names, rules)


def _say_unused(flag: str, names: Sequence[str], rules: MessageRules) -> None:
    """Says which columns are not used: a name that is spelt otherwise is no error, and changes the result."""
    unused = unused_columns(names, rules.roles, source_columns(rules))
    for line in unused.warnings:
        logging.warning("%s: %s", flag, line)
    for line in unused.notes:
        logging.info("%s: %s", flag, line)


def _keys(head: bytes) -> list[str]:
    """The keys of a JSON object in the first line; none of another line."""
    try:
        row = orjson.loads(head.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0])
    except orjson.JSONDecodeError:
        return []
    return list(row) if isinstance(row, dict) else []


def _head(path: str) -> bytes:
    """The first bytes of a file, decompressed; none of one that is damaged, which the job names."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        if not compression(path):
            return bytes(file.read(file_kinds.HEAD_BYTES))
        try:
            return next(decompressed(file, path, file_kinds.HEAD_BYTES), b"")
        except CompressedFileError:
            return b""


def check_table(
    name: str, project: str | None, endpoints: BigQueryEndpoints, rules: MessageRules | None = None
) -> None:
    """Checks that --input_table exists, is no view, and has the columns of a transaction.

    It says which columns are not used.

    Whoever launches a job need not be allowed to look at its tables, so a table that cannot be looked up is
    left to the job.

    Raises:
      OptionError: the table cannot be scored.
    """
    flag = f"--input_table={name}"
    reference = table_reference(name)

    def look() -> bigquery.Table:
        with closing(endpoints.client(project or reference.project)) as client:
            return client.get_table(reference, retry=_ONCE, timeout=LOOK_SECONDS)

    try:
        table = within(LOOK_SECONDS, look)
    except exceptions.NotFound as error:
        tables = f"{reference.project}:{reference.dataset_id}"
        raise OptionError(
            f"{flag}: no such table; `bq ls {tables}` lists those that exist ({error.message})"
        ) from error
    except Exception as error:  # no permission, no credentials, no network
        logging.warning("%s: cannot look it up, which is left to the job: %s", flag, error)
        return
    if table.table_type in ("VIEW", "MATERIALIZED_VIEW"):
        raise OptionError(
            f"{flag} is a view, which has no rows of its own; use --input_query to select from it"
        )
    try:
        rules = rules or MessageRules()
        schema = arrow_schema(table.schema)
        check_columns(schema, rules)
        _say_unused(flag, schema.names, rules)
    except SourceColumnsError as error:
        raise OptionError(f"{flag}: {error}; --input_query can rename and convert columns") from error


def check_output(directory: str, overwrite: bool) -> None:
    """Checks that --output can be written, and has no files of an earlier job.

    Parquet files of two jobs in one directory are read as one output, with rows of both. A gs:// directory
    that may not be listed is left to the job.

    Raises:
      OptionError: it cannot be written, or has files and may not be overwritten.
    """
    flag = f"--output={directory}"
    if any(sign in directory for sign in "*?["):
        raise OptionError(f"{flag}: *, ? and [ make a pattern of it; pass a directory without them")
    if "://" not in directory:
        _check_local_directory(Path(directory), flag)
    try:
        earlier = within(LOOK_SECONDS, lambda: output_files(directory))
    except Exception as error:  # whatever the client of Cloud Storage raises: no permission, no network
        logging.warning("%s: cannot look for files of an earlier job there: %s", flag, error)
        return
    if earlier and not overwrite:
        raise OptionError(
            f"{flag} has {len(earlier)} files of an earlier job, such as {earlier[0]}, whose rows would be "
            "mixed with this one's: pass another directory, or --overwrite to replace them"
        )


def _check_local_directory(path: Path, flag: str) -> None:
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise OptionError(f"{flag}: {existing} is a file, not a directory; pass another directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OptionError(f"{flag}: no permission to write in {existing}; pass another directory")


def within(seconds: float, look: Callable[[], _T]) -> _T:
    """Calls a function, and waits no longer for it than some seconds.

    The clients of Google Cloud retry for minutes, and not all of their waits take a limit.

    >>> within(1.0, lambda: 7)
    7

    Raises:
      TimeoutError: it does not return in time. Its thread goes on, and does not delay the end of the program.
    """
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(look())
        except Exception as error:  # raised again by the caller's thread
            answer.set_exception(error)

    threading.Thread(target=run, name="lookup", daemon=True).start()
    wait([answer], seconds)
    if not answer.done():
        raise TimeoutError(f"no answer in {seconds:.0f} seconds")
    return answer.result()


def check_pubsub(flag: str, name: str) -> None:
    """Checks that a topic or a subscription exists. One that may not be looked up counts as existing.

    Args:
      flag: that names it, "--topic".
      name: "projects/PROJECT/topics/TOPIC" or "projects/PROJECT/subscriptions/SUBSCRIPTION".

    Raises:
      OptionError: it does not exist, or Pub/Sub does not answer within 20 s.
    """
    patience = {"retry": Retry(timeout=LOOK_SECONDS), "timeout": LOOK_SECONDS}
    try:
        if "/subscriptions/" in name:
            with subscriber_client() as subscriber:
                subscriber.get_subscription(subscription=name, **patience)
        else:
            with publisher_client() as publisher:
                publisher.get_topic(topic=name, **patience)
    except ERRORS as error:
        problem = explain(error)
        if problem.kind == "forbidden":
            return
        if problem.kind == "missing":
            raise OptionError(f"{flag}: {name} does not exist. Create it with: {_creation(name)}") from error
        fix = remedy(problem, name.split("/")[1])
        raise OptionError(
            f"{flag}: cannot look up {name}: {problem.text}" + (f"\nRun: {fix}" if fix else "")
        ) from error


def _creation(name: str) -> str:
    _, project, kind, short = name.split("/")
    if EMULATOR_VARIABLE not in os.environ:
        topic = " --topic=TOPIC" if kind == "subscriptions" else ""
        return f"gcloud pubsub {kind} create {short} --project={project}{topic}"
    # gcloud itself does not speak gRPC, and the embedded server speaks nothing else.
    client = "SubscriberClient" if kind == "subscriptions" else "PublisherClient"
    topic = f', topic="projects/{project}/topics/TOPIC"' if kind == "subscriptions" else ""
    call = f'{client}().create_{kind.removesuffix("s")}(name="{name}"{topic})'
    return (
        f"python -c 'from google.cloud.pubsub_v1 import {client}; {call}'\n"
        f"(anomaly resources create --project={project} --emulators creates the project's own)"
    )

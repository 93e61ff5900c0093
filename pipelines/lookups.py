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
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud import bigquery

from common import file_kinds, files
from common.bigquery import table_reference
from common.clients import BigQueryEndpoints
from common.compressed import CompressedFileError
from common.csv_files import CsvError
from common.file_kinds import Kind
from common.google import ERRORS, explain, remedy
from common.options import OptionError
from common.pubsub import EMULATOR_VARIABLE, publisher_client, subscriber_client
from common.retry import LOOK_SECONDS
from features.history.plan import plans
from features.roles import OPTIONS, unused_columns
from transforms.bigquery.source import arrow_schema
from transforms.columnar import SourceColumnsError, check_columns, source_columns
from transforms.csv_source import csv_schema
from transforms.files import parquet_schema
from transforms.message import MessageRules
from transforms.publication import is_cut_off, output_files
from transforms.shares import FileColumnsError
from transforms.sinks import FILE_SETS

_ONCE: Final = Retry(predicate=lambda error: False)
_ROLES: Final = {"account_id": "account", "event_time": "time"}
_MOST_SAID: Final = 3
"""Files of different columns of which a launch says which are not used."""
_T = TypeVar("_T")


class SourceFile(NamedTuple):
    """A file of --input: its path, its schema where it has columns, and the names of its columns or keys."""

    path: str
    schema: pa.Schema | None
    names: Sequence[str]


def find_local_files(pattern: str, form: Kind | None) -> list[SourceFile]:
    """Checks that --input matches files of a format.

    Args:
      pattern: as the flag has it.
      form: the format; None for that of the first file.

    Raises:
      OptionError: a file is missing, cannot be read, or is of another kind.
    """
    paths = _paths(pattern)
    form = form or input_format(pattern)
    found = []
    for path in paths:
        try:
            found.append(_look(pattern, path, form))
        except OSError as error:
            raise OptionError(f"--input={pattern}: {path} cannot be read: {error}") from error
    return found


def find_remote_file(pattern: str, form: Kind | None) -> list[SourceFile]:
    """Looks at the first file of --input elsewhere than on this machine, such as gs://.

    Whoever launches a job need not be allowed to read its input: what cannot be looked at is left to the job.

    Returns:
      The file, or nothing.

    Raises:
      OptionError: there is no file, or it is of another kind.
    """

    def look() -> SourceFile:
        path = _paths(pattern)[0]
        return _look(pattern, path, form or file_kinds.kind(files.head(path)))

    try:
        files.require_credentials(pattern)
        return [within(LOOK_SECONDS, look)]
    except OptionError:
        raise
    except Exception as error:  # whatever the client of Cloud Storage raises: no permission, no network
        logging.info("--input=%s: cannot look at its columns, which is left to the job: %s", pattern, error)
        return []


def _look(pattern: str, path: str, form: Kind) -> SourceFile:
    try:
        if form == "jsonl":
            head = files.head(path)
            if problem := file_kinds.problem(head):
                raise OptionError(f"--input={pattern}: {path} {problem}")
            return SourceFile(path, None, _keys(head))
        schema = parquet_schema(path) if form == "parquet" else csv_schema(path)
        return SourceFile(path, schema, schema.names)
    except (FileColumnsError, CsvError, CompressedFileError) as error:
        raise OptionError(f"--input={pattern}: {error}{_hint(path, form)}") from error


def check_files(pattern: str, found: Sequence[SourceFile], rules: MessageRules | None = None) -> None:
    """Checks that files with columns have those of a transaction.

    It says which columns, or keys of the first line, are not used: once for files that have the same ones.

    Raises:
      OptionError: a column is missing, or has a type that cannot be used.
    """
    rules = rules or MessageRules()
    said: set[frozenset[str]] = set()
    for file in found:
        names = file.names
        if file.schema is not None:
            schema = _with_keys(file.schema, file.path, rules)
            names = schema.names
            try:
                check_columns(schema, rules)
            except SourceColumnsError as error:
                raise OptionError(f"--input={pattern}: {file.path}: {error}") from error
        _check_history(f"--input={pattern}: {file.path}", names, rules, file.schema is None)
        key = frozenset(names)
        if names and key not in said and len(said) < _MOST_SAID:
            said.add(key)
            where = "" if len(found) == 1 else f": {file.path}"
            what = "" if file.schema is not None else ", first line"
            _say_unused(f"--input={pattern}{where}{what}", names, rules)


def _check_history(
    flag: str, names: Sequence[str], rules: MessageRules, is_first_message: bool = False
) -> None:
    """Checks that rows of a model with history features name their account and their time.

    Args:
      flag: begins the text.
      names: of columns, or of the keys of a first message, which others need not be like.
      rules: of the job.
      is_first_message: warn only.

    Raises:
      OptionError: a column is missing.
    """
    there = {name.lower() for name in names}
    by = {plan.key for plan in plans(rules.encoding.spec)}
    for role in (*(["account_id"] if None in by else []), *(["event_time"] if by else [])):
        name = getattr(rules.roles, role)
        outer = {name.lower(), name.partition(".")[0].lower(), role}
        if not names or there & outer:
            continue
        text = (
            f"{flag}: the model has history features, which need the {_ROLES[role]} of each transaction; "
            f"expected {name}, got {', '.join(names)}: pass {OPTIONS[role]}"
        )
        if not is_first_message:
            raise OptionError(text)
        logging.warning("%s", text)


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


def input_format(pattern: str) -> Kind:
    """Returns the format of the first file of --input, by its first bytes.

    Raises:
      OptionError: there is none, it cannot be read, or it is of no format that can be scored.
    """
    flag = f"--input={pattern}"
    fix = "pass --input_format=jsonl, parquet or csv"
    try:
        files.require_credentials(pattern)
        path = within(LOOK_SECONDS, lambda: _paths(pattern))[0]
        start = within(LOOK_SECONDS, lambda: files.head(path))
    except OptionError:
        raise
    except Exception as error:  # whatever the client of Cloud Storage raises: no permission, no network
        raise OptionError(f"{flag}: cannot look at the file to tell its format: {error}; {fix}") from error
    if words := file_kinds.unreadable(start):
        raise OptionError(f"{flag}: {path} {words}")
    return file_kinds.kind(start)


def _paths(pattern: str) -> list[str]:
    if paths := [file.path for file in files.find(pattern)]:
        return paths
    raise OptionError(
        f"--input={pattern}: no such file; `anomaly publish --jsonl FILE --count 1000` writes one"
    )


def _with_keys(schema: pa.Schema, path: str, rules: MessageRules) -> pa.Schema:
    for name in files.partition_keys(path):
        if name in source_columns(rules) and name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def _hint(path: str, form: Kind) -> str:
    """Names the format that a file seems to have, where it is not the one that it was taken for."""
    try:
        head = files.head(path)
    except (CompressedFileError, OSError):
        return ""
    if not head or file_kinds.unreadable(head):
        return ""
    seems = file_kinds.kind(head)
    return "" if seems == form else f"; pass --input_format={seems}"


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
        _check_history(flag, schema.names, rules)
        _say_unused(flag, schema.names, rules)
    except SourceColumnsError as error:
        raise OptionError(f"{flag}: {error}; --input_query can rename and convert columns") from error


def check_output(directory: str, overwrite: bool) -> None:
    """Checks that --output can be written, and has no files of an earlier job.

    Parquet files of two jobs in one directory are read as one output, with rows of both. Those of a job that
    was stopped while it published them are no output, and are replaced. A gs:// directory that may not be
    listed is left to the job.

    Raises:
      OptionError: it cannot be written, or has files and may not be overwritten.
    """
    flag = f"--output={directory}"
    if any(sign in directory for sign in "*?["):
        raise OptionError(f"{flag}: *, ? and [ make a pattern of it; pass a directory without them")
    if "://" not in directory:
        _check_local_directory(Path(directory), flag)
    try:
        earlier = within(LOOK_SECONDS, lambda: output_files(directory, FILE_SETS))
        cut_off = within(LOOK_SECONDS, lambda: is_cut_off(directory))
    except Exception as error:  # whatever the client of Cloud Storage raises: no permission, no network
        logging.warning("%s: cannot look for files of an earlier job there: %s", flag, error)
        return
    if cut_off:
        logging.warning(
            "%s: an earlier job was stopped while it published its files: they are replaced", flag
        )
    elif earlier and not overwrite:
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

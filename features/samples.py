"""Reads the first rows of a file or table, for a look at its columns."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Final

import pyarrow as pa

from common.command import CommandError

ROWS: Final = 200_000
BIGQUERY_SCHEME: Final = "bigquery://"


class SampleError(CommandError):
    """A file or table cannot be read; the text names it."""


def read_sample(source: str, rows: int = ROWS, categories: Collection[str] = ()) -> pa.Table:
    """Reads at most `rows` rows from the beginning.

    Args:
      source: CSV, JSON lines or Parquet files, as `common.files.find` finds them, or
        bigquery://project.dataset.table.
      rows: how many.
      categories: columns whose values are names; see `common.table_files.read_table`.

    Raises:
      SampleError: there is no such source, or it cannot be read.
    """
    if source.startswith(BIGQUERY_SCHEME):
        return _first(_bigquery(source.removeprefix(BIGQUERY_SCHEME)), rows)
    try:
        table = _files(source, rows, categories)
        _ = table.column_names  # Arrow decodes the names only when somebody asks for them.
        return table
    except CommandError as error:  # its text names the file
        raise SampleError(f"--data: {error}") from error
    except UnicodeDecodeError as error:
        raise SampleError(f"--data {source}: the names of the columns are not UTF-8: {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise SampleError(f"--data {source}: cannot be read: {error}") from error


def _files(source: str, rows: int, categories: Collection[str]) -> pa.Table:
    # Deferred with Beam, whose file systems they use.
    from common import files, table_files

    files.require_credentials(source)
    tables: list[pa.Table] = []
    for file in files.find(source):
        tables.append(table_files.read_table(file.path, rows, categories))
        rows -= tables[-1].num_rows
        if rows <= 0:
            break
    if not tables:
        raise SampleError(
            f"expected CSV, JSON lines or Parquet files, or {BIGQUERY_SCHEME}project.dataset.table, "
            f"got {source!r}, and there is no such file"
        )
    return table_files.join(tables)


def _bigquery(name: str) -> Iterable[pa.RecordBatch]:
    # Deferred: a file needs neither the client nor credentials.
    from common.bigquery import open_session, read_stream, session_schema, table_path
    from common.clients import EndpointOptions
    from common.google import ERRORS, explain
    from common.names import TABLE

    try:
        project = TABLE.split(TABLE.check(name, f"--data {BIGQUERY_SCHEME}{name}"))["PROJECT"]
        client = EndpointOptions().with_environment(os.environ).endpoints().read_client()
        payer = os.environ.get("GOOGLE_CLOUD_PROJECT") or project
        session = open_session(client, table_path(name), payer, max_streams=1)
        schema = session_schema(session)
        yield pa.RecordBatch.from_pylist([], schema)
        for stream in session.streams:
            yield from read_stream(client, stream.name, schema)
    except ERRORS as error:
        raise SampleError(f"--data {BIGQUERY_SCHEME}{name}: {explain(error).text}") from error
    except ValueError as error:
        raise SampleError(f"--data {error}") from error


def _first(batches: Iterable[pa.RecordBatch], rows: int) -> pa.Table:
    taken: list[pa.RecordBatch] = []
    for batch in batches:
        taken.append(batch)
        rows -= batch.num_rows
        if rows <= 0:
            break
    if not taken:
        raise SampleError("--data: expected rows, got an empty file")
    table = pa.Table.from_batches(taken)
    return table.slice(0, table.num_rows + min(rows, 0))

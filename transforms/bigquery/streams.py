"""Pending write streams: rows that become visible all together, or never. No Beam here.

Limits of the service: 10,000 streams in one commit; 10,000 new streams an hour and project. It keeps the rows
of a finalized stream for 4 hours, and a stream must be committed within 24 hours
(docs.cloud.google.com/bigquery/quotas#write-api-limits, .../docs/write-api-batch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final, TypeVar

import pyarrow as pa
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient, types

from common.bigquery import table_path
from transforms.bigquery.answers import AppendError, AppendOptions
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.sending import Appended

MAX_STREAMS_PER_COMMIT: Final = 10_000

_T = TypeVar("_T")
_ALREADY_COMMITTED: Final = types.StorageError.StorageErrorCode.STREAM_ALREADY_COMMITTED


class CommitError(RuntimeError):
    """BigQuery did not commit; no row of any of the streams is visible."""


def default_stream(table: str) -> str:
    """The stream that every table has: rows are visible at once, and may be stored twice after a retry."""
    return f"{table_path(table)}/streams/_default"


class PendingStream:
    """One pending stream of a table, created when the first rows come.

    Args:
      channel: carries the calls.
      table: "PROJECT.DATASET.TABLE".
      schema: the table's columns.
      options: limits and patience of the appends.
    """

    def __init__(
        self,
        channel: WriteChannel,
        table: str,
        schema: pa.Schema,
        options: AppendOptions | None = None,
    ) -> None:
        self._channel = channel
        self._parent = table_path(table)
        self._schema = schema
        self._options = options
        self._appender: Appender | None = None

    def append(self, batches: Iterable[pa.RecordBatch]) -> Appended:
        """Adds rows to the stream; raises as `Appender.append` does."""
        return self.appender().append(batches)

    def appender(self) -> Appender:
        """Returns the appender of the stream, which the first call creates.

        Raises:
          AppendError: the service does not answer, or denies the call.
        """
        if self._appender is None:
            stream = _call(
                self._parent,
                lambda: self._channel.client.create_write_stream(
                    parent=self._parent,
                    write_stream=types.WriteStream(type_=types.WriteStream.Type.PENDING),
                ),
            )
            self._appender = Appender(self._channel, stream.name, self._schema, self._options)
        return self._appender

    def finalize(self) -> str | None:
        """Closes the stream to further rows.

        Returns:
          The name to commit; None where there are no rows.

        Raises:
          AppendError: the service counts other rows than were appended.
        """
        if self._appender is None or self._appender.rows == 0:
            self.close()
            return None
        name, rows = self._appender.stream, self._appender.rows
        self.close()
        counted = _call(name, lambda: self._channel.client.finalize_write_stream(name=name)).row_count
        if counted != rows:
            raise AppendError(f"{name}: {rows} rows were appended, BigQuery counts {counted}")
        return name

    def close(self) -> None:
        """Leaves the stream as it is. Uncommitted, its rows are never seen, and the service drops them."""
        if self._appender is not None:
            self._appender.close()
            self._appender = None


def commit_streams(client: BigQueryWriteClient, streams: Iterable[str]) -> int:
    """Makes the rows of finalized pending streams visible: all of a table at once. May be called again.

    Tables are committed one after the other, so a failure can leave some of them committed; a second call
    completes the rest.

    Returns:
      The number of streams committed, by this call or by an earlier one.

    Raises:
      CommitError: too many streams for one commit, or BigQuery refuses one of them; no row of that table is
        visible then.
      AppendError: the service does not answer, or denies the call.
    """
    by_table = {
        table: list(names)
        for table, names in groupby(sorted(set(streams)), lambda name: name.split("/streams/")[0])
    }
    for table, names in by_table.items():
        if len(names) > MAX_STREAMS_PER_COMMIT:
            raise CommitError(
                f"{table}: {len(names)} streams, BigQuery commits {MAX_STREAMS_PER_COMMIT} at once. Nothing "
                "was committed. Use fewer and larger bundles, or the method file_loads."
            )
    for table, names in by_table.items():
        _commit_table(client, table, names)
    return sum(map(len, by_table.values()))


def _commit_table(client: BigQueryWriteClient, table: str, names: list[str]) -> None:
    request = types.BatchCommitWriteStreamsRequest(parent=table, write_streams=names)
    response = _call(table, lambda: client.batch_commit_write_streams(request))
    errors = list(response.stream_errors)
    committed_before = {error.entity for error in errors if error.code == _ALREADY_COMMITTED}
    # A commit takes all streams or none: an earlier one whose answer was lost shows in every one of them.
    if errors and committed_before != set(names):
        shown = "; ".join(f"{error.entity}: {error.error_message}" for error in errors[:5])
        raise CommitError(f"{table}: nothing was committed, {len(errors)} streams have errors: {shown}")


def _call(resource: str, request: Callable[[], _T]) -> _T:
    try:
        return request()
    except exceptions.GoogleAPICallError as error:
        raise AppendError(f"{resource}: {error}") from error

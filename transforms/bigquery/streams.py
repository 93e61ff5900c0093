"""Pending write streams: rows that become visible all together, or never. No Beam here.

Limits of the service: 10,000 streams in one commit; 10,000 new streams an hour and project. It keeps the rows
of a finalized stream for 4 hours, and a stream must be committed within 24 hours. The sources of this project
make no more bundles than the first two allow (`MAX_SHARES` in common/limits.py)
(docs.cloud.google.com/bigquery/quotas#write-api-limits, .../docs/write-api-batch).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple, TypeVar

import pyarrow as pa
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient, types

from common.bigquery import table_path
from common.limits import MAX_STREAMS
from transforms.bigquery.answers import AppendError, AppendOptions
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.sending import Appended

MAX_STREAMS_PER_COMMIT: Final = MAX_STREAMS
LIFE_SECONDS: Final = 23 * 3600
"""Seconds from the launch of a job in which it makes streams; the rest of a day is for the last bundles."""

_FINALIZING: Final = 16
"""Streams that are finalized at the same time."""
_T = TypeVar("_T")
_ALREADY_COMMITTED: Final = types.StorageError.StorageErrorCode.STREAM_ALREADY_COMMITTED


class Finished(NamedTuple):
    """A pending stream to which all its rows were appended.

    Attributes:
      name: of the stream.
      rows: appended to it.
    """

    name: str
    rows: int


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
      launched: when the job was, in seconds since the epoch; None sets no limit on its streams.
    """

    def __init__(
        self,
        channel: WriteChannel,
        table: str,
        schema: pa.Schema,
        options: AppendOptions | None = None,
        launched: float | None = None,
    ) -> None:
        self._channel = channel
        self._parent = table_path(table)
        self._schema = schema
        self._options = options
        self._launched = launched
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
            self._check_age()
            stream = _call(
                self._parent,
                lambda: self._channel.client.create_write_stream(
                    parent=self._parent,
                    write_stream=types.WriteStream(type_=types.WriteStream.Type.PENDING),
                ),
            )
            self._appender = Appender(self._channel, stream.name, self._schema, self._options)
        return self._appender

    def _check_age(self) -> None:
        """Refuses rows that could not be committed, before more work is done for nothing."""
        if self._launched is not None and time.time() - self._launched > LIFE_SECONDS:
            raise AppendError(
                f"{self._parent}: the job was launched over {LIFE_SECONDS // 3600} hours ago, and BigQuery "
                "keeps rows that are not committed for 24 hours. Divide the input over several jobs, or use "
                "the method file_loads."
            )

    def finish(self) -> Finished | None:
        """Ends the stream on this side; BigQuery is told when it is committed.

        Returns:
          The stream to commit; None where there are no rows.
        """
        appender = self._appender
        self.close()
        return None if appender is None or appender.rows == 0 else Finished(appender.stream, appender.rows)

    def close(self) -> None:
        """Leaves the stream as it is. Uncommitted, its rows are never seen, and the service drops them."""
        if self._appender is not None:
            self._appender.close()
            self._appender = None


def commit_streams(
    client: BigQueryWriteClient, streams: Iterable[Finished], order: Sequence[str] = ()
) -> int:
    """Makes the rows of pending streams visible: all of a table at once. May be called again.

    All streams are finalized first, here and not when their last row is in: BigQuery keeps the rows of a
    finalized stream for 4 hours, and a job may take longer. Then the tables are committed one after the
    other, so a failure can leave the first of them committed; a second call completes the rest.

    Args:
      client: a Storage Write client.
      streams: those of all bundles.
      order: tables, "PROJECT.DATASET.TABLE", in the order of their commits; others follow by name.

    Returns:
      The number of streams committed, by this call or by an earlier one.

    Raises:
      CommitError: too many streams for one commit, or BigQuery refuses one of them; no row of that table is
        visible then.
      AppendError: the service does not answer, denies the call, or counts other rows than were appended.
    """
    paths = [table_path(table) for table in order]
    ranks = {path: rank for rank, path in enumerate(paths)}
    by_table: dict[str, list[Finished]] = {}
    for stream in sorted(set(streams)):
        by_table.setdefault(stream.name.partition("/streams/")[0], []).append(stream)
    for table, finished in by_table.items():
        if len(finished) > MAX_STREAMS_PER_COMMIT:
            raise CommitError(
                f"{table}: {len(finished)} streams, BigQuery commits {MAX_STREAMS_PER_COMMIT} at once. "
                "Nothing was committed. Use fewer and larger bundles, or the method file_loads."
            )
    with ThreadPoolExecutor(_FINALIZING) as pool:
        for _ in pool.map(partial(_finalize, client), itertools.chain(*by_table.values())):
            pass
    for table in sorted(by_table, key=lambda table: (ranks.get(table, len(ranks)), table)):
        _commit_table(client, table, [stream.name for stream in by_table[table]])
    return sum(map(len, by_table.values()))


def _finalize(client: BigQueryWriteClient, stream: Finished) -> None:
    """Closes a stream to further rows; the commit judges one that cannot be, or that was committed before."""
    try:
        counted = client.finalize_write_stream(name=stream.name).row_count
    except (exceptions.BadRequest, exceptions.NotFound):
        return
    except exceptions.GoogleAPICallError as error:
        raise AppendError(f"{stream.name}: {error}") from error
    if counted != stream.rows:
        raise AppendError(f"{stream.name}: {stream.rows} rows were appended, BigQuery counts {counted}")


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

"""Arrow rows to a write stream of the BigQuery Storage Write API. No Beam here.

Requirements of the service (docs.cloud.google.com/bigquery/docs/write-api,
.../supported-data-types, .../write-api-best-practices, and the comments of storage.proto):

- The first request of a connection carries the schema, as one bare IPC message (here: every one until one is
  accepted). Each request carries one bare record batch message, uncompressed and without dictionaries, and
  has less than 10 MB in all.
- STRING is Utf8, BYTES Binary, TIMESTAMP timestamp[us, UTC], REPEATED a List that is never null, RECORD a
  Struct.
- Outside the US multi-region the call needs the header `x-goog-request-params: write_stream=...`.
- Answers come in the order of the requests. A request is stored as a whole or not at all: where rows are bad,
  `row_errors` names them (not always all of them), and the rest is to be sent again.
- A stream that the application created takes offsets. A request that is repeated at the same offset is stored
  once; ALREADY_EXISTS says that the first one had arrived. The default stream takes none.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient, types
from google.rpc import code_pb2, status_pb2

from common.retry import Patience
from transforms.bigquery.connection import AppendConnection
from transforms.bigquery.rows import (
    MAX_REQUEST_BYTES,
    MAX_REQUEST_ROWS,
    Refused,
    SchemaMismatchError,
    conform,
    oversized,
    split_requests,
    without_rows,
)
from transforms.columnar import join

_LOGGER = logging.getLogger(__name__)

TRANSIENT: Final = frozenset(
    {
        code_pb2.UNAVAILABLE,
        code_pb2.DEADLINE_EXCEEDED,
        code_pb2.RESOURCE_EXHAUSTED,
        code_pb2.INTERNAL,
        code_pb2.ABORTED,
        code_pb2.UNKNOWN,  # the connection ended without a status
        code_pb2.CANCELLED,  # so does a proxy or a server that drains
    }
)
"""google.rpc codes of errors that may pass by themselves."""

_SCHEMA_ERRORS: Final = frozenset({types.StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS})


PATIENCE: Final = Patience(seconds=math.inf, first=0.5, longest=32.0, tries=8)


class AppendError(RuntimeError):
    """BigQuery refuses the request for good, and no single row explains it."""


class TransientAppendError(RuntimeError):
    """The retries are used up. The runner may try the whole bundle again."""


@dataclass(frozen=True)
class AppendOptions:
    """Limits and patience of an Appender.

    Attributes:
      max_request_bytes: bytes of rows in one request.
      max_request_rows: rows in one request.
      window: requests on their way at the same time.
      response_timeout: seconds to wait for an answer, after which the connection counts as lost.
      patience: with failures; its tries count from the last progress, its seconds do not.
      max_isolated: rows that are refused one by one, where the service names no row and has accepted none.
        After as many, the whole request counts as refused.
    """

    max_request_bytes: int = MAX_REQUEST_BYTES
    max_request_rows: int = MAX_REQUEST_ROWS
    window: int = 4
    response_timeout: float = 60.0
    patience: Patience = PATIENCE
    max_isolated: int = 20


@dataclass
class Appended:
    """Outcome of an append: every row is either in `rows` or in `refused`.

    Attributes:
      rows: how many are stored (on a pending stream: once it is committed).
      refused: those that are not, with reasons.
      calls: requests sent, repeated ones included.
      retries: failures that were overcome.
    """

    rows: int = 0
    refused: list[Refused] = field(default_factory=list)
    calls: int = 0
    retries: int = 0


class Appender:
    """Appends record batches to one write stream, over a connection that it keeps open between calls.

    Args:
      client: a Storage Write client.
      stream: full name of the stream; ".../streams/_default" or one from `create_write_stream`.
      schema: the table's columns; rows may have more.
      options: limits and patience.
      sleep: for tests.
    """

    def __init__(
        self,
        client: BigQueryWriteClient,
        stream: str,
        schema: pa.Schema,
        options: AppendOptions | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.stream = stream
        self._client = client
        self._schema = schema
        self._options = options or AppendOptions()
        self._sleep = sleep
        self._has_offsets = not stream.endswith("/_default")
        self._acknowledged = 0
        self._next_offset = 0
        self._isolated = 0
        self._failures = 0
        self._last_refusal = status_pb2.Status()
        self._connection: AppendConnection | None = None
        self._todo: deque[pa.RecordBatch] = deque()
        self._flight: deque[pa.RecordBatch] = deque()
        self._result = Appended()

    @property
    def rows(self) -> int:
        """Rows stored through this appender so far."""
        return self._acknowledged

    def append(self, batches: Iterable[pa.RecordBatch]) -> Appended:
        """Stores the rows and waits until the service has confirmed all of them.

        Raises:
          SchemaMismatchError: the batches lack a column of the schema, or the table has none of that name.
          AppendError: BigQuery refuses the rows for good: no such table, no permission, wrong types.
          TransientAppendError: the service stayed unavailable; some rows may be stored.
        """
        self._result = Appended()
        self._todo = deque(self._requests(batches))
        self._flight.clear()
        self._next_offset = self._acknowledged
        self._isolated = 0
        try:
            self._run()
            if self._isolated and not self._acknowledged:
                raise self._permanent(self._last_refusal)
        except BaseException:
            self.close()
            raise
        return self._result

    def close(self) -> None:
        """Ends the connection. The next `append` opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _requests(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        conformed = [conform(batch, self._schema) for batch in batches if batch.num_rows]
        if not conformed:
            return
        options = self._options
        for part in split_requests(join(conformed), options.max_request_bytes, options.max_request_rows):
            reason = oversized(part, options.max_request_bytes) if part.num_rows == 1 else None
            if reason is None:
                yield part
            else:
                self._refuse(Refused(part, [reason]))

    def _run(self) -> None:
        self._failures = 0
        while self._todo or self._flight:
            try:
                self._send()
                answer = types.AppendRowsResponse.pb(self._connected().receive())
            except exceptions.GoogleAPICallError as error:
                status = _transport_status(error)
                if status.code not in TRANSIENT:
                    raise self._permanent(status) from error
                self._pause(status)
                self._restart()
                continue
            if self._judge(answer):
                self._failures = 0

    def _send(self) -> None:
        while self._todo and len(self._flight) < self._options.window:
            connection = self._connected()
            batch = self._todo.popleft()
            self._flight.append(batch)
            connection.send(batch, self._next_offset if self._has_offsets else None)
            self._next_offset += batch.num_rows
            self._result.calls += 1

    def _judge(self, answer: Any) -> bool:
        """Deals with one answer; returns whether it brought progress."""
        status, batch = answer.error, self._flight[0]
        if not status.code or (status.code == code_pb2.ALREADY_EXISTS and self._has_offsets):
            self._flight.popleft()
            self._acknowledged += batch.num_rows
            self._result.rows += batch.num_rows
            return True
        if answer.row_errors:
            errors = {error.index: error.message or status.message for error in answer.row_errors}
            checked = without_rows(batch, errors)
            self._refuse(checked.refused)
            self._replace([checked.accepted])
            return True
        if status.code in TRANSIENT:
            self._pause(status)
            if self._has_offsets:
                self._restart()
            else:
                self._todo.appendleft(self._flight.popleft())
            return False
        if status.code != code_pb2.INVALID_ARGUMENT or _is_schema_error(status):
            raise self._permanent(status)
        self._isolate(batch, status)
        return True

    def _isolate(self, batch: pa.RecordBatch, status: status_pb2.Status) -> None:
        """Halves a request to find its bad rows, where the service names none.

        A table of other types looks the same as long as the service has taken no row.
        """
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            self._replace([batch.slice(0, half), batch.slice(half)])
            return
        self._isolated += 1
        self._last_refusal = status
        if self._isolated >= self._options.max_isolated and not self._acknowledged:
            raise self._permanent(status)
        self._refuse(Refused(batch, [status.message]))
        self._replace([])

    def _replace(self, parts: list[pa.RecordBatch]) -> None:
        """Puts `parts` in the place of the oldest request on its way."""
        self._flight.popleft()
        if self._has_offsets:
            # The requests behind it were sent for offsets that no longer hold, and are refused as out of
            # range. Their answers must be in before an offset is used again: one of them could fit, late.
            for _ in self._flight:
                self._drain_one()
            self._requeue()
        self._todo.extendleft(part for part in reversed(parts) if part.num_rows)

    def _drain_one(self) -> None:
        try:
            answer = types.AppendRowsResponse.pb(self._connected().receive())
        except exceptions.GoogleAPICallError as error:
            raise TransientAppendError(
                f"{self.stream}: connection lost after a refused request: {error}"
            ) from error
        if not answer.error.code:
            raise AppendError(f"{self.stream}: BigQuery stored rows beyond the end of the stream")

    def _restart(self) -> None:
        self.close()
        self._requeue()

    def _requeue(self) -> None:
        self._todo.extendleft(reversed(self._flight))
        self._flight.clear()
        self._next_offset = self._acknowledged

    def _connected(self) -> AppendConnection:
        if self._connection is None or (self._connection.ended and not self._flight):
            # An idle connection is closed by the service after some minutes: no error, nothing was lost.
            self.close()
            self._connection = AppendConnection(
                self._client, self.stream, self._schema, self._options.response_timeout
            )
        return self._connection

    def _refuse(self, refused: Refused) -> None:
        if refused.reasons:
            self._result.refused.append(refused)

    def _pause(self, status: status_pb2.Status) -> None:
        patience = self._options.patience
        self._failures += 1
        if self._failures == patience.tries:
            raise TransientAppendError(
                f"{self.stream}: gave up after {patience.tries} attempts: "
                f"{code_pb2.Code.Name(status.code)}: {status.message}"
            )
        wait = patience.wait(self._failures)
        _LOGGER.warning("%s: %s; next attempt in %.1f s", self.stream, status.message, wait)
        self._result.retries += 1
        self._sleep(wait)

    def _permanent(self, status: status_pb2.Status) -> Exception:
        text = f"{self.stream}: {code_pb2.Code.Name(status.code)}: {status.message}"
        if _is_schema_error(status):
            return SchemaMismatchError(f"{text}. Create the tables again to add the missing columns.")
        return AppendError(text)


def _transport_status(error: exceptions.GoogleAPICallError) -> status_pb2.Status:
    code = error.grpc_status_code
    status = status_pb2.Status(
        code=code.value[0] if code is not None else code_pb2.UNKNOWN, message=error.message or str(error)
    )
    for detail in error.details or []:
        if hasattr(detail, "SerializeToString"):
            status.details.add().Pack(detail)
    return status


def _is_schema_error(status: status_pb2.Status) -> bool:
    for detail in status.details:
        cause = types.StorageError.pb()()
        if detail.Is(cause.DESCRIPTOR) and detail.Unpack(cause) and cause.code in _SCHEMA_ERRORS:
            return True
    return False

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
  once; ALREADY_EXISTS says that the first one had arrived. OUT_OF_RANGE says that an earlier one has not: go
  on after the last success. The default stream takes none.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import types
from google.rpc import code_pb2, status_pb2

from transforms.bigquery.answers import (
    TRANSIENT,
    AppendError,
    AppendOptions,
    TransientAppendError,
    describe,
    is_schema_error,
    permanent_error,
    transport_status,
)
from transforms.bigquery.connection import AppendConnection, LateAnswerError, WriteChannel
from transforms.bigquery.requests import Request, RequestQueue
from transforms.bigquery.rows import (
    Refused,
    SchemaMismatchError,
    conform,
    oversized,
    split_requests,
    without_rows,
)
from transforms.bigquery.sending import Appended, AppendStats, Sending
from transforms.bigquery.table_schema import find_mismatch
from transforms.rebatch import join

_LOGGER = logging.getLogger(__name__)


class Appender:
    """Appends record batches to one write stream, over a connection that it keeps open between calls.

    Threads may share the appender of a default stream. Their requests travel one behind the other without
    waiting, and answers come in the same order. Whoever waits first receives for all; so a failure is waited
    out once, and a bad row is the affair of the caller that sent it. A pending stream has one caller.

    Args:
      channel: carries the calls.
      stream: full name of the stream; ".../streams/_default" or one from `create_write_stream`.
      schema: the table's columns; rows may have more.
      options: limits and patience.
      sleep: for tests.
      clock: for tests.
    """

    def __init__(
        self,
        channel: WriteChannel,
        stream: str,
        schema: pa.Schema,
        options: AppendOptions | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self._channel = channel
        self._schema = schema
        self._options = options or AppendOptions()
        self._sleep = sleep
        self._clock = clock
        self._has_offsets = not stream.endswith("/_default")
        self._connection: AppendConnection | None = None
        # All that follows changes under this lock alone, which nobody holds who waits for the service.
        self._lock = threading.Condition()
        self._receiving = False
        self._queue = RequestQueue()
        self._stale = 0
        self._acknowledged = 0
        self._next_offset = 0
        self._window = self._options.window
        self._timeout = self._options.response_timeout
        self._trouble: status_pb2.Status | None = None
        self._failures = 0
        self._failing_since = 0.0

    @property
    def rows(self) -> int:
        """Rows stored through this appender so far."""
        return self._acknowledged

    def append(self, batches: Iterable[pa.RecordBatch]) -> Appended:
        """Stores the rows and waits until the service has confirmed all of them; see `finish`."""
        sending = self.begin()
        self.submit(sending, batches)
        return self.finish(sending)

    def begin(self, watch: Callable[[AppendStats], None] | None = None) -> Sending:
        """Begins to send; `submit` takes the rows, `finish` waits for the answers.

        Args:
          watch: is told of attempts, errors and waits as they happen, in the thread that submits or waits.
        """
        return Sending(self._clock(), watch)

    def submit(self, sending: Sending, batches: Iterable[pa.RecordBatch]) -> None:
        """Sends rows; waits only where more bytes than `window_bytes` are on their way.

        Raises:
          SchemaMismatchError: the batches lack a column of the schema.
        """
        parts = list(self._parts(sending, batches))
        with self._giving_up(sending), self._lock:
            self._queue.add(sending, parts)
            self._send()
        self._take_part(sending, lambda: sending.done or not self._full)

    def finish(self, sending: Sending) -> Appended:
        """Waits until the service has confirmed all rows that were submitted.

        Raises:
          SchemaMismatchError: the table lacks a column, or has another type.
          AppendError: BigQuery refuses the rows for good: no such table, no permission.
          TransientAppendError: the service stayed unavailable; some rows may be stored.
        """
        self._take_part(sending, lambda: sending.done)
        if sending.error is not None:
            raise sending.error
        return sending.result

    def abandon(self, sending: Sending) -> None:
        """Sends no more of the rows; those on their way may be stored."""
        with self._lock:
            if not sending.done:
                self._fail(sending, AppendError(f"{self.stream}: the caller gave up"))

    def close(self) -> None:
        """Ends the call. The next `append` begins a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _parts(self, sending: Sending, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        conformed = [conform(batch, self._schema) for batch in batches if batch.num_rows]
        if not conformed:
            return
        options = self._options
        for part in split_requests(join(conformed), options.max_request_bytes, options.max_request_rows):
            reason = oversized(part, options.max_request_bytes) if part.num_rows == 1 else None
            if reason is None:
                yield part
            else:
                sending.result.refuse(Refused(part, [reason]))

    @property
    def _full(self) -> bool:
        return self._queue.bytes > self._options.window_bytes

    def _take_part(self, sending: Sending, done: Callable[[], bool]) -> None:
        """Waits for something. One of those who wait receives the answers, for all of them."""
        with self._giving_up(sending), self._lock:
            while not done():
                if self._receiving:
                    self._lock.wait()
                    sending.report()
                    continue
                self._receiving = True
                try:
                    while not done():
                        self._step(sending)
                        sending.report()
                finally:
                    self._receiving = False
                    self._lock.notify_all()
            sending.report()

    @contextlib.contextmanager
    def _giving_up(self, sending: Sending) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abandon(sending)
            raise

    @contextlib.contextmanager
    def _unlocked(self) -> Iterator[None]:
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def _step(self, sending: Sending) -> None:
        """Sends what may be sent, and deals with one answer or one failure."""
        if self._trouble is not None and not self._queue.flight:
            self._pause(self._trouble, sending)
            return
        self._send()
        connection = self._connected()
        try:
            with self._unlocked():
                answer = types.AppendRowsResponse.pb(connection.receive(self._timeout))
        except exceptions.GoogleAPICallError as error:
            self._lose(error)
            return
        if self._stale:
            self._stale -= 1
            if not answer.error.code:
                self._fail_all(AppendError(f"{self.stream}: rows were stored beyond the end of the stream"))
            return
        self._judge(answer)

    def _send(self) -> None:
        queue, window = self._queue, 0 if self._trouble or self._stale else self._window
        while queue.todo and len(queue.flight) < window:
            connection = self._connected()
            request = queue.todo.popleft()
            request.sent = self._clock()
            queue.flight.append(request)
            connection.send(request.batch, self._next_offset if self._has_offsets else None)
            self._next_offset += request.batch.num_rows
            request.sending.result.calls += 1

    def _connected(self) -> AppendConnection:
        waiting = self._queue.flight or self._stale
        if self._connection is None or (self._connection.ended and not waiting):
            # An idle connection is closed by the service after some minutes: no error, nothing was lost.
            self.close()
            self._connection = AppendConnection(self._channel.client, self.stream, self._schema)
        return self._connection

    def _judge(self, answer: Any) -> None:
        """Deals with the answer to the oldest request on its way."""
        status: status_pb2.Status = answer.error
        request = self._queue.flight[0]
        result = request.sending.result
        if not status.code or (status.code == code_pb2.ALREADY_EXISTS and self._has_offsets):
            self._acknowledged += request.batch.num_rows
            result.rows += request.batch.num_rows
            if self._clock() - request.sent <= self._options.response_timeout:
                self._timeout = self._options.response_timeout
            self._progress()
            self._settle(self._queue.flight.popleft())
            return
        result.errors += 1
        if answer.row_errors:
            errors = {each.index: each.message or status.message for each in answer.row_errors}
            self._refuse_rows(request, errors)
        elif status.code in TRANSIENT or (status.code == code_pb2.OUT_OF_RANGE and self._has_offsets):
            self._retry(status)
        elif status.code != code_pb2.INVALID_ARGUMENT or is_schema_error(status):
            self._fail(request.sending, permanent_error(self.stream, status))
            self._settle(self._queue.flight.popleft())
        else:
            self._isolate(request, status)

    def _progress(self) -> None:
        self._failures = 0
        self._window = min(self._window + 1, self._options.window)

    def _refuse_rows(self, request: Request, errors: dict[int, str]) -> None:
        try:
            checked = without_rows(request.batch, errors)
        except ValueError as error:
            self._fail(request.sending, AppendError(f"{self.stream}: {error}"))
            self._settle(self._queue.flight.popleft())
            return
        request.sending.result.refuse(checked.refused)
        self._progress()
        self._replace([checked.accepted])

    def _isolate(self, request: Request, status: status_pb2.Status) -> None:
        """Halves a request to find its bad rows, where the service names none.

        The service says the same of any row where the table has other columns: then no row is at fault.
        """
        sending, batch = request.sending, request.batch
        if not sending.table_checked:
            client = self._channel.client
            try:
                with self._unlocked():
                    reason = find_mismatch(client, self.stream, self._schema)
            except exceptions.GoogleAPICallError as error:
                self._retry(transport_status(error))
                return
            sending.table_checked = True
            if reason is not None:
                self._fail(sending, SchemaMismatchError(f"{self.stream}: {describe(status)}: {reason}"))
                self._settle(self._queue.flight.popleft())
                return
        self._progress()
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            self._replace([batch.slice(0, half), batch.slice(half)])
        else:
            sending.result.refuse(Refused(batch, [status.message]))
            self._replace([])

    def _replace(self, parts: list[pa.RecordBatch]) -> None:
        """Puts `parts` in the place of the oldest request on its way."""
        request = self._queue.flight.popleft()
        if self._has_offsets:
            # The requests behind it were sent for offsets that no longer hold, and are refused as out of
            # range. Their answers must be in before an offset is used again: one of them could fit, late.
            self._stale = len(self._queue.flight)
            self._requeue()
        self._settle(request, parts)

    def _settle(self, request: Request, parts: Iterable[pa.RecordBatch] = ()) -> None:
        full = self._full
        self._queue.settle(request, parts)
        if request.sending.done or full != self._full:
            self._lock.notify_all()

    def _retry(self, status: status_pb2.Status) -> None:
        """Keeps the oldest request until those on their way are answered. Then comes a pause."""
        self._trouble, self._window = status, 1
        if self._has_offsets:  # those behind it follow its offset
            self.close()
            self._requeue()
        else:
            self._queue.again.append(self._queue.flight.popleft())

    def _lose(self, error: exceptions.GoogleAPICallError) -> None:
        """Deals with the end of the call: what was on its way has no answer, and the channel may be dead."""
        status = transport_status(error)
        if isinstance(error, LateAnswerError):
            self._timeout = min(2 * self._timeout, self._options.longest_timeout)
        for sending in {request.sending for request in self._queue.flight}:
            sending.result.errors += 1
            if status.code not in TRANSIENT:
                self._fail(sending, permanent_error(self.stream, status))
        if self._stale:
            self._stale = 0
            self._fail_all(TransientAppendError(f"{self.stream}: lost after a refused request: {error}"))
        self.close()
        self._channel.close()
        self._requeue()
        if self._queue.todo:
            self._trouble, self._window = status, 1

    def _requeue(self) -> None:
        self._queue.requeue()
        self._next_offset = self._acknowledged

    def _pause(self, status: status_pb2.Status, sending: Sending) -> None:
        """Waits before the next attempt, for all who have rows here; `sending` is the one in this thread."""
        self._requeue()
        patience, now = self._options.patience_with(status), self._clock()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        wait = patience.wait(self._failures)
        for caller in self._queue.callers:
            seconds = now - max(caller.since, self._failing_since)
            if self._failures == patience.tries or seconds + wait > patience.seconds:
                text = f"gave up after {self._failures} attempts in {seconds:.0f} s: {describe(status)}"
                self._fail(caller, TransientAppendError(f"{self.stream}: {text}"))
        callers = self._queue.callers
        if callers:
            _LOGGER.warning("%s: %s; next attempt in %.1f s", self.stream, describe(status), wait)
            for caller in callers:
                caller.result.retries += 1
                caller.result.waited += wait
                caller.result.throttled += wait if status.code == code_pb2.RESOURCE_EXHAUSTED else 0.0
            self._lock.notify_all()
            sending.report()
            with self._unlocked():
                self._sleep(wait)
        else:
            self._failures = 0
        self._trouble = None

    def _fail(self, sending: Sending, error: Exception) -> None:
        self._queue.fail(sending, error)
        self._lock.notify_all()

    def _fail_all(self, error: Exception) -> None:
        for sending in self._queue.callers:
            self._fail(sending, error)

"""One AppendRows call of the BigQuery Storage Write API, and the channel that carries it. No Beam here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final

import grpc
import pyarrow as pa
from google.api_core import exceptions
from google.api_core.gapic_v1.client_info import ClientInfo
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient, types

TRACE_ID: Final = "beam-transaction-anomaly"
_CLIENT_INFO: Final = ClientInfo(user_agent=TRACE_ID).to_grpc_metadata()


class LateAnswerError(exceptions.DeadlineExceeded):
    """The service has not answered in time; it may have stored the rows."""


class WriteChannel:
    """A Storage Write client that can be replaced by a new one, with a new connection.

    A connection that died silently is of no use to any retry, so a lost answer calls for a new one.

    Args:
      open_client: makes a client with a connection of its own, as `BigQueryEndpoints.write_client` does.
    """

    def __init__(self, open_client: Callable[[], BigQueryWriteClient]) -> None:
        self._open = open_client
        self._client: BigQueryWriteClient | None = None

    @property
    def client(self) -> BigQueryWriteClient:
        """The client, which the first use makes."""
        if self._client is None:
            self._client = self._open()
        return self._client

    def close(self) -> None:
        """Closes the connection. The next use of `client` makes a new one."""
        if self._client is not None:
            self._client.transport.close()
            self._client = None


class AppendConnection:
    """One AppendRows call, read by a thread of its own so that a silent service can be noticed.

    (The client's own AppendRowsStream waits in steps of some 75 ms, which dominates small appends.)

    Args:
      client: a Storage Write client.
      stream: full name of the stream.
      schema: of all batches to come.

    Attributes:
      ended: whether the service has ended the call.
    """

    def __init__(self, client: BigQueryWriteClient, stream: str, schema: pa.Schema) -> None:
        self.ended = False
        self._client = client
        self._stream = stream
        bare = pa.schema([column.remove_metadata() for column in schema])
        self._schema = bare.serialize().to_pybytes()
        self._accepted = False
        self._requests: queue.SimpleQueue[types.AppendRowsRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[types.AppendRowsResponse | Exception] = queue.SimpleQueue()
        self._call: Any = None
        self._thread: threading.Thread | None = None

    def send(self, batch: pa.RecordBatch, offset: int | None) -> None:
        """Queues one request; does not wait."""
        # Until a request was accepted: a service that refuses the first one has not kept its schema.
        schema = None if self._accepted else types.ArrowSchema(serialized_schema=self._schema)
        data = types.AppendRowsRequest.ArrowData(
            rows=types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes()),
            writer_schema=schema,
        )
        first = self._call is None
        self._requests.put(
            types.AppendRowsRequest(
                write_stream=self._stream, offset=offset, arrow_rows=data, trace_id=TRACE_ID if first else ""
            )
        )
        if first:
            # The transport's own method: the client's waits for the first answer, and could not be cancelled.
            append_rows: Any = self._client.transport.append_rows
            self._call = append_rows(
                iter(self._requests.get, None),
                metadata=(("x-goog-request-params", f"write_stream={self._stream}"), _CLIENT_INFO),
            )
            self._thread = threading.Thread(target=self._read, name="append-rows", daemon=True)
            self._thread.start()

    def receive(self, timeout: float) -> types.AppendRowsResponse:
        """Waits at most `timeout` seconds for the next answer.

        Raises:
          LateAnswerError: there is none in time.
          GoogleAPICallError: the call ended.
        """
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise LateAnswerError(f"no answer within {timeout:g} s") from None
        if isinstance(answer, Exception):
            self._answers.put(answer)
            raise answer
        self._accepted = self._accepted or not types.AppendRowsResponse.pb(answer).HasField("error")
        return answer

    def close(self) -> None:
        """Ends the call and its thread."""
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        failure: Exception = exceptions.ServiceUnavailable("the service closed the connection")
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError as error:
            failure = exceptions.from_grpc_error(error)
        self.ended = True
        self._answers.put(failure)

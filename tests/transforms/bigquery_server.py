"""A gRPC server that speaks the BigQuery Storage Write API and fails when its script says so.

It keeps rows in memory and obeys the rules of the service for offsets, finalizing and committing. So does the
emulator, which never fails. Requests and answers are the real messages on a real connection.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types
from google.rpc import code_pb2, status_pb2

from common.bigquery import table_path

_SERVICE = "/google.cloud.bigquery.storage.v1.BigQueryWrite/"
_CODES = types.StorageError.StorageErrorCode


@dataclass(frozen=True)
class Fault:
    """The fate of one AppendRows request.

    Attributes:
      code: name of a google.rpc code.
      in_band: an answer with that error; otherwise the connection ends with it.
      stored: whether the rows are stored nevertheless, so that only the answer is lost.
      silent: no answer at all.
      storage_code: a StorageError in the details.
      until: the answer waits for this event.
      delay: seconds before the answer.
    """

    code: str = "UNAVAILABLE"
    in_band: bool = True
    stored: bool = False
    silent: bool = False
    storage_code: int = 0
    until: threading.Event | None = None
    delay: float = 0.0


SLOW = "OK"
"""Code of a fault that is no error, but late."""


@dataclass
class Request:
    """The parts of an AppendRows request that the server saw."""

    connection: int
    stream: str
    offset: int | None
    rows: int
    bytes: int
    schema: bool
    routing: str


@dataclass
class Stream:
    rows: list[dict] = field(default_factory=list)
    finalized: bool = False
    committed: bool = False


class ScriptedBigQuery(grpc.GenericRpcHandler):
    """The server. `with ScriptedBigQuery() as server:` listens at `server.address`.

    Attributes:
      script: number of the request, counted over all connections from 0, to what happens to it.
      fault_of: the same for a request by what is in it, where the script says nothing.
      refuse: reason to refuse a row, or None; refused rows are named in `row_errors`.
      max_row_errors: longest list of them in one answer, as the real service cuts it.
      name_rows: False answers INVALID_ARGUMENT without naming rows.
      table: the columns that GetWriteStream describes; None has it answer UNIMPLEMENTED.
      descriptions: how often it was asked for.
      impatient: answers that waited for an event in vain.
      finalize_off_by: added to the row count that finalizing answers.
      lose_commit_answers: so many commits take place and answer UNAVAILABLE.
      is_slow: the rows of a finalized stream are gone with the next request, as if hours had passed.
      refuse_commits: tables of which no stream is found.
      requests: all AppendRows requests.
      streams: by name.
    """

    def __init__(self, *tables: str) -> None:
        self.parents = [table_path(table) for table in tables or ("p.d.t",)]
        self.parent = self.parents[0]
        self.script: dict[int, Fault] = {}
        self.fault_of: Callable[[Request], Fault | None] = lambda request: None
        self.refuse: Callable[[dict], str | None] = lambda row: None
        self.table: list[types.TableFieldSchema] | None = None
        self.descriptions = 0
        self.impatient = 0
        self.max_row_errors = 1_000
        self.name_rows = True
        self.finalize_off_by = 0
        self.lose_commit_answers = 0
        self.is_slow = False
        self.refuse_commits: set[str] = set()
        self.commits: list[list[str]] = []
        self.requests: list[Request] = []
        self.streams: dict[str, Stream] = {}
        self._connections = itertools.count()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def default_stream(self) -> str:
        return f"{self.parent}/streams/_default"

    @property
    def visible(self) -> list[dict]:
        """The rows of all tables."""
        return [row for parent in self.parents for row in self.rows(parent)]

    def rows(self, parent: str) -> list[dict]:
        """The rows of a table that a query would see."""
        rows = []
        for name, stream in sorted(self.streams.items()):
            if name.startswith(f"{parent}/") and (stream.committed or name.endswith("/_default")):
                rows += stream.rows
        return rows

    def rows_of(self, table: str) -> list[dict]:
        """The rows of the default stream of a table, by its last name."""
        return [
            row
            for name, stream in self.streams.items()
            if name.endswith(f"/tables/{table}/streams/_default")
            for row in stream.rows
        ]

    def __enter__(self) -> ScriptedBigQuery:
        limit = [("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(futures.ThreadPoolExecutor(16), handlers=[self], options=limit)
        address = getattr(self, "address", "127.0.0.1:0")
        self.address = f"127.0.0.1:{self._server.add_insecure_port(address)}"
        self._server.start()
        return self

    def stop(self) -> None:
        """Ends all connections; `with` or `__enter__` starts the server at the same address again."""
        self._server.stop(None).wait()

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        self._server.stop(None)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        unary = {
            "CreateWriteStream": self._create,
            "GetWriteStream": self._describe,
            "FinalizeWriteStream": self._finalize,
            "BatchCommitWriteStreams": self._commit,
        }
        name = details.method.removeprefix(_SERVICE)
        if name == "AppendRows":
            return grpc.stream_stream_rpc_method_handler(self._append)
        return grpc.unary_unary_rpc_method_handler(unary[name]) if name in unary else None

    def _append(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        connection = next(self._connections)
        routing = dict(context.invocation_metadata()).get("x-goog-request-params", "")
        schema: bytes = b""
        for data in requests:
            request = types.AppendRowsRequest.pb(types.AppendRowsRequest.deserialize(data))
            arrow = request.arrow_rows
            own_schema = arrow.writer_schema.serialized_schema
            rows = _decode(own_schema or schema, arrow.rows.serialized_record_batch)
            offset = request.offset.value if request.HasField("offset") else None
            name, has_schema = request.write_stream, arrow.HasField("writer_schema")
            seen = Request(connection, name, offset, len(rows), len(data), has_schema, routing)
            with self._lock:
                fault = self.script.get(len(self.requests)) or self.fault_of(seen)
                self.requests.append(seen)
                answer = types.AppendRowsResponse(write_stream=request.write_stream)
                if fault is None or fault.stored or fault.code == SLOW:
                    answer = self._store(request.write_stream, offset, rows)
            if fault is not None and fault.silent:
                self._stopped.wait(30)
                return
            if fault is not None and fault.until is not None:
                self.impatient += not fault.until.wait(10)
            if fault is not None and fault.code == SLOW:
                self._stopped.wait(fault.delay)
                fault = None
            if fault is not None and not fault.in_band:
                context.abort(grpc.StatusCode[fault.code], "the script says so")
            if fault is not None:
                types.AppendRowsResponse.pb(answer).error.CopyFrom(_status(fault))
            if not types.AppendRowsResponse.pb(answer).HasField("error"):
                schema = own_schema or schema  # the schema of a refused request is not kept
            yield types.AppendRowsResponse.serialize(answer)

    def _store(self, name: str, offset: int | None, rows: list[dict]) -> types.AppendRowsResponse:
        stream = self.streams.get(name)
        if stream is None and name.endswith("/streams/_default"):
            stream = self.streams[name] = Stream()
        if self.is_slow:
            kept = {name: s for name, s in self.streams.items() if s.committed or not s.finalized}
            self.streams = kept
        if stream is None or stream.finalized:
            return _error(name, code_pb2.NOT_FOUND, "no such open stream")
        if offset is not None and offset < len(stream.rows):
            return _error(name, code_pb2.ALREADY_EXISTS, f"offset {offset} is written")
        if offset is not None and offset > len(stream.rows):
            return _error(name, code_pb2.OUT_OF_RANGE, f"offset {offset} is beyond the end")
        errors = [(i, reason) for i, row in enumerate(rows) if (reason := self.refuse(row)) is not None]
        if errors:
            answer = _error(name, code_pb2.INVALID_ARGUMENT, errors[0][1])
            if self.name_rows:
                fields_error = types.RowError.RowErrorCode.FIELDS_ERROR
                answer.row_errors = [
                    types.RowError(index=i, code=fields_error, message=reason)
                    for i, reason in errors[: self.max_row_errors]
                ]
            return answer
        result = types.AppendRowsResponse.AppendResult(offset=len(stream.rows))
        stream.rows += rows
        return types.AppendRowsResponse(write_stream=name, append_result=result)

    def _create(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = types.CreateWriteStreamRequest.deserialize(data)
        if request.parent not in self.parents:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no table {request.parent}")
        assert request.write_stream.type_ == types.WriteStream.Type.PENDING
        with self._lock:
            name = f"{request.parent}/streams/s{len(self.streams):04d}"
            self.streams[name] = Stream()
        return types.WriteStream.serialize(types.WriteStream(name=name))

    def _describe(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = types.GetWriteStreamRequest.deserialize(data)
        self.descriptions += 1
        if self.table is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "the script describes no table")
        schema = types.TableSchema(fields=self.table)
        return types.WriteStream.serialize(types.WriteStream(name=request.name, table_schema=schema))

    def _finalize(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        stream = self.streams.get(types.FinalizeWriteStreamRequest.deserialize(data).name)
        if stream is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such stream")
        stream.finalized = True
        count = len(stream.rows) + self.finalize_off_by
        return types.FinalizeWriteStreamResponse.serialize(types.FinalizeWriteStreamResponse(row_count=count))

    def _commit(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        names = list(types.BatchCommitWriteStreamsRequest.deserialize(data).write_streams)
        self.commits.append(names)
        errors = [
            types.StorageError(code=code, entity=name, error_message=_CODES(code).name)
            for name in names
            if (code := self._problem(name))
        ]
        if not errors:
            for name in names:
                self.streams[name].committed = True
            if self.lose_commit_answers:
                self.lose_commit_answers -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        answer = types.BatchCommitWriteStreamsResponse(stream_errors=errors)
        return types.BatchCommitWriteStreamsResponse.serialize(answer)

    def _problem(self, name: str) -> int:
        stream = self.streams.get(name)
        if stream is None or _table(name) in self.refuse_commits:
            return _CODES.STREAM_NOT_FOUND
        if stream.committed:
            return _CODES.STREAM_ALREADY_COMMITTED
        return 0 if stream.finalized else _CODES.INVALID_STREAM_STATE


def _table(stream: str) -> str:
    return stream.partition("/streams/")[0]


def _decode(schema: bytes, batch: bytes) -> list[dict]:
    decoded = pa.ipc.read_record_batch(pa.py_buffer(batch), pa.ipc.read_schema(pa.py_buffer(schema)))
    return decoded.to_pylist()


def _error(stream: str, code: int, message: str) -> types.AppendRowsResponse:
    return types.AppendRowsResponse(write_stream=stream, error=status_pb2.Status(code=code, message=message))


def _status(fault: Fault) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.Code.Value(fault.code), message="the script says so")
    if fault.storage_code:
        detail = types.StorageError(code=fault.storage_code, error_message="details")
        status.details.add().Pack(types.StorageError.pb(detail))
    return status

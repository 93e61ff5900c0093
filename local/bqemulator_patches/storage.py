"""The Storage APIs over gRPC: appends, commits, and reading the result of a query."""

from __future__ import annotations

import functools
from typing import Any

import grpc
import pyarrow as pa
from bqemulator.api.routes import tables
from bqemulator.grpc_api import write_servicer
from bqemulator.grpc_api.read_servicer import BigQueryReadHandler, _parse_table_path
from bqemulator.grpc_api.write_servicer import BigQueryWriteHandler
from bqemulator.jobs.executor import _ANONYMOUS_RESULTS_DATASET, JOB_RESULTS, JOB_SCHEMAS
from bqemulator.storage.sql_identifiers import quoted_schema, quoted_table_ref
from bqemulator.streaming.write_stream import WriteStream, WriteStreamState, WriteStreamType
from google.cloud.bigquery_storage_v1 import types
from google.rpc import status_pb2

from local.bqemulator_patches import rows
from local.bqemulator_patches.engine import transaction
from local.bqemulator_patches.replace import replace


def keep_nested_fields() -> None:
    """Defect: the Write API's view of a table drops the fields of its RECORD columns, and so their values."""
    replace(write_servicer, "_table_arrow_schema", rows.arrow_schema)


def answer_bad_appends() -> None:
    """Defects: an append whose columns cannot be converted ends the stream with UNKNOWN; an unknown column is
    dropped silently. Both must be INVALID_ARGUMENT in the answer, as in BigQuery.
    """
    stock, align = write_servicer._rows_for_request, write_servicer._align_to_target

    @functools.wraps(stock)
    def rows_for_request(*args: Any, **kwargs: Any) -> Any:
        try:
            return stock(*args, **kwargs)
        except (pa.ArrowException, TypeError) as error:
            raise ValueError(f"Rows do not fit the table: {error}") from error

    def align_to_target(data: pa.Table, target: pa.Schema) -> pa.Table:
        extra = sorted(set(data.column_names) - set(target.names))
        if extra:
            raise ValueError(f"Input schema has more fields than BigQuery schema, extra fields: {extra}")
        return align(data, target)

    replace(write_servicer, "_rows_for_request", rows_for_request)
    replace(write_servicer, "_align_to_target", align_to_target)


def report_bad_rows_of_append() -> None:
    """Defect: a null in a REQUIRED column is stored. BigQuery refuses the request and names the rows."""
    stock = BigQueryWriteHandler._perform_append

    def perform_append(
        self: BigQueryWriteHandler, stream: WriteStream, data: pa.Table, offset: int | None, limit: int
    ) -> bytes:
        table = self._ctx.catalog.get_table(stream.project_id, stream.dataset_id, stream.table_id)
        refused = rows.violations(data, table) if table is not None else {}
        if not refused:
            return stock(self, stream, data, offset, limit)
        answer = types.AppendRowsResponse(
            write_stream=stream.name,
            error=status_pb2.Status(
                code=grpc.StatusCode.INVALID_ARGUMENT.value[0],
                message="Errors found while processing rows. "
                f"Please refer to the row_errors field for details. Entity: {stream.name}",
            ),
            row_errors=[
                types.RowError(index=index, code=types.RowError.RowErrorCode.FIELDS_ERROR, message=reason)
                for index, reason in sorted(refused.items())
            ],
        )
        return types.AppendRowsResponse.serialize(answer)

    replace(BigQueryWriteHandler, "_perform_append", perform_append)


def commit_all_or_nothing() -> None:
    """Defects of BatchCommitWriteStreams.

    It writes stream after stream, so that a failure leaves some of them written. It calls a stream that is
    committed already INVALID_STREAM_STATE instead of STREAM_ALREADY_COMMITTED.
    """
    codes = types.StorageError.StorageErrorCode

    def problem(name: str, stream: WriteStream | None) -> types.StorageError | None:
        if stream is None:
            code, message = codes.STREAM_NOT_FOUND, "Stream not found"
        elif stream.stream_type is not WriteStreamType.PENDING:
            code, message = codes.INVALID_STREAM_TYPE, "Only PENDING streams can be committed"
        elif stream.state is WriteStreamState.COMMITTED:
            code, message = codes.STREAM_ALREADY_COMMITTED, "Stream is already committed"
        elif stream.state is not WriteStreamState.FINALIZED:
            code, message = codes.INVALID_STREAM_STATE, "Stream is not finalized"
        else:
            return None
        return types.StorageError(code=code, entity=name, error_message=f"{message}. Entity: {name}")

    def commit(self: BigQueryWriteHandler, request_bytes: bytes, context: grpc.ServicerContext) -> bytes:
        request = types.BatchCommitWriteStreamsRequest.deserialize(request_bytes)
        streams = {name: self.manager.get(name) for name in request.write_streams}
        errors = [error for name, stream in streams.items() if (error := problem(name, stream))]
        response = types.BatchCommitWriteStreamsResponse(stream_errors=errors)
        if not errors:
            with self._write_lock:
                _write_together(self, [stream for stream in streams.values() if stream is not None])
            response.commit_time = write_servicer._now_timestamp()
        return types.BatchCommitWriteStreamsResponse.serialize(response)

    replace(BigQueryWriteHandler, "_handle_batch_commit_write_streams", commit)


def _write_together(handler: BigQueryWriteHandler, streams: list[WriteStream]) -> None:
    with transaction(handler._ctx.engine):
        for stream in streams:
            for data in stream.buffer:
                handler._flush_to_target(stream, data)
    for stream in streams:
        stream.buffer.clear()
        stream.state = WriteStreamState.COMMITTED


def job_of(table_id: str) -> str | None:
    """The id of the query job whose anonymous result table this is."""
    flat = table_id.removeprefix("anon")
    return next((job for job in list(JOB_RESULTS) if job.replace("-", "") == flat), None)


def read_query_results() -> None:
    """Defect: the Storage Read API does not know the anonymous table that holds a query's result.

    Clients fetch large results that way. (tables.get knows it, but only when the job id is a UUID.)
    """
    stock_read, stock_get = (
        BigQueryReadHandler._handle_create_read_session,
        tables._anonymous_result_table_to_rest,
    )

    def create_read_session(
        self: BigQueryReadHandler, request_bytes: bytes, context: grpc.ServicerContext
    ) -> bytes:
        path = types.CreateReadSessionRequest.deserialize(request_bytes).read_session.table
        project, dataset, table_id = _parse_table_path(path) or ("", "", "")
        job = job_of(table_id) if dataset == _ANONYMOUS_RESULTS_DATASET else None
        if job is None:
            return stock_read(self, request_bytes, context)
        engine, target = self._ctx.engine, quoted_table_ref(project, dataset, table_id)
        engine.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted_schema(project, dataset)}")
        engine.connection.register("__result", JOB_RESULTS[job])
        try:
            engine.execute(f"CREATE OR REPLACE TABLE {target} AS SELECT * FROM __result")  # noqa: S608
            return stock_read(self, request_bytes, context)  # it holds the rows in memory from here on
        finally:
            engine.connection.unregister("__result")
            engine.execute(f"DROP TABLE IF EXISTS {target}")

    def anonymous_table(project_id: str, dataset_id: str, table_id: str) -> dict[str, Any]:
        answer = stock_get(project_id, dataset_id, table_id)
        job = job_of(table_id)
        if job is not None:
            answer |= {"numRows": str(JOB_RESULTS[job].num_rows), "schema": {"fields": JOB_SCHEMAS[job]}}
        return answer

    replace(BigQueryReadHandler, "_handle_create_read_session", create_read_session)
    replace(tables, "_anonymous_result_table_to_rest", anonymous_table)


PATCHES = (
    keep_nested_fields,
    answer_bad_appends,
    report_bad_rows_of_append,
    commit_all_or_nothing,
    read_query_results,
)

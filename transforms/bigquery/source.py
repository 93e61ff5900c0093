"""Rows of a BigQuery table, or of a query, as record batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.bigquery import open_session, read_stream, session_schema, table_path, table_reference
from common.clients import BigQueryEndpoints
from common.command import CommandError
from transforms.columnar import present_columns
from transforms.metrics import counter
from transforms.rebatch import BATCH_ROWS, rebatch

ROWS_READ: Final = "rows_read"

_ARROW_TYPES: Final = {
    "BOOL": pa.bool_(),
    "BOOLEAN": pa.bool_(),
    "BYTES": pa.binary(),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "DATE": pa.date32(),
    "DATETIME": pa.timestamp("us"),
    "FLOAT": pa.float64(),
    "FLOAT64": pa.float64(),
    "INTEGER": pa.int64(),
    "INT64": pa.int64(),
    "NUMERIC": pa.decimal128(38, 9),
    "RECORD": pa.struct([]),
    "STRUCT": pa.struct([]),
    "TIME": pa.time64("us"),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}
"""By BigQuery's names, those of its API and those of SQL. Other types are read as text."""


class ReadError(CommandError):
    """BigQuery cannot be read this way; the text names the table, the column or the query."""


class Stream(NamedTuple):
    """One share of a read session, and its Arrow schema as an IPC message.

    Any worker can read it, for at least 6 hours from the creation of the session.
    """

    name: str
    schema: bytes


@dataclass
class ReadBatches(beam.PTransform):
    """Reads a table, a view or a query with the Storage Read API, in Arrow from end to end.

    Input: a pipeline. Output: PCollection of pyarrow.RecordBatch in the table's own schema.

    The session is a snapshot, made when the pipeline runs. Its streams are the unit of parallel work.
    Counter: `rows_read`.

    Attributes:
      table: "PROJECT.DATASET.TABLE"; this or `query`. The Storage Read API reads no views: use a query.
      query: a SQL query. It runs as a query job, whose anonymous result table is then read.
      columns: names of the columns to read; empty reads all. "record.field" selects within a record.
      optional: whether the table, or the query's result, may lack some of `columns`; otherwise that is an
        error.
      row_filter: SQL condition on the table's columns, evaluated by BigQuery, as in `Amount > 100`.
      project: pays for the session and the query; the pipeline's project when None.
      max_streams: upper bound of parallel streams; 0 leaves it to BigQuery, which may give up to 1,000.
      batch_rows: rows of a batch; the last of a stream may have fewer.
      endpoints: where BigQuery answers.

    Raises:
      ValueError: neither or both of `table` and `query`, or a setting that does not go with `query`.
    """

    table: str | None = None
    query: str | None = None
    columns: Sequence[str] = ()
    optional: bool = False
    row_filter: str = ""
    project: str | None = None
    max_streams: int = 0
    batch_rows: int = BATCH_ROWS
    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)

    def __post_init__(self) -> None:
        super().__init__()
        if (self.table is None) == (self.query is None):
            raise ValueError("ReadBatches: expected either table or query")
        if self.table is not None:
            table_path(self.table, self.project)
        if self.max_streams < 0 or self.batch_rows < 1:
            raise ValueError(f"ReadBatches: max_streams={self.max_streams}, batch_rows={self.batch_rows}")

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Session, streams spread over the workers, rows."""
        project = self.project or begin.pipeline.options.view_as(GoogleCloudOptions).project
        return (
            begin
            | "Once" >> beam.Create([replace(self, project=project)], reshuffle=False)
            | "Session" >> beam.FlatMap(create_streams)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadFn(self.endpoints, self.batch_rows)).with_output_types(pa.RecordBatch)
        )


def arrow_schema(columns: Iterable[bigquery.SchemaField]) -> pa.Schema:
    """The schema of the record batches in which a table of these columns is read."""
    return pa.schema([pa.field(column.name, _arrow_type(column)) for column in columns])


def _arrow_type(column: bigquery.SchemaField) -> pa.DataType:
    kind = pa.struct(arrow_schema(column.fields)) if column.fields else _arrow_kind(column)
    return pa.list_(kind) if column.mode == "REPEATED" else kind


def _arrow_kind(column: bigquery.SchemaField) -> pa.DataType:
    return _ARROW_TYPES.get(column.field_type, pa.string())


def create_streams(read: ReadBatches) -> list[Stream]:
    """Opens the read session that `read` describes, after its query if it has one.

    Raises:
      ReadError: no such table or column, a bad filter or query, or no permission.
    """
    table = read.table
    if read.query is not None:
        table = _run_query(read.query, read.endpoints.client(read.project))
    assert table is not None, "__post_init__ checked that there is one of the two"
    project = read.project or table_reference(table).project
    path = table_path(table, read.project)
    client = read.endpoints.read_client()
    try:
        columns = list(read.columns)
        if columns and read.optional:
            # A session tells the columns to whoever may read the table; nothing of it is read, or paid.
            names = session_schema(open_session(client, path, project, max_streams=1)).names
            columns = present_columns(columns, names)
        session = open_session(client, path, project, columns, read.row_filter, read.max_streams)
    except exceptions.GoogleAPICallError as error:
        raise ReadError(_explain(read, table, error)) from error
    finally:
        client.transport.close()
    return [Stream(stream.name, session.arrow_schema.serialized_schema) for stream in session.streams]


def read_batches(client: BigQueryReadClient, stream: Stream) -> Iterator[pa.RecordBatch]:
    """Reads the rows of one stream, as BigQuery sends them.

    Raises:
      ReadError: the stream cannot be read, or is older than its session.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(stream.schema))
    try:
        yield from read_stream(client, stream.name, schema)
    except exceptions.GoogleAPICallError as error:
        raise ReadError(f"{stream.name}: {error}") from error


class _ReadFn(beam.DoFn):
    """A stream in, its record batches out."""

    def __init__(self, endpoints: BigQueryEndpoints, batch_rows: int) -> None:
        self._endpoints = endpoints
        self._batch_rows = batch_rows
        self._rows = counter(ROWS_READ)

    def setup(self) -> None:
        self._client = self._endpoints.read_client()

    def process(self, stream: Stream) -> Iterable[pa.RecordBatch]:
        for batch in rebatch(read_batches(self._client, stream), self._batch_rows):
            self._rows.inc(batch.num_rows)
            yield batch

    def teardown(self) -> None:
        self._client.transport.close()


def _run_query(query: str, client: bigquery.Client) -> str:
    try:
        job = client.query(query)
        job.result(max_results=0)
    except exceptions.GoogleAPICallError as error:
        raise ReadError(f"The query failed: {error.message}\n{query}") from error
    finally:
        client.close()
    destination = job.destination
    return f"{destination.project}.{destination.dataset_id}.{destination.table_id}"


def _explain(read: ReadBatches, table: str, error: exceptions.GoogleAPICallError) -> str:
    what = f"Table {table}" if read.query is None else "The result of the query"
    asked = [f"columns {', '.join(read.columns)}"] if read.columns and not read.optional else []
    asked += [f"row filter {read.row_filter!r}"] if read.row_filter else []
    return f"{what} cannot be read{' with ' if asked else ''}{' and '.join(asked)}: {error.message}"

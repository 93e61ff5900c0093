"""Reads tables of BigQuery through the Storage Read API, in Arrow: names, sessions, streams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, types

from common.names import TABLE

_LEGACY: Final = re.compile(r"^([^.:]+):")


def table_reference(table: str, project: str | None = None) -> bigquery.TableReference:
    """Reads the name of a table: "P.D.T", "P:D.T", or "D.T" in `project`.

    >>> table_reference("my-project:data.table").dataset_id
    'data'

    Raises:
      ValueError: the name has another form.
    """
    try:
        reference = bigquery.TableReference.from_string(_LEGACY.sub(r"\1.", table), default_project=project)
    except ValueError:
        reference = None
    if reference is None or "." in reference.dataset_id:  # four parts name a table of another catalogue
        raise ValueError(f"table: {TABLE.problem(table)}")
    return reference


def table_path(table: str, project: str | None = None) -> str:
    """Returns the name of a table as the Storage APIs take it.

    >>> table_path("my-project.data.table")
    'projects/my-project/datasets/data/tables/table'

    Raises:
      ValueError: the name has another form.
    """
    reference = table_reference(table, project)
    return f"projects/{reference.project}/datasets/{reference.dataset_id}/tables/{reference.table_id}"


def open_session(
    client: BigQueryReadClient,
    table: str,
    project: str,
    columns: Sequence[str] = (),
    row_filter: str = "",
    max_streams: int = 0,
) -> types.ReadSession:
    """Opens a read session. Nothing is paid until a stream of it is read.

    Args:
      client: of the Storage Read API.
      table: as `table_path` gives it.
      project: makes and pays for the read.
      columns: to read; empty reads all.
      row_filter: SQL condition on the rows.
      max_streams: upper bound of parallel streams; 0 leaves it to BigQuery.

    Raises:
      GoogleAPICallError: BigQuery refuses.
    """
    return client.create_read_session(
        parent=f"projects/{project}",
        read_session=types.ReadSession(
            table=table,
            data_format=types.DataFormat.ARROW,
            read_options=types.ReadSession.TableReadOptions(
                selected_fields=list(columns), row_restriction=row_filter
            ),
        ),
        max_stream_count=max_streams,
    )


def session_schema(session: types.ReadSession) -> pa.Schema:
    """Returns the columns that the streams of a session have."""
    return pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))


def read_stream(client: BigQueryReadClient, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Reads one stream, as BigQuery sends it. Resumes where it was when the connection breaks.

    Raises:
      GoogleAPICallError: the stream cannot be read, or is older than its session.
    """
    for answer in client.read_rows(name):
        data = answer.arrow_record_batch.serialized_record_batch
        if data:
            yield pa.ipc.read_record_batch(pa.py_buffer(data), schema)

"""Reads a whole BigQuery table through the Storage Read API, in Arrow."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
from google.cloud.bigquery_storage import BigQueryReadClient, DataFormat, ReadSession

from common.google import ERRORS, explain

SCHEME = "bigquery://"


def read_table(
    name: str,
    columns: Sequence[str],
    optional: str | None = None,
    client: BigQueryReadClient | None = None,
    billing_project: str | None = None,
) -> pa.Table:
    """Reads all rows of some columns of a table.

    Args:
      name: project.dataset.table.
      columns: required columns.
      optional: one more column, read where the table has it.
      client: of the Storage Read API; from the environment's credentials when None.
      billing_project: the project that pays for the read. When None, it is the environment's default
        project, or without one that of the table. A public table needs one of yours.

    Raises:
      ValueError: `name` does not have three parts, a column is missing, or BigQuery refuses the read.
    """
    parts = name.split(".")
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"{SCHEME}{name}: expected {SCHEME}project.dataset.table")
    project, dataset, table = parts
    parent = f"projects/{billing_project or os.environ.get('GOOGLE_CLOUD_PROJECT') or project}"
    path = f"projects/{project}/datasets/{dataset}/tables/{table}"
    try:
        client = client or BigQueryReadClient()
        # A session without a selection answers the schema; it costs nothing as long as nobody reads from it.
        present = _schema(_session(client, parent, path, [])).names
        missing = [column for column in columns if column not in present]
        if missing:
            raise ValueError(f"{SCHEME}{name}: column(s) missing: {', '.join(missing)}")
        wanted = [*columns, *([optional] if optional and optional in present else [])]
        return _read(client, _session(client, parent, path, wanted))
    except ERRORS as error:
        problem = explain(error)
        remedy = ""
        if problem.kind == "forbidden":
            remedy = (
                f". The read is made and paid for in {parent}: set GOOGLE_CLOUD_PROJECT to a project in "
                "which you have roles/bigquery.readSessionUser, and have the table shared with you"
            )
        raise ValueError(f"{SCHEME}{name}: {problem.text}{remedy}") from error


def _session(client: BigQueryReadClient, parent: str, table: str, columns: Sequence[str]) -> ReadSession:
    return client.create_read_session(
        parent=parent,
        read_session=ReadSession(
            table=table,
            data_format=DataFormat.ARROW,
            read_options=ReadSession.TableReadOptions(selected_fields=list(columns)),
        ),
        max_stream_count=1,
    )


def _schema(session: ReadSession) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))


def _read(client: BigQueryReadClient, session: ReadSession) -> pa.Table:
    schema = _schema(session)
    batches = [
        pa.ipc.read_record_batch(pa.py_buffer(response.arrow_record_batch.serialized_record_batch), schema)
        for stream in session.streams
        for response in client.read_rows(stream.name)
        if response.arrow_record_batch.serialized_record_batch
    ]
    return pa.Table.from_batches(batches, schema)

"""Reads a whole BigQuery table through the Storage Read API, in Arrow."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
from google.api_core.exceptions import Forbidden, GoogleAPICallError
from google.auth.exceptions import GoogleAuthError
from google.cloud.bigquery_storage import BigQueryReadClient, DataFormat, ReadSession

from common.names import TABLE

SCHEME = "bigquery://"


def read_table(
    name: str,
    columns: Sequence[str],
    optional: str | None = None,
    client: BigQueryReadClient | None = None,
    billing_project: str | None = None,
) -> pa.Table:
    """All rows of some columns of a table.

    Args:
      name: project.dataset.table.
      columns: required columns.
      optional: one more column, read where the table has it.
      client: of the Storage Read API; from the environment's credentials when None.
      billing_project: the project that pays for the read; the environment's default project when None, or
        else the table's own. A public table needs one of yours.

    Raises:
      ValueError: `name` breaks a rule, a column is missing, or BigQuery refuses the read.
    """
    project, dataset, table = TABLE.split(TABLE.check(name, f"{SCHEME}{name}")).values()
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
    except Forbidden as e:
        raise ValueError(
            f"{SCHEME}{name}: {e}. The read is made and paid for in {parent}: set GOOGLE_CLOUD_PROJECT to a "
            "project in which you have roles/bigquery.readSessionUser, and have the table shared with you"
        ) from e
    except (GoogleAPICallError, GoogleAuthError) as e:
        raise ValueError(f"{SCHEME}{name}: {e}") from e


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

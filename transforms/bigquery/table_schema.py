"""Compares the rows of a sink with the table as BigQuery describes it. No Beam here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient, types

from common.retry import LOOK_SECONDS
from transforms.bigquery.answers import TRANSIENT, transport_status
from transforms.schema import to_bigquery

_TAKEN_BY: Final = {
    "STRING": {"STRING", "JSON", "GEOGRAPHY"},
    "FLOAT64": {"DOUBLE"},
    "RECORD": {"STRUCT", "RANGE"},
}
"""Types of columns that take a type of rows, where it is not the one of the same name."""


def find_mismatch(client: BigQueryWriteClient, stream: str, schema: pa.Schema) -> str | None:
    """Asks for the table of a stream; returns the reason why it takes no row of `schema` at all, if any.

    Where the service does not describe the table, the rows count as being at fault.

    Raises:
      GoogleAPICallError: the service is not available.
    """
    request = types.GetWriteStreamRequest(name=stream, view=types.WriteStreamView.FULL)
    try:
        table = client.get_write_stream(request, retry=None, timeout=LOOK_SECONDS).table_schema
    except exceptions.GoogleAPICallError as error:
        if transport_status(error).code in TRANSIENT:
            raise
        return None
    return mismatch(table.fields, schema) if table.fields else None


def mismatch(table: Iterable[types.TableFieldSchema], schema: pa.Schema) -> str | None:
    """Returns the reason why a table takes no row of `schema`, or None.

    >>> column = types.TableFieldSchema(name="n", type_="INT64", mode="NULLABLE")
    >>> mismatch([column], pa.schema([("n", pa.string())]))
    'column n: the table has INT64, the rows have STRING'
    >>> mismatch([column], pa.schema([("N", pa.int64())]))
    """
    try:
        wanted = to_bigquery(schema)
    except TypeError:  # a type that only the service can judge
        return None
    return _mismatch(list(table), wanted, "")


def _mismatch(
    table: Iterable[types.TableFieldSchema], rows: Iterable[bigquery.SchemaField], parent: str
) -> str | None:
    columns = {column.name.lower(): column for column in table}
    for field in rows:
        name, column = f"{parent}{field.name}", columns.pop(field.name.lower(), None)
        if column is None:
            return f"column {name}: the table does not have it"
        kind, repeated = column.type_.name, column.mode == types.TableFieldSchema.Mode.REPEATED
        if kind not in _TAKEN_BY.get(field.field_type, {field.field_type}) or repeated != (
            field.mode == "REPEATED"
        ):
            there, here = ("ARRAY of " * repeated, "ARRAY of " * (field.mode == "REPEATED"))
            return f"column {name}: the table has {there}{kind}, the rows have {here}{field.field_type}"
        nested = _mismatch(column.fields, field.fields, f"{name}.") if kind == "STRUCT" else None
        if nested is not None:
            return nested
    for column in columns.values():
        if column.mode == types.TableFieldSchema.Mode.REQUIRED:
            return f"column {parent}{column.name}: the table requires it, the rows do not have it"
    return None

"""Rows on their way into a table, and what BigQuery refuses in them. Used by several patches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes.tabledata import _build_arrow_schema, _fields_raw_from_schema
from bqemulator.api.routes.tables import _field_to_rest
from bqemulator.catalog.models import TableFieldSchema, TableMeta
from bqemulator.storage.arrow_bridge import bq_rows_to_arrow
from bqemulator.storage.sql_identifiers import quoted_table_ref
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# BigQuery's range of TIMESTAMP: years 1 to 9999.
_FIRST = pa.scalar(datetime(1, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
_LAST = pa.scalar(datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), pa.timestamp("us", tz="UTC"))


class RowError(ValueError):
    """A row that BigQuery would refuse, with the column at fault."""

    def __init__(self, location: str, message: str) -> None:
        super().__init__(message)
        self.location = location


def arrow_schema(table: TableMeta) -> pa.Schema:
    """The Arrow schema of a table, nested fields included."""
    fields: Any = table.schema_.fields
    raw: Any = _fields_raw_from_schema(fields)
    return _build_arrow_schema(raw)


def _value(field: TableFieldSchema, value: Any, path: str) -> Any:
    """A JSON value prepared for its column; raises RowError where BigQuery would refuse it."""
    if field.mode == "REPEATED":
        if value is None:
            return []
        if not isinstance(value, list):
            raise RowError(path, f"Repeated field must be imported as a JSON array. Field: {path}.")
        return [_scalar(field, item, path) for item in value]
    if value is None:
        if field.mode == "REQUIRED":
            raise RowError(path, f"Missing required field: {path}.")
        return None
    if isinstance(value, list) and field.type != "JSON":
        raise RowError(path, f"Array specified for non-repeated field: {path}.")
    return _scalar(field, value, path)


def _scalar(field: TableFieldSchema, value: Any, path: str) -> Any:
    kind = field.type.upper()
    if kind in ("RECORD", "STRUCT"):
        if not isinstance(value, dict):
            raise RowError(path, f"This field: {path} is a record.")
        return _record(field.fields, value, f"{path}.", ignore_unknown=False)
    if kind == "JSON":
        return value if isinstance(value, str) and _is_json(value) else json.dumps(value)
    if isinstance(value, dict):
        raise RowError(path, f"This field: {path} is not a record.")
    try:
        if kind == "TIMESTAMP" and not isinstance(value, bool):
            return _timestamp(value)
        if kind in ("BOOL", "BOOLEAN") and str(value).lower() not in ("true", "false", "1", "0"):
            raise ValueError(value)
        if kind in ("INT64", "INTEGER") and isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
    except (ValueError, OverflowError) as error:
        raise RowError(path, f"Cannot convert value to {kind.lower()} (bad value): {value}") from error
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _timestamp(value: Any) -> Any:
    """Seconds since 1970, as a number or as text, become a datetime; other text is left for the parser."""
    try:
        seconds = float(value)
    except ValueError:
        return value
    return _EPOCH + timedelta(seconds=seconds)


def _record(
    fields: Sequence[TableFieldSchema], row: dict[str, Any], prefix: str, *, ignore_unknown: bool
) -> dict[str, Any]:
    by_name = {field.name.lower(): field for field in fields}  # BigQuery's column names ignore case
    if not ignore_unknown:
        for name in row:
            if name.lower() not in by_name:
                raise RowError(f"{prefix}{name}", f"no such field: {prefix}{name}.")
    given = {name.lower(): value for name, value in row.items()}
    return {
        field.name: _value(field, given.get(lower), f"{prefix}{field.name}")
        for lower, field in by_name.items()
    }


def _one(row: dict[str, Any], table: TableMeta, schema: pa.Schema, ignore_unknown: bool) -> dict[str, Any]:
    """One row, prepared and known to convert. Raises RowError."""
    prepared = _record(table.schema_.fields, row, "", ignore_unknown=ignore_unknown)
    for field in schema:
        try:
            bq_rows_to_arrow([{field.name: prepared[field.name]}], pa.schema([field]))
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            kind = next(f.type for f in table.schema_.fields if f.name == field.name).lower()
            message = f"Cannot convert value to {kind} (bad value): {row.get(field.name)}"
            raise RowError(field.name, message) from error
    return prepared


def convert(
    source: Sequence[dict[str, Any]], table: TableMeta, *, ignore_unknown: bool
) -> tuple[pa.Table | None, list[dict[str, Any]]]:
    """JSON rows as an Arrow table, and the `insertErrors` of those that do not fit."""
    schema = arrow_schema(table)
    try:
        prepared = [_record(table.schema_.fields, row, "", ignore_unknown=ignore_unknown) for row in source]
        return bq_rows_to_arrow(prepared, schema), []
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        pass  # at least one row is bad: find out which, one at a time
    good, errors = [], []
    for index, row in enumerate(source):
        try:
            good.append(_one(row, table, schema, ignore_unknown))
        except RowError as error:
            detail = {"reason": "invalid", "location": error.location, "debugInfo": "", "message": str(error)}
            errors.append({"index": index, "errors": [detail]})
    return (bq_rows_to_arrow(good, schema) if good else None), errors


def violations(data: pa.Table, table: TableMeta) -> dict[int, str]:
    """The rows of an Arrow table that BigQuery would refuse: index to reason."""
    refused: dict[int, str] = {}
    for field in table.schema_.fields:
        column = data.column(field.name)
        if field.mode == "REQUIRED" and column.null_count:
            for index in pc.indices_nonzero(pc.is_null(column)).to_pylist():
                refused.setdefault(index, f"Field {field.name}: Required field is missing or null")
        if pa.types.is_timestamp(column.type) and len(column):
            outside = pc.or_(pc.less(column, _FIRST), pc.greater(column, _LAST))
            for index in pc.indices_nonzero(pc.fill_null(outside, False)).to_pylist():
                refused.setdefault(index, f"Field {field.name}: Timestamp is out of the range of BigQuery")
    return refused


def fit(data: pa.Table, table: TableMeta) -> pa.Table:
    """Arrow rows in the columns of a table, matched by name; what is missing is null.

    Raises:
      ValueError: a column is unknown or of another type, or a row is one that BigQuery would refuse.
    """
    schema = arrow_schema(table)
    extra = sorted(set(data.column_names) - set(schema.names))
    if extra:
        raise ValueError(f"No such field: {', '.join(extra)}")
    columns = [
        data.column(field.name).cast(field.type)
        if field.name in data.column_names
        else pa.nulls(data.num_rows, field.type)
        for field in schema
    ]
    fitted = pa.table(columns, schema=schema)
    refused = violations(fitted, table)
    if refused:
        index, reason = next(iter(refused.items()))
        raise ValueError(f"Row {index}: {reason}")
    return fitted


def append(ctx: AppContext, table: TableMeta, data: pa.Table) -> None:
    """Insert rows that are already in the table's Arrow schema. The caller holds the write lock."""
    name = f"__rows_{uuid4().hex}"
    connection = ctx.engine.connection
    connection.register(name, data)
    try:
        target = quoted_table_ref(table.project_id, table.dataset_id, table.table_id)
        columns = ", ".join(f'"{field}"' for field in data.column_names)
        ctx.engine.execute(f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {name}")  # noqa: S608
    finally:
        connection.unregister(name)
    current = ctx.catalog.get_table(table.project_id, table.dataset_id, table.table_id) or table
    ctx.catalog.update_table(current.model_copy(update={"num_rows": current.num_rows + data.num_rows}))
    ctx.snapshots.record_change(table.project_id, table.dataset_id, table.table_id)


def add_columns(ctx: AppContext, before: TableMeta, after: TableMeta) -> None:
    """Add the columns that `after` has and `before` lacks to the stored table."""
    known = {field.name for field in before.schema_.fields}
    new = [_field_to_rest(field) for field in after.schema_.fields if field.name not in known]
    target = quoted_table_ref(after.project_id, after.dataset_id, after.table_id)
    for name, kind in bq_schema_to_duckdb_columns(new):
        ctx.engine.execute(f'ALTER TABLE {target} ADD COLUMN "{name}" {kind}')

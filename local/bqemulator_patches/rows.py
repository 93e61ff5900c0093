"""Rows on their way into a table, and what BigQuery refuses in them. Used by several patches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes.tabledata import _build_arrow_schema, _fields_raw_from_schema
from bqemulator.api.routes.tables import _field_to_rest
from bqemulator.catalog.models import TableFieldSchema, TableMeta
from bqemulator.storage import type_map
from bqemulator.storage.arrow_bridge import bq_rows_to_arrow
from bqemulator.storage.sql_identifiers import quoted_table_ref

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# BigQuery's range of TIMESTAMP and DATETIME: years 1 to 9999.
_RANGE = (datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))


# Text forms of TIMESTAMP: https://cloud.google.com/bigquery/docs/schema-detect#date_and_time_values
_DATE = r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})"
_TIME = r"[ Tt](\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.(?P<fraction>\d+))?)?"
_ZONE = r" *(?P<zone>[Zz]|[+-]\d{1,2}(?::?\d{2})?|UTC|[A-Za-z]+/[A-Za-z_/]+)?"
_MOMENT = re.compile(f"{_DATE}(?:{_TIME})?{_ZONE}")
DATE_AND_TIME = re.compile(f"{_DATE}{_TIME}{_ZONE}$")


class RowError(ValueError):
    """A row that BigQuery would refuse, with the column at fault."""

    def __init__(self, location: str, message: str) -> None:
        super().__init__(message)
        self.location = location


def wire_type(kind: str) -> str:
    """The name that BigQuery's REST API gives a type: INTEGER for INT64."""
    return str(type_map._BQ_STANDARD_TO_WIRE.get(kind.upper(), kind.upper()))


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
            return timestamp(value)
        if kind == "DATETIME":
            return civil_time(value)
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


def timestamp(value: Any) -> datetime:
    """A TIMESTAMP from text in one of BigQuery's forms, or from seconds since 1970, as a number or as text.

    Raises:
      ValueError: it is neither.
    """
    match = _MOMENT.fullmatch(str(value).strip())
    if match is None:
        return _EPOCH + timedelta(seconds=float(value))
    return _civil(match).replace(tzinfo=_zone(match["zone"])).astimezone(UTC)


def civil_time(value: Any) -> datetime:
    """A DATETIME from text. Raises ValueError where it has a time zone, or is no date and time."""
    match = _MOMENT.fullmatch(str(value).strip())
    if match is None or match["zone"]:
        raise ValueError(value)
    return _civil(match)


def _civil(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(part or 0) for part in match.group(1, 2, 3, 4, 5, 6))
    micros = int((match["fraction"] or "0")[:6].ljust(6, "0"))
    return datetime(year, month, day, hour, minute, second, micros)


def _zone(name: str | None) -> tzinfo:
    if name is None or name.upper() in ("Z", "UTC"):
        return UTC
    if name[0] not in "+-":
        try:
            return ZoneInfo(name)
        except (KeyError, OSError) as error:
            raise ValueError(f"no such time zone: {name}") from error
    digits = name[1:].replace(":", "")
    hours, minutes = (digits, "0") if len(digits) < 3 else (digits[:-2], digits[-2:])
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if name[0] == "-" else offset)


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
            zone = UTC if column.type.tz else None
            first, last = (pa.scalar(limit.replace(tzinfo=zone), column.type) for limit in _RANGE)
            outside = pc.or_(pc.less(column, first), pc.greater(column, last))
            for index in pc.indices_nonzero(pc.fill_null(outside, False)).to_pylist():
                refused.setdefault(index, f"Field {field.name}: Timestamp is out of the range of BigQuery")
    return refused


def fit(data: pa.Table, table: TableMeta) -> pa.Table:
    """Arrow rows in the columns of a table, matched by name; what is missing is null.

    Raises:
      ValueError: a column is unknown or of another type, or a row is one that BigQuery would refuse.
    """
    schema = arrow_schema(table)
    given = {name.lower(): name for name in data.column_names}
    extra = sorted(set(given) - {name.lower() for name in schema.names})
    if extra:
        raise ValueError(f"No such field: {', '.join(given[name] for name in extra)}")
    columns = [
        # Nanoseconds become microseconds.
        pc.cast(
            data.column(given[field.name.lower()]),
            options=pc.CastOptions(field.type, allow_time_truncate=True),
        )
        if field.name.lower() in given
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
    insert(ctx, table, data)
    current = ctx.catalog.get_table(table.project_id, table.dataset_id, table.table_id) or table
    ctx.catalog.update_table(current.model_copy(update={"num_rows": current.num_rows + data.num_rows}))
    ctx.snapshots.record_change(table.project_id, table.dataset_id, table.table_id)


def insert(ctx: AppContext, table: TableMeta, data: pa.Table) -> None:
    """Insert rows by the names of their columns, and leave the catalog as it is."""
    name = f"__rows_{uuid4().hex}"
    connection = ctx.engine.connection
    connection.register(name, data)
    try:
        columns = ", ".join(f'"{field}"' for field in data.column_names)
        ctx.engine.execute(
            f"INSERT INTO {_reference(table)} ({columns}) SELECT {columns} FROM {name}"  # noqa: S608
        )
    finally:
        connection.unregister(name)


def create(ctx: AppContext, table: TableMeta) -> None:
    """Make the stored table, without rows."""
    fields = [_field_to_rest(field) for field in table.schema_.fields]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in type_map.bq_schema_to_duckdb_columns(fields))
    ctx.engine.execute(f"CREATE TABLE {_reference(table)} ({columns})")


def drop(ctx: AppContext, table: TableMeta) -> None:
    """Remove the stored table, and leave the catalog as it is."""
    ctx.engine.execute(f"DROP TABLE {_reference(table)}")


def add_columns(ctx: AppContext, before: TableMeta, after: TableMeta) -> None:
    """Add the columns that `after` has and `before` lacks to the stored table."""
    known = {field.name for field in before.schema_.fields}
    new = [_field_to_rest(field) for field in after.schema_.fields if field.name not in known]
    for name, kind in type_map.bq_schema_to_duckdb_columns(new):
        ctx.engine.execute(f'ALTER TABLE {_reference(after)} ADD COLUMN "{name}" {kind}')


def count(ctx: AppContext, table: TableMeta) -> int:
    """The rows that are stored. The catalog does not see what SQL statements insert and delete."""
    row = ctx.engine.execute(f"SELECT count(*) FROM {_reference(table)}").fetchone()  # noqa: S608
    return int(row[0]) if row else 0


def stored(ctx: AppContext, table: TableMeta) -> pa.Table:
    """The rows of a table."""
    return ctx.engine.fetch_arrow(f"SELECT * FROM {_reference(table)}")  # noqa: S608


def _reference(table: TableMeta) -> str:
    return quoted_table_ref(table.project_id, table.dataset_id, table.table_id)

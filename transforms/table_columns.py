"""The columns of a table of BigQuery beside those that its rows have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
from google.cloud import bigquery

from transforms.schema import to_bigquery

_SYNONYMS: Final = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "STRUCT": "RECORD"}


class TableError(RuntimeError):
    """A table exists and cannot take the rows; the text names table and column."""


def missing_columns(
    existing: Sequence[bigquery.SchemaField], schema: pa.Schema
) -> list[bigquery.SchemaField]:
    """Returns the columns of `schema` that an existing table lacks.

    Raises:
      TableError: a column is there with another type, or with a mode that cannot take the rows.
    """
    present = {field.name.lower(): field for field in existing}
    missing = []
    for wanted in to_bigquery(schema):
        field = present.get(wanted.name.lower())
        if field is None:
            missing.append(wanted)
        elif column_kind(field) != column_kind(wanted):
            raise TableError(
                f"column {wanted.name!r} is {column_kind(field)}, the rows have {column_kind(wanted)}"
            )
    return missing


def with_members(existing: Sequence[bigquery.SchemaField], schema: pa.Schema) -> list[bigquery.SchemaField]:
    """Returns the columns of a table, with the members that its records lack of those of `schema`.

    >>> old = pa.schema([("top", pa.struct([("feature", pa.string())]))])
    >>> new = pa.schema([("top", pa.struct([("feature", pa.string()), ("value", pa.string())]))])
    >>> [member.name for member in with_members(to_bigquery(old), new)[0].fields]
    ['feature', 'value']
    """
    wanted = {field.name.lower(): field for field in to_bigquery(schema)}
    columns = []
    for field in existing:
        there = {member.name.lower() for member in field.fields}
        members = wanted[field.name.lower()].fields if there and field.name.lower() in wanted else ()
        lacks = [member.to_api_repr() for member in members if member.name.lower() not in there]
        content = dict(field.to_api_repr())  # not a copy of its own
        if lacks:
            content["fields"] = [*content["fields"], *lacks]
        columns.append(bigquery.SchemaField.from_api_repr(content) if lacks else field)
    return columns


def column_kind(field: bigquery.SchemaField) -> str:
    """The type of a column with its mode and its fields, the same for every synonym of the type."""
    kind = _SYNONYMS.get(field.field_type.upper(), field.field_type.upper())
    repeated = "REPEATED " if field.mode == "REPEATED" else ""
    inner = f"<{', '.join(f'{sub.name} {column_kind(sub)}' for sub in field.fields)}>" if field.fields else ""
    return f"{repeated}{kind}{inner}"

"""Prepares record batches for BigQuery: right columns, right types, no oversized requests. No Beam here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from common.limits import MAX_APPEND_BYTES
from transforms.dead_letter import dead_letters
from transforms.json_rows import row_dicts

MAX_REQUEST_BYTES: Final = MAX_APPEND_BYTES
"""Bytes of rows in one request. `transforms.dead_letter` cuts letters so that each of them fits."""

MAX_REQUEST_ROWS: Final = 50_000
"""Rows in one request. BigQuery names no such limit; it bounds how many rows a single bad one delays."""

STAGE: Final = "sink"


class SchemaMismatchError(ValueError):
    """Rows and table do not fit together. No single row is at fault, so there is no dead letter."""


class Refused(NamedTuple):
    """Rows that do not reach the table: `rows` and, for each of them, the reason."""

    rows: pa.RecordBatch
    reasons: list[str]


class Checked(NamedTuple):
    """A batch divided into the rows that may be sent and those that BigQuery refuses."""

    accepted: pa.RecordBatch
    refused: Refused


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Selects the columns of `schema`, in its order and types, from a batch that may have more.

    >>> batch = pa.RecordBatch.from_pydict({"extra": [1], "id": ["a"]})
    >>> conform(batch, pa.schema([("id", pa.string())])).schema.names
    ['id']

    A null list becomes an empty one: BigQuery has no null in a REPEATED column and refuses the row.

    Raises:
      SchemaMismatchError: a column is missing or cannot be cast; the text names it.
    """
    columns = []
    for field in schema:
        position = batch.schema.get_field_index(field.name)
        if position < 0:
            raise SchemaMismatchError(
                f"Column {field.name!r} is missing from the rows; they have {batch.schema.names}"
            )
        column = batch.column(position)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except pa.ArrowInvalid as error:
                raise SchemaMismatchError(f"Column {field.name!r}: {error}") from error
            except pa.ArrowNotImplementedError as error:
                raise SchemaMismatchError(
                    f"Column {field.name!r} is {column.type}, the table wants {field.type}"
                ) from error
        if pa.types.is_list(field.type) and column.null_count:
            column = pc.coalesce(column, pa.scalar([], field.type))
        columns.append(column)
    # The metadata (descriptions) stays here: the service has no use for it.
    return pa.RecordBatch.from_arrays(columns, schema=_bare(schema))


def without_rows(batch: pa.RecordBatch, errors: Mapping[int, str]) -> Checked:
    """Divides a batch at the rows that the service named: `errors` is row number to reason.

    Raises:
      ValueError: a row number lies outside the batch.
    """
    if not errors or min(errors) < 0 or max(errors) >= batch.num_rows:
        raise ValueError(f"Row numbers {sorted(errors)} in a request of {batch.num_rows} rows")
    rows = sorted(errors)
    keep = np.ones(batch.num_rows, bool)
    keep[rows] = False
    return Checked(
        batch.filter(pa.array(keep)),
        Refused(batch.take(pa.array(rows, pa.int64())), [errors[i] for i in rows]),
    )


def split_requests(
    batch: pa.RecordBatch, max_bytes: int = MAX_REQUEST_BYTES, max_rows: int = MAX_REQUEST_ROWS
) -> Iterator[pa.RecordBatch]:
    """Slices of the batch, in order and of about equal size, that fit into one request each.

    A single row over `max_bytes` comes as a slice of one row: `oversized` recognises it.

    >>> batch = pa.RecordBatch.from_pydict({"n": range(5)})
    >>> [part.num_rows for part in split_requests(batch, max_rows=2)]
    [1, 2, 2]
    """
    if batch.num_rows == 0:
        return
    parts = max(
        -(-batch.num_rows // max_rows),
        -(-serialized_size(batch) // max_bytes),
    )
    if parts <= 1 or batch.num_rows == 1:
        yield batch
        return
    edges = np.linspace(0, batch.num_rows, min(parts, batch.num_rows) + 1, dtype=int)
    for start, stop in pairwise(edges):
        # Rows differ in size, so a slice may still be too large.
        yield from split_requests(batch.slice(start, stop - start), max_bytes, max_rows)


def oversized(batch: pa.RecordBatch, max_bytes: int = MAX_REQUEST_BYTES) -> str | None:
    """Returns the reason to refuse a slice of `split_requests` that cannot be sent, or None."""
    size = serialized_size(batch)
    return f"row: {size} bytes, over the limit of {max_bytes} for one request" if size > max_bytes else None


def serialized_size(batch: pa.RecordBatch) -> int:
    """Bytes of the batch as one Arrow IPC message; a slice counts its own rows only."""
    return int(pa.ipc.get_record_batch_size(batch))


def refused_rows(refused: Refused, table: str, timestamp: int | None = None) -> pa.RecordBatch:
    """Makes dead letters of rows that the sink could not store, with the row as JSON for payload."""
    return dead_letters(
        [orjson.dumps(row) for row in row_dicts(refused.rows)],
        refused.reasons,
        STAGE,
        [{"table": table}] * len(refused.reasons),
        timestamp=timestamp,
    )


def _bare(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.remove_metadata() for field in schema])

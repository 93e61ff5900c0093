"""Cuts and joins record batches to a useful size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from common.limits import MAX_BATCH_BYTES

BATCH_ROWS: Final = 16 * 1024
"""Rows in the batches of a columnar source: enough that the cost of a batch at every step vanishes."""


def rebatch(
    batches: Iterable[pa.RecordBatch], rows: int = BATCH_ROWS, max_bytes: int = MAX_BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Cuts and joins batches to `rows` rows each, in order.

    The last one may have fewer rows, and so has one that would be larger than `max_bytes`; a larger row
    stands alone. It copies no rows that it can slice.

    >>> batches = [pa.RecordBatch.from_pydict({"n": [1, 2, 3]}), pa.RecordBatch.from_pydict({"n": [4, 5]})]
    >>> [batch.num_rows for batch in rebatch(batches, 2)]
    [2, 2, 1]

    Raises:
      ValueError: `rows` is less than 1.
    """
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            part, part_bytes = _first_rows(batch.slice(start, rows - count), max_bytes - size)
            if not (part.num_rows or held):
                part = batch.slice(start, 1)
                part_bytes = _decoded_bytes(part)
            held.append(part)
            start += part.num_rows
            count += part.num_rows
            size += part_bytes
            if count == rows or start < batch.num_rows:  # full, by rows or by bytes
                joined = join(held)
                held, count, size = [], 0, 0
                yield joined
    if held:
        yield join(held)


def _first_rows(batch: pa.RecordBatch, max_bytes: int) -> tuple[pa.RecordBatch, int]:
    """Returns the rows of the beginning that have at most `max_bytes`, and their bytes.

    They are all, a half, a quarter ..., none.
    """
    while (size := _decoded_bytes(batch)) > max_bytes and batch.num_rows:
        batch = batch.slice(0, batch.num_rows // 2)
    return batch, size


def _decoded_bytes(batch: pa.RecordBatch) -> int:
    """Returns the bytes of the rows once their dictionaries are decoded; a slice has the whole dictionary."""
    encoded = [i for i, kind in enumerate(batch.schema.types) if pa.types.is_dictionary(kind)]
    total = batch.nbytes
    for column in map(batch.column, encoded):
        total += column.indices.nbytes - column.nbytes
        if pa.types.is_string(column.type.value_type) or pa.types.is_large_string(column.type.value_type):
            total += pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    return total


def join(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins one or more batches of one schema to one batch. A single one is not copied.

    Raises:
      ArrowInvalid: the texts of a column have more than 2 GiB in all, which one batch cannot hold.
    """
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)

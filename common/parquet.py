"""Writes Parquet files of record batches, in row groups of a useful size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS: Final = 64 * 1024
ROW_GROUP_BYTES: Final = 64 * 1024 * 1024
"""Bytes of rows, uncompressed, that fill a row group whatever their number."""

_ID: Final = "transaction_id"
"""No two rows share it: neither a dictionary nor statistics of it are worth their time."""
_SAMPLED_ROWS: Final = 1000
_WORTH: Final = 0.6
"""Share of their bytes that compressed ids and fractions may have: most shrink by a quarter at best. It would
take a third of the time of a file of scores, half of it with all outputs."""


class RowGroupWriter:
    """Gathers record batches, however small, and writes them as row groups.

    Args:
      file: to write; `close` closes it.
      schema: of all batches.
      codec: compresses the pages of the columns that shrink enough.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema, codec: str = "snappy") -> None:
        self._file = file
        self._schema = schema
        self._codec = codec
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows."""
        self._held.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes the rest and completes the file."""
        self._flush()
        (self._writer or self._open(self._schema.empty_table())).close()
        self._file.close()

    def _open(self, rows: pa.Table) -> pq.ParquetWriter:
        """Begins the file, in the way that suits its first rows."""
        sample = rows.slice(0, _SAMPLED_ROWS)
        columns = zip(self._schema.names, sample.columns, strict=True)
        leaves = [leaf for name, column in columns for leaf in _leaves(name, column.combine_chunks())]
        return pq.ParquetWriter(
            self._file,
            self._schema,
            compression={
                path: self._codec if _is_worth(path, values, self._codec) else "none"
                for path, values in leaves
            },
            # Of texts. A dictionary of all numbers costs a third more time.
            use_dictionary=[
                path for path, values in leaves if path != _ID and pa.types.is_string(values.type)
            ],
            # Readers skip row groups by them. Of ids and lists they say nothing, at a tenth of the time.
            write_statistics=[
                field.name
                for field in self._schema
                if field.name != _ID and not pa.types.is_nested(field.type)
            ],
        )

    def _flush(self) -> None:
        if self._rows:
            rows = pa.Table.from_batches(self._held, self._schema)
            self._writer = self._writer or self._open(rows)
            self._writer.write_table(rows)
        self._held, self._rows, self._bytes = [], 0, 0


def _leaves(path: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Yields the Parquet columns of a field, and their values."""
    if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        yield from _leaves(f"{path}.list.element", values.flatten())
    elif pa.types.is_struct(values.type):
        for member, inner in zip(values.type, values.flatten(), strict=True):
            yield from _leaves(f"{path}.{member.name}", inner)
    else:
        yield path, values


def _is_worth(path: str, values: pa.Array, codec: str) -> bool:
    """Tells whether compression is worth its time for a column that begins with these values."""
    if codec == "none":
        return False
    if path == _ID:
        content = "".join(map(str, values.to_pylist())).encode()
    elif pa.types.is_floating(values.type):
        content = values.drop_null().to_numpy().tobytes()
    else:
        return True
    return len(pa.compress(content, codec, asbytes=True)) <= _WORTH * len(content) if content else True

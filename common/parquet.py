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
_SAMPLED_IDS: Final = 1000
_WORTH: Final = 0.8
"""Share of their bytes that compressed ids may have: random ones hardly shrink, and it takes 7 % of a job."""


class RowGroupWriter:
    """Gathers record batches, however small, and writes them as row groups.

    Args:
      file: to write; `close` closes it.
      schema: of all batches.
      codec: compresses the pages.
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
        (self._writer or self._open()).close()
        self._file.close()

    def _open(self) -> pq.ParquetWriter:
        """Begins the file, in the way that suits its first rows."""
        leaves = [leaf for field in self._schema for leaf in _leaves(field.name, field.type)]
        packs_ids = _ID in self._schema.names and self._held and _shrink(self._held[0][_ID], self._codec)
        return pq.ParquetWriter(
            self._file,
            self._schema,
            compression={path: self._codec if path != _ID or packs_ids else "none" for path, _ in leaves},
            # Of texts. A dictionary of all numbers costs a third more time.
            use_dictionary=[path for path, kind in leaves if path != _ID and pa.types.is_string(kind)],
            # Readers skip row groups by them. Of ids and lists they say nothing, at a tenth of the time.
            write_statistics=[
                field.name
                for field in self._schema
                if field.name != _ID and not pa.types.is_nested(field.type)
            ],
        )

    def _flush(self) -> None:
        if self._rows:
            self._writer = self._writer or self._open()
            self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held, self._rows, self._bytes = [], 0, 0


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yields the Parquet columns of a field, and their types."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for member in kind:
            yield from _leaves(f"{path}.{member.name}", member.type)
    else:
        yield path, kind


def _shrink(ids: pa.Array, codec: str) -> bool:
    """Tells whether compression is worth its time for ids like these."""
    text = "".join(str(value) for value in ids[:_SAMPLED_IDS].to_pylist()).encode()
    return codec != "none" and len(pa.compress(text, codec, asbytes=True)) <= _WORTH * len(text)

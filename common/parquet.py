"""Writes Parquet files of record batches, in row groups of a useful size."""

from __future__ import annotations

from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS: Final = 64 * 1024
ROW_GROUP_BYTES: Final = 64 * 1024 * 1024
"""Bytes of rows, uncompressed, that fill a row group whatever their number."""

_ID: Final = "transaction_id"
"""No two rows share it: neither a dictionary nor statistics of it are worth their time."""


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
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression=codec,
            use_dictionary=_repeating(schema),
            # Readers skip row groups by them. Of ids and lists they say nothing, at a tenth of the time.
            write_statistics=[
                field.name for field in schema if field.name != _ID and not pa.types.is_nested(field.type)
            ],
        )
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
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held, self._rows, self._bytes = [], 0, 0


def _repeating(schema: pa.Schema) -> list[str]:
    """Returns the Parquet columns worth a dictionary: texts. One of all numbers costs a third more time."""
    paths: list[str] = []
    for field in schema:
        kind, path = field.type, field.name
        if pa.types.is_list(kind):
            kind, path = kind.value_type, f"{path}.list.element"
        members = list(kind) if pa.types.is_struct(kind) else []
        paths += [f"{path}.{member.name}" for member in members if pa.types.is_string(member.type)]
        if pa.types.is_string(kind) and field.name != _ID:
            paths.append(path)
    return paths

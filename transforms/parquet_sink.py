"""Parquet in Beam's sink of files, behind transforms.files.WriteParquetBatches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.coders import BytesCoder
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

ROW_GROUP_ROWS: Final = 64 * 1024


class ParquetSink(FileBasedSink):
    """Beam's file sink (temporary names, one rename at the end) with Parquet in the files.

    Batches are gathered to row groups of some size: Beam's own Parquet sink makes one of every batch.
    """

    def __init__(
        self,
        prefix: str,
        schema: pa.Schema,
        codec: str = "snappy",
        shard_name_template: str | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(
            prefix,
            coder=BytesCoder(),
            file_name_suffix=".parquet",
            num_shards=0,
            shard_name_template=shard_name_template,
            mime_type="application/x-parquet",
            compression_type=CompressionTypes.UNCOMPRESSED,
        )
        self._schema = schema
        self._codec = codec
        self._overwrite = overwrite

    def pre_finalize(self, init_result: str, writer_results: Iterable[str]) -> None:
        """Makes way for the new files: Beam itself removes old ones of the same number alone."""
        if self._overwrite and (old := shards(self.file_path_prefix.get())):
            FileSystems.delete(old)
        super().pre_finalize(init_result, writer_results)

    def open(self, temp_path: str) -> _RowGroupWriter:
        """A writer of one file."""
        return _RowGroupWriter(super().open(temp_path), self._schema, self._codec)

    def write_record(self, file_handle: _RowGroupWriter, value: pa.RecordBatch) -> None:
        """Adds a batch to a file."""
        file_handle.write(value)

    def close(self, file_handle: _RowGroupWriter | None) -> None:
        """Completes a file."""
        if file_handle is not None:
            file_handle.close()


class _RowGroupWriter:
    def __init__(self, file: BinaryIO, schema: pa.Schema, codec: str) -> None:
        self._file = file
        self._schema = schema
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression=codec,
            use_dictionary=_repeating(schema),
            # Readers skip row groups by them. Of ids and lists they say nothing, at a tenth of the time.
            write_statistics=[
                field.name
                for field in schema
                if field.name != "transaction_id" and not pa.types.is_nested(field.type)
            ],
        )
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows += batch.num_rows
        if self._rows >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held, self._rows = [], 0


def _repeating(schema: pa.Schema) -> list[str]:
    """The Parquet columns worth a dictionary: texts. One of all numbers and ids costs a third more time."""
    paths: list[str] = []
    for field in schema:
        kind, path = field.type, field.name
        if pa.types.is_list(kind):
            kind, path = kind.value_type, f"{path}.list.element"
        members = list(kind) if pa.types.is_struct(kind) else []
        paths += [f"{path}.{member.name}" for member in members if pa.types.is_string(member.type)]
        if pa.types.is_string(kind) and field.name != "transaction_id":
            paths.append(path)
    return paths


def shards(prefix: str) -> list[str]:
    """The files that WriteParquetBatches has left for bounded input, whichever job it was in."""
    name = re.compile(re.escape(FileSystems.split(prefix)[1]) + r"-\d{5,}-of-\d{5,}\.parquet")
    matched = FileSystems.match([f"{prefix}-*-of-*.parquet"])[0].metadata_list
    return sorted(file.path for file in matched if name.fullmatch(FileSystems.split(file.path)[1]))

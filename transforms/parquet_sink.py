"""Beam's sink of files with Parquet in it, behind transforms.files.WriteParquetBatches."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from common.parquet import RowGroupWriter


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
        """Removes the old files: Beam itself removes those of the same number alone."""
        if self._overwrite and (old := shards(self.file_path_prefix.get())):
            FileSystems.delete(old)
        super().pre_finalize(init_result, writer_results)

    def open(self, temp_path: str) -> RowGroupWriter:
        """Opens one file."""
        return RowGroupWriter(super().open(temp_path), self._schema, self._codec)

    def write_record(self, file_handle: RowGroupWriter, value: pa.RecordBatch) -> None:
        """Adds a batch to a file."""
        file_handle.write(value)

    def close(self, file_handle: RowGroupWriter | None) -> None:
        """Completes a file."""
        if file_handle is not None:
            file_handle.close()


def shards(prefix: str) -> list[str]:
    """Lists the files that WriteParquetBatches left for bounded input, in this job or an earlier one."""
    name = re.compile(re.escape(FileSystems.split(prefix)[1]) + r"-\d{5,}-of-\d{5,}\.parquet")
    matched = FileSystems.match([f"{prefix}-*-of-*.parquet"])[0].metadata_list
    return sorted(file.path for file in matched if name.fullmatch(FileSystems.split(file.path)[1]))

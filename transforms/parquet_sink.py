"""Beam's sink of files with Parquet in it, behind transforms.files.WriteParquetBatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystem import CompressionTypes

from common.parquet import RowGroupWriter
from common.writing import writing
from transforms.publication import make_directory

_FLAG: Final = "--output"


class _OpenFile(NamedTuple):
    path: str
    writer: RowGroupWriter


class ParquetSink(FileBasedSink):
    """Beam's file sink (temporary names, one rename at the end) with Parquet in the files.

    Batches are gathered to row groups of some size: Beam's own Parquet sink makes one of every batch.

    Args:
      prefix: how the paths begin.
      schema: of all batches.
      codec: compresses the pages.
      shard_name_template: what follows the prefix, as Beam writes it; numbers when None.
      staging: directory where the files stay, under temporary names, for `transforms.publication`; "" for
        Beam's own renaming, set by set.
    """

    def __init__(
        self,
        prefix: str,
        schema: pa.Schema,
        codec: str = "snappy",
        shard_name_template: str | None = None,
        staging: str = "",
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
        self._staging = staging

    def initialize_write(self) -> Any:
        """Makes the directory of the temporary files."""
        if not self._staging:
            return super().initialize_write()
        make_directory(self._staging)
        return self._staging

    def pre_finalize(self, init_result: str, writer_results: Iterable[str]) -> None:
        """Removes files in the way; there are none before the publication."""
        if not self._staging:
            super().pre_finalize(init_result, writer_results)

    def finalize_write(
        self, init_result: str, writer_results: Iterable[str], unused_pre_finalize_results: Any
    ) -> Iterator[str]:
        """Renames the files, or yields their temporary paths."""
        if self._staging:
            yield from writer_results
        else:
            yield from super().finalize_write(init_result, writer_results, unused_pre_finalize_results)

    def open(self, temp_path: str) -> _OpenFile:
        """Opens one file."""
        with writing(temp_path, _FLAG):
            return _OpenFile(temp_path, RowGroupWriter(super().open(temp_path), self._schema, self._codec))

    def write_record(self, file_handle: _OpenFile, value: pa.RecordBatch) -> None:
        """Adds a batch to a file."""
        with writing(file_handle.path, _FLAG):
            file_handle.writer.write(value)

    def close(self, file_handle: _OpenFile | None) -> None:
        """Completes a file."""
        if file_handle is not None:
            with writing(file_handle.path, _FLAG):
                file_handle.writer.close()

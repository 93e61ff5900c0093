"""Writes sets of record batches to Parquet files, which are published together."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.parquet import RowGroupWriter
from common.writing import writing
from transforms.publication import make_directory, publish, remove_temporary, staging

_FLAG: Final = "--output"
_MIME: Final = "application/x-parquet"
_EMPTY: Final = "empty"
"""Name of the temporary file of a set without rows. A bundle that runs again uses the same name."""


@dataclass
class WriteParquetBatches(beam.PTransform):
    """Writes sets of record batches to Parquet files, one a set and bundle, and publishes them as one.

    {set: PCollection of pyarrow.RecordBatch, bounded}  ->  PCollection of str, the paths

    The paths are `DIRECTORY/SET-00000-of-00003.parquet` and so on; a set without rows is one file without
    rows. See `transforms.publication` for the temporary files. Beam's own sink takes fifteen steps a set, and
    makes a row group of every batch, however small.

    Attributes:
      directory: local or gs://. Missing directories are created.
      schemas: the columns of each set, which its batches have in the same order.
      overwrite: whether the files of an earlier job are replaced; otherwise the job fails where there are
        any.
      job: names the temporary files of this job.
    """

    directory: str
    schemas: Mapping[str, pa.Schema]
    overwrite: bool = False
    job: str = field(default_factory=lambda: uuid.uuid4().hex)

    def expand(self, sets: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """Batches to temporary files, and all of these to names."""
        staged = [
            sets[name]
            | f"Files {name}"
            >> beam.ParDo(_WriteFn(name, schema, self._place(name))).with_output_types(tuple[str, str])
            for name, schema in self.schemas.items()
        ]
        files = staged | beam.Flatten()
        once = files.pipeline | beam.Impulse()
        move = beam.FlatMap(self._publish, beam.pvalue.AsIter(files))
        return once | "Publish" >> move.with_output_types(str)

    def _place(self, name: str) -> str:
        return f"{staging(self.directory, self.job)}/{name}"

    def _publish(self, _: bytes, staged: Iterable[tuple[str, str]]) -> list[str]:
        files = list(staged)
        names = {name for name, _ in files}
        empty = [(name, self._write_empty(name)) for name in self.schemas if name not in names]
        paths = publish([*files, *empty], self.directory, tuple(self.schemas), self.overwrite)
        if empty:  # a bundle that runs again has written them once more
            remove_temporary(self.directory, self.job)
        return paths

    def _write_empty(self, name: str) -> str:
        file = _File(self._place(name), self.schemas[name], _EMPTY)
        file.close()
        return file.path


class _File:
    """A temporary file that is being written."""

    def __init__(self, directory: str, schema: pa.Schema, name: str) -> None:
        self.path = f"{directory}/{name}.parquet"
        with writing(self.path, _FLAG):
            make_directory(directory)
            file = FileSystems.create(self.path, _MIME, CompressionTypes.UNCOMPRESSED)
            self._writer = RowGroupWriter(file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        with writing(self.path, _FLAG):
            self._writer.write(batch)

    def close(self) -> None:
        with writing(self.path, _FLAG):
            self._writer.close()


class _WriteFn(beam.DoFn):
    """Record batches in, (set, path) of the file of a bundle out."""

    def __init__(self, name: str, schema: pa.Schema, directory: str) -> None:
        self._name = name
        self._schema = schema
        self._directory = directory
        self._file: _File | None = None

    def start_bundle(self) -> None:
        self._file = None  # that of a bundle that failed is not complete

    def process(self, element: pa.RecordBatch) -> None:
        if self._file is None:
            self._file = _File(self._directory, self._schema, uuid.uuid4().hex)
        self._file.write(element)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._file is not None:
            self._file.close()
            yield GlobalWindows.windowed_value((self._name, self._file.path))

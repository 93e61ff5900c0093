"""Messages in files: JSON lines, Parquet, CSV, and the labels to check results against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from common.parquet import RowGroupWriter
from common.writing import writing
from publisher.forms import ABOUT_ANY, EVENT_TIME, Form
from publisher.messages import Outgoing
from publisher.sink import Receipt
from publisher.ulb import ULB

LABELS: Final = tuple(field.name for field in ABOUT_ANY)
"""Columns that tell what was planted: one row a message that went out."""


class _File:
    """Base of the files: open during a `with` block, and nothing is ever under way."""

    _file: BinaryIO | RowGroupWriter

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._path):
            self._file.close()

    def _open(self) -> BinaryIO:
        with writing(self._path):
            return self._path.open("wb", buffering=1 << 20)

    def poll(self) -> Sequence[Receipt]:
        """See Sink."""
        return []


class JsonLinesFile(_File):
    """A file with one payload a line, malformed ones as they are. An existing file is replaced."""

    _file: BinaryIO

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.destination = str(path)
        self._file = self._open()

    def send(self, messages: Outgoing) -> Sequence[Receipt]:
        """See Sink."""
        self.write(messages)
        return [Receipt(messages)]

    def flush(self) -> Sequence[Receipt]:
        """See Sink."""
        with writing(self._path):
            self._file.flush()
        return []

    def write(self, messages: Outgoing) -> None:
        """Append the payloads."""
        if len(messages):
            with writing(self._path):
                self._file.write(b"\n".join(messages.payloads) + b"\n")


class _Table(_File):
    """Base of the tables. Malformed messages have no columns, so they are left out."""

    def __init__(self, path: Path, form: Form, is_labelled: bool) -> None:
        super().__init__(path)
        self.destination = str(path)
        self._form = form
        self._is_labelled = is_labelled
        self._schema = form.labelled_table() if is_labelled else form.table

    def send(self, messages: Outgoing) -> Sequence[Receipt]:
        """See Sink."""
        kept = messages.well_formed()
        with writing(self._path):
            self._write(self._form.rows(kept.about, self._is_labelled))
        return [Receipt(kept, left_out=len(messages) - len(kept))]

    def flush(self) -> Sequence[Receipt]:
        """See Sink."""
        return []

    def _write(self, rows: pa.RecordBatch) -> None:
        raise NotImplementedError


class ParquetFile(_Table):
    """A Parquet file of the form's table.

    Args:
      path: an existing file is replaced.
      form: of the messages.
      is_labelled: with the columns of the label and of the planted kind.
    """

    _file: RowGroupWriter

    def __init__(self, path: Path, form: Form = ULB, is_labelled: bool = False) -> None:
        super().__init__(path, form, is_labelled)
        self._file = RowGroupWriter(self._open(), self._schema)

    def _write(self, rows: pa.RecordBatch) -> None:
        self._file.write(rows)


class CsvFile(_Table):
    """A CSV file of the form's table, with a header; times as in messages. Arguments as of ParquetFile."""

    _file: BinaryIO

    def __init__(self, path: Path, form: Form = ULB, is_labelled: bool = False) -> None:
        super().__init__(path, form, is_labelled)
        self._place = self._schema.get_field_index(EVENT_TIME)
        schema = self._schema.set(self._place, pa.field(EVENT_TIME, pa.string()))
        self._file = self._open()
        self._writer = csv.CSVWriter(
            self._file, schema, write_options=csv.WriteOptions(quoting_style="needed")
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._path):
            self._writer.close()
        super().__exit__(kind, error, trace)

    def _write(self, rows: pa.RecordBatch) -> None:
        times = rows.column(self._place).cast(pa.timestamp("ms", tz="UTC"))
        texts = pc.strftime(times, "%Y-%m-%dT%H:%M:%SZ")
        self._writer.write_batch(rows.set_column(self._place, EVENT_TIME, texts))


class LabelsFile(_File):
    """A Parquet file with the columns LABELS."""

    _file: RowGroupWriter

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = RowGroupWriter(self._open(), pa.schema(ABOUT_ANY))

    def write(self, messages: Outgoing) -> None:
        """Appends a row for each message."""
        with writing(self._path):
            self._file.write(messages.about.select(LABELS))

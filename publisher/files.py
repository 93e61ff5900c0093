"""Messages in files: JSON lines, Parquet, and the labels to check results against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np
import pyarrow as pa

from common.files import writing
from common.parquet import RowGroupWriter
from model.features import FEATURES
from publisher.messages import ABOUT, MALFORMED_KIND, PLANTED_KIND, Outgoing
from publisher.sink import Receipt

TRANSACTIONS_SCHEMA: Final = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("account_id", pa.string()),
        pa.field("merchant", pa.string()),
        pa.field("event_time", pa.timestamp("us", tz="UTC"), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in FEATURES),
    ]
)
"""The shape of a row of `ulb_fraud_detection` without the label, with its keys and time."""

LABELS: Final = ("index", "transaction_id", PLANTED_KIND, MALFORMED_KIND)
"""Columns of ABOUT that tell what was planted: one row a message that went out."""


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

    def poll(self) -> Sequence[Receipt]:
        """See Sink."""
        return []


class JsonLinesFile(_File):
    """A file with one payload a line, malformed ones as they are. An existing file is replaced."""

    _file: BinaryIO

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.destination = str(path)
        self._file = path.open("wb", buffering=1 << 20)

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


class ParquetFile(_File):
    """A Parquet file of TRANSACTIONS_SCHEMA. Malformed messages have no columns, so they are left out."""

    _file: RowGroupWriter

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.destination = str(path)
        self._file = RowGroupWriter(path.open("wb"), TRANSACTIONS_SCHEMA)

    def send(self, messages: Outgoing) -> Sequence[Receipt]:
        """See Sink."""
        kept = messages.well_formed()
        with writing(self._path):
            self._file.write(to_record_batch(kept))
        return [Receipt(kept, left_out=len(messages) - len(kept))]

    def flush(self) -> Sequence[Receipt]:
        """See Sink."""
        return []


class LabelsFile(_File):
    """A Parquet file with the columns LABELS of ABOUT."""

    _file: RowGroupWriter

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = RowGroupWriter(path.open("wb"), pa.schema([ABOUT.field(name) for name in LABELS]))

    def write(self, messages: Outgoing) -> None:
        """Appends a row for each message."""
        with writing(self._path):
            self._file.write(messages.about.select(LABELS))


def to_record_batch(messages: Outgoing) -> pa.RecordBatch:
    """Makes a record batch of TRANSACTIONS_SCHEMA of well-formed messages."""
    keys = messages.about.select(TRANSACTIONS_SCHEMA.names[: -len(FEATURES)])
    matrix = messages.about.column("features").flatten().to_numpy().reshape(-1, len(FEATURES))
    features = [pa.array(np.ascontiguousarray(column)) for column in matrix.T]
    return pa.RecordBatch.from_arrays([*keys.columns, *features], schema=TRANSACTIONS_SCHEMA)

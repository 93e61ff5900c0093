"""Messages in files: JSON lines, Parquet, and the labels to check results against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np
import pyarrow as pa

from common.parquet import RowGroupWriter
from model.features import FEATURES
from publisher.messages import Messages
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

LABELS_SCHEMA: Final = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("transaction_id", pa.string()),
        pa.field("planted_kind", pa.string()),
        pa.field("malformed_kind", pa.string()),
    ]
)
"""One row a message that went out: position in the stream, id where the payload has one, what was planted."""


class _File:
    """What the files have in common: open for the time of a `with` block, and nothing ever under way."""

    _file: BinaryIO | RowGroupWriter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def poll(self) -> Sequence[Receipt]:
        """See Sink."""
        return []


class JsonLinesFile(_File):
    """A file with one payload a line, malformed ones as they are. An existing file is replaced."""

    _file: BinaryIO

    def __init__(self, path: Path) -> None:
        self.destination = str(path)
        self._file = path.open("wb", buffering=1 << 20)

    def send(self, messages: Messages) -> Sequence[Receipt]:
        """See Sink."""
        self.write(messages)
        return [Receipt(messages)]

    def flush(self) -> Sequence[Receipt]:
        """See Sink."""
        self._file.flush()
        return []

    def write(self, messages: Messages) -> None:
        """Append the payloads."""
        if len(messages):
            self._file.write(b"\n".join(messages.payloads) + b"\n")


class ParquetFile(_File):
    """A Parquet file of TRANSACTIONS_SCHEMA. Malformed messages have no columns, so they are left out."""

    _file: RowGroupWriter

    def __init__(self, path: Path) -> None:
        self.destination = str(path)
        self._file = RowGroupWriter(path.open("wb"), TRANSACTIONS_SCHEMA)

    def send(self, messages: Messages) -> Sequence[Receipt]:
        """See Sink."""
        kept = messages.well_formed()
        self._file.write(to_record_batch(kept))
        return [Receipt(kept, left_out=len(messages) - len(kept))]

    def flush(self) -> Sequence[Receipt]:
        """See Sink."""
        return []


class LabelsFile(_File):
    """A Parquet file of LABELS_SCHEMA."""

    _file: RowGroupWriter

    def __init__(self, path: Path) -> None:
        self._file = RowGroupWriter(path.open("wb"), LABELS_SCHEMA)

    def write(self, messages: Messages) -> None:
        """Append a row for each message."""
        columns = [
            pa.array(messages.transactions.index),
            pa.array(messages.transaction_ids, pa.string()),
            pa.array(messages.planted_kinds, pa.string()),
            pa.array(messages.malformed_kinds, pa.string()),
        ]
        self._file.write(pa.RecordBatch.from_arrays(columns, schema=LABELS_SCHEMA))


def to_record_batch(messages: Messages) -> pa.RecordBatch:
    """Well-formed messages as a record batch of TRANSACTIONS_SCHEMA."""
    times = np.array([time.removesuffix("Z") for time in messages.event_times], "datetime64[us]")
    transactions = messages.transactions
    columns = [
        pa.array(transactions.transaction_ids, pa.string()),
        pa.array(transactions.account_ids, pa.string()),
        pa.array(transactions.merchants, pa.string()),
        pa.array(times).cast(TRANSACTIONS_SCHEMA.field("event_time").type),
        *(pa.array(np.ascontiguousarray(column)) for column in transactions.features.T),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRANSACTIONS_SCHEMA)

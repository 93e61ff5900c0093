"""The form of a kind of synthetic data: its messages, its table, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

EVENT_TIME: Final = "event_time"
PLANTED_KIND: Final = "planted_kind"
MALFORMED_KIND: Final = "malformed_kind"

TIME_TYPE: Final = pa.timestamp("us", tz="UTC")


class Batch(Protocol):
    """A run of consecutive transactions of a generator, in columns of n entries."""

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """Positions in the stream."""

    @property
    def transaction_ids(self) -> list[str]:
        """Ids of the transactions."""

    @property
    def account_ids(self) -> list[str]:
        """Account numbers."""

    @property
    def elapsed(self) -> npt.NDArray[np.float64]:
        """Seconds since the start of the stream, ascending."""

    @property
    def kind_codes(self) -> npt.NDArray[np.int8]:
        """0 for a normal."""

    @property
    def planted_kinds(self) -> list[str | None]:
        """The kinds of fraud by name; None for a normal."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> Self:
        """Takes the transactions from `start` up to `stop`."""


class Generator(Protocol):
    """An endless stream of transactions."""

    @property
    def seed(self) -> int:
        """Seed of the stream."""

    def transactions(self, n: int) -> Any:
        """Takes the next `n` transactions: a Batch."""


@dataclass(frozen=True, eq=False)
class Form:
    """The form of a kind of synthetic data.

    Attributes:
      name: as in --spec.
      table: columns of a row without its label; transaction_id, account_id and event_time among them.
      label: name of the label, 1 for a fraud.
      own: columns about a message beside those of every form.
      arrays: makes the columns `own` of a batch.
      payloads: makes the messages of a batch and its event times as text.
      columns: makes the columns of `table` of the columns about messages.
      malformed: kinds of malformed messages, names in publisher.malformed.KINDS.
    """

    name: str
    table: pa.Schema
    label: str
    own: tuple[pa.Field, ...]
    arrays: Callable[[Any], list[pa.Array]]
    payloads: Callable[[Any, list[str]], list[bytes]]
    columns: Callable[[pa.RecordBatch], list[pa.Array]]
    malformed: tuple[str, ...]

    @property
    def about(self) -> pa.Schema:
        """Columns about a message: its position in the stream, and the transaction that it was made from.

        `transaction_id` is null where a malformed payload has none that can be read. The planted kind is null
        for a normal and for a malformed message, the malformed kind for a good one.
        """
        return pa.schema(
            [
                *ABOUT_ANY,
                pa.field("account_id", pa.string()),
                pa.field(EVENT_TIME, TIME_TYPE, nullable=False),
                *self.own,
            ]
        )

    def labelled_table(self) -> pa.Schema:
        """The table with its label and the planted kind."""
        label = pa.field(self.label, pa.int8(), nullable=False)
        return pa.schema([*self.table, label, pa.field(PLANTED_KIND, pa.string())])

    def rows(self, about: pa.RecordBatch, is_labelled: bool = False) -> pa.RecordBatch:
        """Makes rows of `table`, or of `labelled_table`, of the columns about well-formed messages."""
        columns = self.columns(about)
        if not is_labelled:
            return pa.RecordBatch.from_arrays(columns, schema=self.table)
        kinds = about.column(PLANTED_KIND)
        columns += [kinds.is_valid().cast(pa.int8()), kinds]
        return pa.RecordBatch.from_arrays(columns, schema=self.labelled_table())


ABOUT_ANY: Final = (
    pa.field("index", pa.int64(), nullable=False),
    pa.field("transaction_id", pa.string()),
    pa.field(PLANTED_KIND, pa.string()),
    pa.field(MALFORMED_KIND, pa.string()),
)
"""Columns about a message of any source; all but the first are null for the line of a file."""

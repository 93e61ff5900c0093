"""Account history: fills the history features of TRANSACTIONS batches, from the events before each of them.

A state cell an account would cost hundreds of times more: a batch is divided by a stable hash of the key into
a few buckets, and the histories of a bucket are one log in keyed state. A batch job has all events, so that
it groups and sorts them instead, and needs no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.limits import MAX_BATCH_BYTES
from features.declaration import FeatureSpec
from features.history.hashing import bucket_of
from features.history.plan import Plan, plans
from features.history.rows import Rows, inputs_of
from features.history.state import MOST_LEAD
from features.history.table import Table
from transforms import metrics
from transforms.history_files import GROUPS_A_BUCKET
from transforms.history_state import FORMAT, NEVER, Bucket, Start, apply
from transforms.history_tables import Tables
from transforms.rebatch import BATCH_ROWS, join
from transforms.scores import feature_matrix

BUCKETS: Final = 16
"""Parts of the keys of a stream, each with one log. A job keeps this number for ever."""
KEYS: Final = "history_keys"
"""Counts keys, accounts for example, that had no history before."""
LATE: Final = "history_rows_late"
"""Counts rows that are older than the last event of their key."""
KNOWN: Final = "history_rows_known"
"""Counts rows up to the time that --history records: they are scored, and not counted again."""
WRITTEN: Final = "history_bytes_written"
"""Counts the bytes that went into the state."""
_ROWS: Final = "history_rows"
"""The last column of a batch before the values are there: key, numbers and categories, 64 bits each."""
_VALUES: Final = "history_values"
"""The column in its place afterwards: a list of the values."""
SORTED_BY: Final = ("event_time", "transaction_id")
"""Columns by which a batch job sorts the rows of a group."""
SPLIT_BYTES: Final = 8 * MAX_BATCH_BYTES
"""Bytes that a batch job divides at once: more of them make fewer and longer pieces."""


@dataclass
class History(beam.PTransform):
    """Fills the history features of transactions.

    TRANSACTIONS batch, in the global window  ->  TRANSACTIONS batch

    Rows of a batch may come out in another order, and in other batches. Without history features nothing
    happens.

    Attributes:
      spec: the features of the model.
      streaming: keeps the histories in state and takes events as they come; otherwise all events of a key
        are taken in the order of their times.
      buckets: into which the keys are divided.
      start: the histories that the job begins with, if any.
      batch_rows: the most rows of a batch that comes out.
      lead: how far the time of an event may lie ahead of its arrival, in microseconds.
    """

    spec: FeatureSpec
    streaming: bool = False
    buckets: int = BUCKETS
    start: Start | None = None
    batch_rows: int = BATCH_ROWS
    lead: int = MOST_LEAD

    def expand(self, transactions: beam.PCollection) -> beam.PCollection:
        """One keyed step for each key of the spec, one after the other."""
        if not transactions.windowing.is_default():
            name = type(transactions.windowing.windowfn).__name__
            raise ValueError(f"History: expected the global window, got {name}")
        for plan in plans(self.spec):
            # A runner refuses an update that loses a step with state: that of another layout is another step.
            layout = f"layout {plan.version[:8]}, log {FORMAT}"
            label = f"By {plan.key or 'account'} in {self.buckets} buckets, {layout}"
            transactions = transactions | label >> (
                self._stateful(plan) if self.streaming else self._sorted(plan)
            )
        return transactions

    def _stateful(self, plan: Plan) -> beam.PTransform:
        bucket = Bucket(plan, self.buckets, self.start, self.lead)
        return _Chain(
            ("Split", SplitFn(plan, self.buckets), tuple[int, pa.RecordBatch]),
            ("State", _StateFn(bucket), pa.RecordBatch),
            ("Join", _JoinFn(plan, self.batch_rows), pa.RecordBatch),
        )

    def _sorted(self, plan: Plan) -> beam.PTransform:
        groups = self.buckets * GROUPS_A_BUCKET
        return _Chain(
            ("Split", SplitFn(plan, groups, SPLIT_BYTES), tuple[int, pa.RecordBatch]),
            ("Group", beam.GroupByKey(), None),
            ("Sort", _SortedFn(plan, self.start), pa.RecordBatch),
            ("Join", _JoinFn(plan, self.batch_rows), pa.RecordBatch),
        )


class _Chain(beam.PTransform):
    """Steps one after the other: their label, their DoFn or transform, the type that it makes."""

    def __init__(self, *steps: tuple[str, Any, Any]) -> None:
        super().__init__()
        self._steps = steps

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        for label, step, kind in self._steps:
            transform = step if kind is None else beam.ParDo(step).with_output_types(kind)
            elements = elements | label >> transform
        return elements


def with_rows(plan: Plan, transactions: pa.RecordBatch) -> tuple[pa.RecordBatch, Rows]:
    """Adds what a plan needs to a TRANSACTIONS batch, as a column behind the others.

    It is read once for a whole batch: for each of its parts again it would cost more than the update.
    """
    inputs = transactions.column("inputs")
    names = {*plan.numbers, *plan.categories, *([] if plan.key is None else [plan.key])}
    columns = {name: pc.struct_field(inputs, name) for name in names}
    rows = inputs_of(plan, transactions.column("account_id"), transactions.column("event_time"), columns)
    packed = np.empty((len(rows.keys), _width(plan)), np.uint64)
    first = 1 + len(plan.numbers)
    packed[:, 0] = rows.keys
    packed[:, 1:first] = rows.numbers.view(np.uint64)
    packed[:, first:] = rows.categories
    kind = pa.binary(packed.itemsize * packed.shape[1])
    column = pa.FixedSizeBinaryArray.from_buffers(kind, len(packed), [None, pa.py_buffer(packed)])
    return transactions.append_column(_ROWS, column), rows


def _width(plan: Plan) -> int:
    return 1 + len(plan.numbers) + len(plan.categories)


def rows_of(plan: Plan, batch: pa.RecordBatch) -> Rows:
    """Returns the rows of a batch that `with_rows` made."""
    column, first = batch.column(_ROWS), 1 + len(plan.numbers)
    width, n = _width(plan), len(column)
    words = np.frombuffer(column.buffers()[1], np.uint64, n * width, 8 * width * column.offset)
    packed = words.reshape(n, width)
    return Rows(
        packed[:, 0].copy(),
        batch.column("event_time").view(pa.int64()).to_numpy(),
        packed[:, 1:first].view(np.float64),
        packed[:, first:],
    )


def with_values(batch: pa.RecordBatch, values: npt.NDArray[np.float64]) -> pa.RecordBatch:
    """Replaces the column that `with_rows` added by the values of the history features."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return batch.set_column(batch.num_columns - 1, _VALUES, column)


def with_history(plan: Plan, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Makes a TRANSACTIONS batch of one with values: inputs of the model and raw values are filled."""
    values = batch.column(_VALUES).flatten().to_numpy().reshape(batch.num_rows, len(plan.names))
    transactions = batch.remove_column(batch.num_columns - 1)
    matrix = feature_matrix(transactions).copy()
    matrix[:, list(plan.columns)] = values
    schema, inputs = transactions.schema, transactions.column("inputs")
    raw = inputs.flatten()
    for name, column in zip(plan.names, values.T, strict=True):
        raw[inputs.type.get_field_index(name)] = pa.array(np.ascontiguousarray(column))
    features, content = schema.get_field_index("features"), schema.get_field_index("inputs")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=schema.field(features).type)
    whole = pa.StructArray.from_arrays(raw, fields=list(inputs.type))
    return transactions.set_column(features, schema.field(features), lists).set_column(
        content, schema.field(content), whole
    )


def divided(
    plan: Plan, transactions: pa.RecordBatch, parts: int, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Divides a TRANSACTIONS batch by the hash of the plan's key; rows without a key go to any part.

    Args:
      plan: has the key.
      transactions: the batch.
      parts: how many there are.
      columns: those of the batch to keep, before those that `with_rows` adds; all when None.
    """
    batch, rows = with_rows(plan, transactions)
    if columns is not None:
        batch = batch.select([*columns, *batch.schema.names[transactions.num_columns :]])
    numbers = np.where(rows.keys == 0, np.arange(len(rows.keys)) % parts, bucket_of(rows.keys, parts))
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    ordered = batch.take(pa.array(order))
    counts = np.bincount(numbers, minlength=parts)
    starts = np.cumsum(counts) - counts
    for part in np.flatnonzero(counts).tolist():
        yield part, ordered.slice(starts[part], counts[part])


class _HoldingFn(beam.DoFn):
    """Gathers the batches of a bundle, as far as rows and bytes allow."""

    def __init__(self, most_rows: int, most_bytes: int) -> None:
        self._most_rows = most_rows
        self._most_bytes = most_bytes

    def start_bundle(self) -> None:
        """Drops the rows of a failed bundle."""
        self._held: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def process(self, batch: pa.RecordBatch) -> Iterable[Any]:
        """Holds a batch, and lets all go where the batch does not fit."""
        full = self._held and (
            self._rows + batch.num_rows > self._most_rows or self._bytes + batch.nbytes > self._most_bytes
        )
        gone = list(self._take()) if full else []
        self._held.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        return gone

    def finish_bundle(self) -> Iterable[Any]:
        """Lets the rest go."""
        return [GlobalWindows.windowed_value_at_end_of_window(element) for element in self._take()]

    def _take(self) -> Iterator[Any]:
        if not self._held:
            return
        batch = join(self._held)
        self._held, self._rows, self._bytes = [], 0, 0
        yield from self._elements(batch)

    def _elements(self, batch: pa.RecordBatch) -> Iterable[Any]:
        raise NotImplementedError


class SplitFn(_HoldingFn):
    """TRANSACTIONS batches in, their parts by bucket out.

    Args:
      plan: has the key.
      parts: how many there are.
      most_bytes: of batches that are divided at once.
      columns: those of the batches to keep; all when None.
    """

    def __init__(
        self,
        plan: Plan,
        parts: int,
        most_bytes: int = MAX_BATCH_BYTES,
        columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__(BATCH_ROWS * most_bytes // MAX_BATCH_BYTES, most_bytes)
        self._plan = plan
        self._parts = parts
        self._columns = columns

    def _elements(self, batch: pa.RecordBatch) -> Iterable[tuple[int, pa.RecordBatch]]:
        return divided(self._plan, batch, self._parts, self._columns)


class _JoinFn(_HoldingFn):
    """The parts of a bundle with values in, TRANSACTIONS batches of at most so many rows out."""

    def __init__(self, plan: Plan, most_rows: int) -> None:
        super().__init__(most_rows, MAX_BATCH_BYTES)
        self._plan = plan

    def _elements(self, batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        # A part may have more rows: batches of a bundle are joined before they are divided.
        for start in range(0, batch.num_rows, self._most_rows):
            yield with_history(self._plan, batch.slice(start, self._most_rows))


_LOG_PARAM: Final[Any] = beam.DoFn.StateParam(BagStateSpec("log", BytesCoder()))
_HEAD_PARAM: Final[Any] = beam.DoFn.StateParam(ReadModifyWriteStateSpec("head", BytesCoder()))


class _StateFn(beam.DoFn):
    """Parts of batches by bucket in, the same with values out."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._shared = Shared()

    def setup(self) -> None:
        """Finds the tables of the process: any of its threads may get any bucket."""
        self._tables = self._shared.acquire(Tables)

    def process(
        self, element: tuple[int, pa.RecordBatch], log: Any = _LOG_PARAM, head: Any = _HEAD_PARAM
    ) -> Iterable[pa.RecordBatch]:
        """Reads the history, and adds the rows to it."""
        number, batch = element
        plan = self._bucket.plan
        updated = self._bucket.update(number, rows_of(plan, batch), log, head, self._tables)
        metrics.add(
            {KEYS: updated.new_keys, LATE: updated.late, KNOWN: updated.known, WRITTEN: updated.written}
        )
        yield with_values(batch, updated.values)


class _SortedFn(beam.DoFn):
    """All rows of a group in, the same in the order of their times and with values out."""

    def __init__(self, plan: Plan, start: Start | None) -> None:
        self._plan = plan
        self._start = start

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterable[pa.RecordBatch]:
        """Reads the history. The parts stay as they came: to sort all their columns would cost more."""
        group, parts = element[0], [*element[1]]
        table = first_table(self._plan, group, self._start)
        until = NEVER if self._start is None else self._start.until
        rows, order = in_order(self._plan, parts)
        values = np.empty((len(order), len(self._plan.names)))
        for start in range(0, len(order), BATCH_ROWS):
            index = order[start : start + BATCH_ROWS]
            applied = apply(self._plan, table, rows.take(index), until)
            metrics.add({KEYS: applied.new_keys, KNOWN: applied.known})
            values[index] = applied.values
        for part in parts:
            yield with_values(part, values[: part.num_rows])
            values = values[part.num_rows :]


def first_table(plan: Plan, group: int, start: Start | None) -> Table:
    """Makes the table of a group of a batch job, with the histories of the start that belong to it."""
    return Table(plan, None if start is None else start.load_group(plan, group))


def in_order(plan: Plan, parts: Sequence[pa.RecordBatch]) -> tuple[Rows, npt.NDArray[np.intp]]:
    """Returns the rows of parts, and their order by time, and by id where times are equal."""
    used = [*SORTED_BY, _ROWS]
    whole = join([part.select(used) for part in parts])
    order = pc.sort_indices(whole, sort_keys=[(name, "ascending") for name in SORTED_BY])
    return rows_of(plan, whole), order.to_numpy()

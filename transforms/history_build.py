"""Builds the histories of all keys from past transactions, and writes them as files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from features.declaration import FeatureSpec
from features.history.plan import Plan, plans
from features.history.rows import Rows
from features.history.state import compact, from_bytes, to_bytes
from transforms import metrics
from transforms.history import (
    BUCKETS,
    KEYS,
    SORTED_BY,
    SPLIT_BYTES,
    SplitFn,
    first_table,
    in_order,
)
from transforms.history_files import (
    GROUPS_A_BUCKET,
    HistoryFiles,
    HistoryFilesError,
    Keys,
    by,
    write_bucket,
)
from transforms.history_state import NEVER, Start, apply
from transforms.rebatch import BATCH_ROWS

_ROWS: Final = "rows"
_CONTINUED: Final = "continued"

COUNTED: Final = "history_rows_counted"
"""Counts the rows of which the histories are made, once for each kind of key."""
LATER: Final = "history_rows_later"
"""Counts rows after the time up to which events are taken: they are in no history."""


class _Group(NamedTuple):
    """The histories of a group of keys, the last time and the number of the rows in them."""

    state: bytes
    until: int
    rows: int


class _Written(NamedTuple):
    """A file: the position of its plan, its bucket, and counts."""

    plan: int
    bucket: int
    keys: int
    until: int
    rows: int


@dataclass
class BuildHistory(beam.PTransform):
    """Writes the histories of all keys.

    TRANSACTIONS batch  ->  HistoryFiles, one element once all is written

    Attributes:
      spec: the features of the model.
      output: the directory.
      until: rows after this time, in microseconds, are left out. So are rows that have no time of their own.
      buckets: into which the keys are divided.
      start: earlier histories, which are continued.
    """

    spec: FeatureSpec
    output: str
    until: int
    buckets: int = BUCKETS
    start: Start | None = None

    def expand(self, transactions: beam.PCollection) -> beam.PCollection:
        """For each kind of key its groups, then its buckets; then the index."""
        found = tuple(plans(self.spec))
        groups = self.buckets * GROUPS_A_BUCKET
        transactions = transactions | "In time" >> beam.FlatMap(in_time, self.until).with_output_types(
            pa.RecordBatch
        )
        written, build = [], os.urandom(8).hex()
        for number, plan in enumerate(found):
            label, counted = by(plan), _CountFn(plan, self.buckets, self.start)
            rows = transactions | f"Split by {label}" >> beam.ParDo(
                SplitFn(plan, groups, SPLIT_BYTES, SORTED_BY)
            ).with_output_types(tuple[int, pa.RecordBatch])
            # A group without a new row has earlier histories all the same.
            continued = transactions.pipeline | f"Groups by {label}" >> beam.Create(
                [(group, 0) for group in range(groups)] if self.start else []
            ).with_output_types(tuple[int, int])
            written.append(
                {_ROWS: rows, _CONTINUED: continued}
                | f"Group by {label}" >> beam.CoGroupByKey()
                | f"Count by {label}" >> beam.ParDo(counted).with_output_types(tuple[int, _Group])
                | f"Buckets by {label}" >> beam.GroupByKey()
                | f"Write by {label}" >> beam.ParDo(_WriteFn(number, plan, self.output, self.buckets, build))
            )
        gathered = written | beam.Flatten() | "Gather" >> beam.combiners.ToList()
        index = _Index(found, self.output, self.buckets, self.start, build)
        return gathered | "Index" >> beam.Map(index.write)


def in_time(transactions: pa.RecordBatch, until: int) -> list[pa.RecordBatch]:
    """Keeps the rows of a TRANSACTIONS batch that have a time of their own, up to `until` in microseconds.

    The time of the others is that of the launch: as the last time of the history it would hide the events of
    the days before from the stream that begins with it.
    """
    times = transactions.column("event_time")
    is_later = pc.greater(times, pa.scalar(until, pa.int64()).cast(times.type))
    is_own = pc.invert(transactions.column("event_time_derived"))
    metrics.add({LATER: pc.and_(is_later, is_own).true_count})
    kept = transactions.filter(pc.and_not(is_own, is_later))
    return [kept] if kept.num_rows else []


class _CountFn(beam.DoFn):
    """All rows of a group in; its bucket and its histories out."""

    def __init__(self, plan: Plan, buckets: int, start: Start | None) -> None:
        self._plan = plan
        self._buckets = buckets
        self._start = start

    def process(self, element: tuple[int, dict[str, Iterable[Any]]]) -> Iterable[tuple[int, _Group]]:
        """Counts the rows in the order of their times."""
        group, parts = element[0], [*element[1][_ROWS]]
        table = first_table(self._plan, group, self._start)
        since = NEVER if self._start is None else self._start.until
        latest, count, new = since, 0, 0
        for rows in _batches(self._plan, parts):
            applied = apply(self._plan, table, rows, since)
            latest = max(latest, int(rows.times.max()))
            count += len(rows.keys) - applied.known
            new += applied.new_keys
        metrics.add({KEYS: new, COUNTED: count})
        state = to_bytes(self._plan, table.block(), self._buckets)
        yield group % self._buckets, _Group(state, latest, count)


def _batches(plan: Plan, parts: list[pa.RecordBatch]) -> Iterable[Rows]:
    """Yields the rows of parts in the order of their times."""
    if parts:
        whole, order = in_order(plan, parts)
        for start in range(0, len(order), BATCH_ROWS):
            yield whole.take(order[start : start + BATCH_ROWS])


class _WriteFn(beam.DoFn):
    """The groups of a bucket in; its file written, and what it holds out."""

    def __init__(self, number: int, plan: Plan, output: str, buckets: int, build: str) -> None:
        self._number = number
        self._plan = plan
        self._output = output
        self._buckets = buckets
        self._build = build

    def process(self, element: tuple[int, Iterable[_Group]]) -> Iterable[_Written]:
        """Joins the groups, which have no key in common."""
        bucket, found = element
        groups = [*found]
        block = compact(self._plan, [from_bytes(self._plan, each.state, self._buckets) for each in groups])
        part = directory(self._number)
        write_bucket(self._output, part, self._plan, block, bucket, self._buckets, self._build)
        until, rows = max(each.until for each in groups), sum(each.rows for each in groups)
        yield _Written(self._number, bucket, len(block.keys), until, rows)


def directory(number: int) -> str:
    """Returns the directory of a plan by its position in the spec."""
    return f"by-{number}"


@dataclass
class _Index:
    """Writes the index of the files."""

    plans: tuple[Plan, ...]
    output: str
    buckets: int
    start: Any
    build: str

    def write(self, written: list[_Written]) -> HistoryFiles:
        """Writes it, and returns its content.

        Raises:
          HistoryFilesError: there is no row at all.
        """
        keys = []
        for number, plan in enumerate(self.plans):
            own = [each for each in written if each.plan == number]
            numbers = tuple(sorted(each.bucket for each in own))
            keys.append(
                Keys(by(plan), plan.version, directory(number), sum(each.keys for each in own), numbers)
            )
        earlier = NEVER if self.start is None else self.start.until
        until = max((each.until for each in written), default=earlier)
        if until == NEVER:
            raise HistoryFilesError(
                "expected transactions with a time, up to --until, to build a history of, got none"
            )
        rows = sum(each.rows for each in written if each.plan == 0)
        files = HistoryFiles(self.output, self.buckets, until, self.build, rows, tuple(keys))
        files.write()
        return files

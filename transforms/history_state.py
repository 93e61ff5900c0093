"""The histories of one bucket in keyed state: a log of changed histories, and a head that names the log.

A worker keeps the decoded log as a `Table` under the random id of the head. It is used again only where the
head in state still has this id: after a bundle that failed, or a bucket that another worker had in between,
the log is read anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features.history.plan import Plan
from features.history.rows import Rows
from features.history.state import MOST_LEAD, Block, compact, from_bytes, to_bytes
from features.history.table import Table
from features.history.update import update
from transforms.history_tables import Tables

FORMAT: Final = 2
"""Of the head and of the entries of the log; another one is refused. Format 1 had no numbers of entries."""
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""The longest entry that a compaction writes: one element of state is sent as a whole."""
LEAST_LOG_BYTES: Final = 256 * 1024
"""A log that has grown by less is not compacted."""
NEVER: Final = -(2**63)
"""The recorded time of a history that starts empty."""

_HEAD: Final = struct.Struct("<B8sqqqqqH")
_NUMBER: Final = struct.Struct("<q")
"""Before each entry of the log: a bag has no order, and may be read in any."""


class HistoryStateError(RuntimeError):
    """The state is of another job: other history features, other buckets, or another format."""


class Log(Protocol):
    """Beam's BagState of bytes."""

    def read(self) -> Iterable[bytes]:
        """Yields the elements, in any order."""

    def add(self, value: bytes) -> None:
        """Adds an element."""

    def clear(self) -> None:
        """Removes all elements."""


class Cell(Protocol):
    """Beam's ReadModifyWriteState of bytes."""

    def read(self) -> bytes | None:
        """Returns the value, if there is one."""

    def write(self, value: bytes) -> None:
        """Replaces the value."""


class Head(NamedTuple):
    """The one small value that is read for each part of a batch.

    Attributes:
      id: of this state of the log; random, so that two attempts at a bundle never agree.
      first: the number of the first entry of the log; entries count on over compactions.
      next: the number of the next entry.
      compacted: bytes of the log after the last compaction.
      added: bytes that were added since.
      until: events up to this time, in microseconds, were counted before the job started.
      buckets: into how many the keys are divided.
      version: of the plan.
    """

    id: bytes
    first: int
    next: int
    compacted: int
    added: int
    until: int
    buckets: int
    version: str

    def to_bytes(self) -> bytes:
        """Encodes the head."""
        return _HEAD.pack(FORMAT, *self[:-1]) + self.version.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Decodes a head.

        Raises:
          HistoryStateError: it has another format.
        """
        if data[0] != FORMAT:
            raise HistoryStateError(f"history state: expected format {FORMAT}, got {data[0]}. {_REMEDY}")
        return cls._make((*_HEAD.unpack_from(data)[1:], data[_HEAD.size :].decode()))


_REMEDY: Final = (
    "A job that replaces a running one takes over its state, and needs the same history features and "
    "--history_buckets: update to the earlier version, or drain the job and launch a new one with --history"
)


class Start(Protocol):
    """The histories that a job begins with."""

    @property
    def until(self) -> int:
        """Events up to this time, in microseconds, are in them."""

    def load(self, plan: Plan, bucket: int) -> Block:
        """Reads the histories of a bucket."""

    def load_group(self, plan: Plan, group: int) -> Block:
        """Reads the histories of a group of a batch job."""


class Updated(NamedTuple):
    """The outcome for the rows of a part of a batch.

    Attributes:
      values: of the history features, [rows, features].
      new_keys: how many keys had no history before.
      late: how many of the rows that count are older than the last event of their key.
      known: how many rows were counted before the job started.
      written: bytes that went into the state.
    """

    values: npt.NDArray[np.float64]
    new_keys: int
    late: int
    known: int
    written: int


@dataclass(frozen=True)
class Bucket:
    """Updates the histories of a bucket.

    Attributes:
      plan: the history features of one key.
      buckets: into how many the keys are divided.
      start: the histories that the job begins with, if any.
      lead: how far the time of an event may lie ahead, in microseconds.
    """

    plan: Plan
    buckets: int
    start: Start | None = None
    lead: int = MOST_LEAD

    def update(self, bucket: int, rows: Rows, log: Log, cell: Cell, tables: Tables) -> Updated:
        """Reads the values of rows, and counts the rows.

        Args:
          bucket: the number of the bucket, to which all keys of the rows belong.
          rows: of the part.
          log: of the bucket.
          cell: has the head of the log.
          tables: of the worker.

        Raises:
          HistoryStateError: the state is of another job.
        """
        data = cell.read()
        written = 0
        if data is None:
            head, table = self._first(bucket, log)
            written = head.compacted
        else:
            head = self._checked(Head.from_bytes(data))
            held = tables.take(bucket, head.id)
            table = self._decoded(bucket, head, log) if held is None else held
        applied = apply(self.plan, table, rows, head.until)
        if len(applied.changed.keys) or data is None:
            entry = self._entry(head.next, applied.changed)
            if head.added + len(entry) <= max(head.compacted, LEAST_LOG_BYTES):
                log.add(entry)
                written += len(entry)
                head = head._replace(next=head.next + 1, added=head.added + len(entry))
            else:
                block = compact(self.plan, [table.block()], self.lead)
                table = Table(self.plan, block)
                log.clear()
                head = self._rewritten(head, block, log)
                written += head.compacted
            head = head._replace(id=os.urandom(8))
            content = head.to_bytes()
            cell.write(content)
            written += len(content)
        tables.keep(bucket, head.id, table)
        return Updated(applied.values, applied.new_keys, applied.late, applied.known, written)

    def _first(self, bucket: int, log: Log) -> tuple[Head, Table]:
        """Begins the log of a bucket. With it the state stands alone: the files of the start may go."""
        until = NEVER if self.start is None else self.start.until
        head = Head(b"", 0, 0, 0, 0, until, self.buckets, self.plan.version)
        if self.start is None:
            return head, Table(self.plan)
        block = self.start.load(self.plan, bucket)
        return self._rewritten(head, block, log), Table(self.plan, block)

    def _checked(self, head: Head) -> Head:
        if (head.version, head.buckets) != (self.plan.version, self.buckets):
            raise HistoryStateError(
                f"history state: expected that of {self.plan.version} in {self.buckets} buckets, got "
                f"{head.version} in {head.buckets}. {_REMEDY}"
            )
        return head

    def _decoded(self, bucket: int, head: Head, log: Log) -> Table:
        """Reads the log in the order of its entries, all of which must be there."""
        entries = sorted((_NUMBER.unpack_from(entry)[0], entry) for entry in log.read())
        numbers, size = [number for number, _ in entries], sum(len(entry) for _, entry in entries)
        if numbers != [*range(head.first, head.next)] or size != head.compacted + head.added:
            raise HistoryStateError(
                f"history state of bucket {bucket}: expected entries {head.first} to {head.next - 1} with "
                f"{head.compacted + head.added} bytes, got {len(entries)} entries with {size}: the state is "
                "damaged; drain the job and launch a new one with --history"
            )
        blocks = [from_bytes(self.plan, entry[_NUMBER.size :], self.buckets) for _, entry in entries]
        return Table(self.plan, compact(self.plan, blocks, self.lead))

    def _entry(self, number: int, block: Block) -> bytes:
        return _NUMBER.pack(number) + to_bytes(self.plan, block, self.buckets)

    def _rewritten(self, head: Head, block: Block, log: Log) -> Head:
        """Writes a block as a log of its own, and returns the head of it."""
        entries = [self._entry(head.next + i, chunk) for i, chunk in enumerate(chunks(block))]
        for entry in entries:
            log.add(entry)
        size = sum(map(len, entries))
        return head._replace(first=head.next, next=head.next + len(entries), compacted=size, added=0)


class Applied(NamedTuple):
    """The values of rows, the histories that they changed, and counts as in `Updated`."""

    values: npt.NDArray[np.float64]
    changed: Block
    new_keys: int
    late: int
    known: int


def apply(plan: Plan, table: Table, rows: Rows, until: int = NEVER) -> Applied:
    """Reads the values of rows from a table, and counts the rows there.

    Args:
      plan: the history features.
      table: changes.
      rows: all of one bucket.
      until: rows up to this time read their values, and do not count again.
    """
    histories = table.find(_each_once(rows.keys))
    counted = rows.times > until
    values, changed = update(plan, histories, rows, counted)
    late = _late(histories, rows.keys[counted], rows.times[counted])
    return Applied(values, changed, table.put(changed), late, int(len(counted) - counted.sum()))


def _each_once(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Sorts keys and drops repetitions; for the few keys of a part `np.unique` takes four times as long."""
    keys = np.sort(keys)
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return keys[is_first]


def _late(histories: Block, keys: npt.NDArray[np.uint64], times: npt.NDArray[np.int64]) -> int:
    if not len(histories.keys) or not len(keys) or times.min() >= histories.last.max():
        return 0
    places = np.minimum(np.searchsorted(histories.keys, keys), len(histories.keys) - 1)
    is_known = histories.keys[places] == keys
    return int((is_known & (times < histories.last[places])).sum())


def chunks(block: Block, most: int = CHUNK_BYTES) -> Sequence[Block]:
    """Cuts a block into pieces of at most so many bytes, each of at least one key."""
    count = len(block.keys)
    if not count:
        return []
    step = max(1, int(most * count / max(1, block.nbytes)))
    return [block.take(np.arange(start, min(start + step, count))) for start in range(0, count, step)]

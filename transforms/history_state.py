"""The histories of one bucket in keyed state: a log of changed histories, and a head that names the log.

A worker keeps the decoded log as a `Table` under the random id of the head. It is used again only where the
head in state still has this id: after a bundle that failed, or a bucket that another worker had in between,
the log is read anew.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features.history.plan import Plan
from features.history.rows import Rows
from features.history.state import Block, compact, from_bytes, to_bytes
from features.history.table import Table
from features.history.update import update

FORMAT: Final = 1
"""Of the head and of the entries of the log; another one is refused."""
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""The longest entry that a compaction writes: one element of state is sent as a whole."""
LEAST_LOG_BYTES: Final = 256 * 1024
"""A log that has grown by less is not compacted."""
NEVER: Final = -(2**63)
"""The recorded time of a history that starts empty."""

_HEAD: Final = struct.Struct("<B8sqqqH")


class HistoryStateError(RuntimeError):
    """The state is of another job: other history features, other buckets, or another format."""


class Log(Protocol):
    """Beam's BagState of bytes."""

    def read(self) -> Iterable[bytes]:
        """Yields the elements in the order in which they were added."""

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
      compacted: bytes of the log after the last compaction.
      added: bytes that were added since.
      until: events up to this time, in microseconds, were counted before the job started.
      buckets: into how many the keys are divided.
      version: of the plan.
    """

    id: bytes
    compacted: int
    added: int
    until: int
    buckets: int
    version: str

    def to_bytes(self) -> bytes:
        """Encodes the head."""
        fields = (self.id, self.compacted, self.added, self.until, self.buckets)
        return _HEAD.pack(FORMAT, *fields) + self.version.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Decodes a head.

        Raises:
          HistoryStateError: it has another format.
        """
        if data[0] != FORMAT:
            raise HistoryStateError(f"history state: expected format {FORMAT}, got {data[0]}. {_REMEDY}")
        _, head_id, compacted, added, until, buckets = _HEAD.unpack_from(data)
        return cls(head_id, compacted, added, until, buckets, data[_HEAD.size :].decode())


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


class Tables:
    """The decoded logs of a worker process, for all of its threads.

    A table is taken out while a thread works on it, so that two never share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[bytes, Table]] = {}

    def take(self, bucket: int, head_id: bytes) -> Table | None:
        """Takes out the table of a bucket; None where there is none of this id."""
        with self._lock:
            known, table = self._held.pop(bucket, (b"", None))
        return table if known == head_id else None

    def keep(self, bucket: int, head_id: bytes, table: Table) -> None:
        """Keeps the table of a bucket."""
        with self._lock:
            self._held[bucket] = (head_id, table)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        with self._lock:
            return sum(table.nbytes for _, table in self._held.values())


class Updated(NamedTuple):
    """The outcome for the rows of a part of a batch.

    Attributes:
      values: of the history features, [rows, features].
      new_keys: how many keys had no history before.
      late: how many rows are older than the last event of their key.
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
    """

    plan: Plan
    buckets: int
    start: Start | None = None

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
        head = self._first(bucket, log) if data is None else self._checked(Head.from_bytes(data))
        table = tables.take(bucket, head.id) or self._decoded(log)
        applied = apply(self.plan, table, rows, head.until)
        written = 0
        if len(applied.changed.keys) or data is None:
            entry = to_bytes(self.plan, applied.changed, self.buckets)
            added, written = head.added + len(entry), len(entry)
            if added <= max(head.compacted, LEAST_LOG_BYTES):
                log.add(entry)
                head = head._replace(added=added)
            else:
                block = compact(self.plan, [table.block()])
                table = Table(self.plan, block)
                log.clear()
                written = self._write(block, log)
                head = head._replace(compacted=written, added=0)
            head = head._replace(id=os.urandom(8))
            cell.write(head.to_bytes())
            written += len(head.to_bytes())
        tables.keep(bucket, head.id, table)
        return Updated(applied.values, applied.new_keys, applied.late, applied.known, written)

    def _first(self, bucket: int, log: Log) -> Head:
        """Begins the log of a bucket. With it the state stands alone: the files of the start may go."""
        size, until = 0, NEVER
        if self.start is not None:
            until = self.start.until
            size = self._write(self.start.load(self.plan, bucket), log)
        return Head(b"", size, 0, until, self.buckets, self.plan.version)

    def _checked(self, head: Head) -> Head:
        if (head.version, head.buckets) != (self.plan.version, self.buckets):
            raise HistoryStateError(
                f"history state: expected that of {self.plan.version} in {self.buckets} buckets, got "
                f"{head.version} in {head.buckets}. {_REMEDY}"
            )
        return head

    def _decoded(self, log: Log) -> Table:
        blocks = [from_bytes(self.plan, entry, self.buckets) for entry in log.read()]
        return Table(self.plan, compact(self.plan, blocks) if blocks else None)

    def _write(self, block: Block, log: Log) -> int:
        size = 0
        for chunk in chunks(block):
            entry = to_bytes(self.plan, chunk, self.buckets)
            log.add(entry)
            size += len(entry)
        return size


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
    late = _late(histories, rows)
    return Applied(values, changed, table.put(changed), late, int(len(counted) - counted.sum()))


def _each_once(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Sorts keys and drops repetitions; for the few keys of a part `np.unique` takes four times as long."""
    keys = np.sort(keys)
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return keys[is_first]


def _late(histories: Block, rows: Rows) -> int:
    if not len(histories.keys):
        return 0
    places = np.minimum(np.searchsorted(histories.keys, rows.keys), len(histories.keys) - 1)
    is_known = histories.keys[places] == rows.keys
    return int((is_known & (rows.times < histories.last[places])).sum())


def chunks(block: Block, most: int = CHUNK_BYTES) -> Sequence[Block]:
    """Cuts a block into pieces of at most so many bytes, each of at least one key."""
    count = len(block.keys)
    if not count:
        return []
    step = max(1, int(most * count / max(1, block.nbytes)))
    return [block.take(np.arange(start, min(start + step, count))) for start in range(0, count, step)]

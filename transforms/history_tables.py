"""The decoded histories of a worker process, bounded in bytes and in time without use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from features.history.table import Table

MOST_BYTES: Final = 1024 * 1024 * 1024
"""Bytes of all tables of a step in a process. Beyond them those that were used least recently go."""
MOST_IDLE: Final = 600.0
"""Seconds after which a table goes that nobody asks for: another worker has its bucket by now."""


class _Held(NamedTuple):
    """A table, the id of its state, its bytes, and when it was put here."""

    id: bytes
    table: Table
    nbytes: int
    since: float


class Tables:
    """The decoded logs of a worker process, for all of its threads.

    A table is taken out while a thread works on it, so that two never share one. A table that is no longer
    here costs time alone: the log is read again.

    Args:
      most_bytes: that are kept; the last table stays whatever its size.
      most_idle: seconds for which a table is kept.
      now: the clock.
    """

    def __init__(
        self,
        most_bytes: int = MOST_BYTES,
        most_idle: float = MOST_IDLE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._most_idle = most_idle
        self._now = now
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._nbytes = 0

    def take(self, bucket: int, head_id: bytes) -> Table | None:
        """Takes out the table of a bucket; None where there is none of this id."""
        with self._lock:
            held = self._drop(bucket)
        return held.table if held is not None and held.id == head_id else None

    def keep(self, bucket: int, head_id: bytes, table: Table) -> None:
        """Keeps the table of a bucket, and drops those for which there is no room or no use."""
        held = _Held(head_id, table, table.nbytes, self._now())
        with self._lock:
            self._drop(bucket)
            self._held[bucket] = held
            self._nbytes += held.nbytes
            while len(self._held) > 1:
                oldest = next(iter(self._held))
                is_idle = self._held[oldest].since < held.since - self._most_idle
                if not is_idle and self._nbytes <= self._most_bytes:
                    break
                self._drop(oldest)

    def _drop(self, bucket: int) -> _Held | None:
        held = self._held.pop(bucket, None)
        if held is not None:
            self._nbytes -= held.nbytes
        return held

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        with self._lock:
            return self._nbytes

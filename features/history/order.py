"""The order of the rows of one update: by key and time, with the state of each key before its first row.

A statistic is made of decayed sums or of a set, so the state before a row is a scan over the rows of its key.
In each step of the scan a row takes over what the row 1, 2, 4, ... places before it has: a few operations on
all rows at once, however many of them have the same key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.history.hashing import Hashes
from features.history.rows import Rows
from features.history.state import Block

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


class _Decays(NamedTuple):
    """The decays of a half-life: of late rows, from the state to the first row, by hop, from row to row."""

    weight: Floats | float
    age: Floats
    hops: list[Floats]
    gap: Floats


class Order:
    """Rows by key and time. A segment is the rows of a key without a gap beyond the horizon.

    Attributes:
      keys: uint64 [keys], in order.
      times: int64 [n], those of the rows; that of a late row is the one of the state.
      late: int64 [n], by how much a row is late; None where none is.
      key: [n], the position of each row's key.
      first, ends: [keys], the positions of the first and last row of each key.
      rank: [n], places after the first row of the segment.
      segment: [n], number of the segment.
      rest: the positions of the rows that have a row of their segment before them.
      state: float64 [width, keys], the numbers of the state at its last time; statistics turn it into that
        after the rows. 0 for a new key.
      bits: uint64 [words, keys], the same for the words of the state.
      age: int64 [keys], microseconds from the last time of the state to the first row; 0 for a new key.
      last: int64 [keys], the last time of the state, or that of the first row.
    """

    def __init__(self, block: Block, rows: Rows, horizon: int, is_alone: bool) -> None:
        """Orders rows.

        Args:
          block: the state of at least the keys of the rows that have one.
          rows: ordered by key and time.
          horizon: in microseconds.
          is_alone: take each row as if it were the only one of its key.
        """
        n = len(rows.keys)
        is_next = rows.keys[1:] != rows.keys[:-1]
        # Few rows mostly have a key each: then there is nothing to scan, which is most of the work.
        self.is_single = is_alone or bool(is_next.all())
        self.first: Positions = np.arange(n)
        self.key: Positions = self.first
        self.ends: Positions = self.first
        if not self.is_single:
            is_start = np.append(True, is_next)
            self.first = np.flatnonzero(is_start)
            self.key = np.cumsum(is_start) - 1
            self.ends = np.append(self.first[1:], n) - 1
        self.keys: Hashes = rows.keys if self.is_single else rows.keys[self.first]
        self._load(block, rows, horizon)
        self.segment: Positions = self.first
        self.rank: Positions = np.zeros(n, np.intp)
        self.rest: Positions = np.zeros(0, np.intp)
        self._gap: Ints = np.zeros(0, np.int64)
        self._hops: list[tuple[int, Positions, Ints]] = []
        self._decays: dict[int, _Decays] = {}
        if not self.is_single:
            is_start[1:] |= self.times[1:] - self.times[:-1] > horizon
            self.segment = np.cumsum(is_start) - 1
            self.rank = ranks(is_start)
            self.rest = np.flatnonzero(self.rank)
            self._gap = self.times[self.rest] - self.times[self.rest - 1]
            self._hops = list(hops(self.rank, self.times))

    def _load(self, block: Block, rows: Rows, horizon: int) -> None:
        """Takes the state of the keys from the block."""
        started = rows.times[self.first]
        place = block.keys.searchsorted(self.keys)
        if len(block.keys):
            place = np.minimum(place, len(block.keys) - 1)
            is_known = block.keys[place] == self.keys
            last = np.where(is_known, block.last[place], started)
            self.state: Floats = np.ascontiguousarray(block.numbers[place].T)
            self.bits: Hashes = np.ascontiguousarray(block.bits[place].T)
        else:
            is_known, last = np.zeros(len(self.keys), bool), started
            self.state = np.zeros((block.numbers.shape[1], len(self.keys)))
            self.bits = np.zeros((block.bits.shape[1], len(self.keys)), np.uint64)
        self.times: Ints = np.maximum(rows.times, last if self.is_single else last[self.key])
        late = self.times - rows.times
        self.late: Ints | None = late if late.any() else None
        self.age: Ints = self.times[self.first] - last
        self.has_state: Mask = is_known & (self.age <= horizon)
        if not self.has_state.all():
            is_new = ~self.has_state
            self.state[:, is_new] = 0.0
            self.bits[:, is_new] = 0
            last = np.where(is_new, self.times[self.first], last)
            self.age[is_new] = 0
        self.last: Ints = last

    def weight(self, half: int) -> Floats | float:
        """The weight with which a row counts: less than 1 if it is late."""
        return 1.0 if self.late is None else decay(self.late, half)

    def add(self, column: int, added: Floats, half: int) -> Floats:
        """Adds numbers [n] to a decayed sum of the state; returns the sum before each row.

        Args:
          column: of the state.
          added: [n]; it is changed.
          half: the half-life in microseconds.
        """
        decays = self._decays_by(half)
        state = self.state[column]
        state *= decays.age
        if self.late is not None:
            added *= decays.weight
        if self.is_single:
            before = state.copy()
            state += added
            return before
        before = np.zeros(len(added))
        before[self.first] = state
        added[self.first] += state
        for (step, index, _), decayed in zip(self._hops, decays.hops, strict=True):
            added[index] += decayed * added[index - step]
        before[self.rest] = decays.gap * added[self.rest - 1]
        self.state[column] = added[self.ends]
        return before

    def _decays_by(self, half: int) -> _Decays:
        """The decays of a half-life, which all its sums have in common."""
        known = self._decays.get(half)
        if known is None:
            of_hops = [decay(micros, half) for _, _, micros in self._hops]
            known = _Decays(self.weight(half), decay(self.age, half), of_hops, decay(self._gap, half))
            self._decays[half] = known
        return known

    def since_last(self) -> Ints:
        """Microseconds since the row before, of the same key; -1 where there is none."""
        if self.is_single:
            return np.where(self.has_state, self.age, -1)
        micros = np.full(len(self.times), -1)
        micros[self.first] = np.where(self.has_state, self.age, -1)
        micros[self.rest] = self._gap
        return micros

    def rows_of_several(self) -> Positions:
        """The positions of the rows whose keys have several."""
        is_several = self.ends > self.first
        return np.flatnonzero(is_several[self.key])


def decay(micros: Ints, half: int) -> Floats:
    """2 to the power of minus the age in half-lives."""
    decayed: Floats = np.exp2(micros * (-1.0 / half))
    return decayed


def hops(rank: Positions, times: Ints) -> Iterator[tuple[int, Positions, Ints]]:
    """The steps of a scan: 1, 2, 4, ... places back, the rows that have one there, and how long it is ago."""
    most, step = int(rank.max(initial=0)), 1
    while step <= most:
        index = np.flatnonzero(rank >= step)
        yield step, index, times[index] - times[index - step]
        step *= 2


def ranks(is_start: Mask) -> Positions:
    """Counts places after the last start.

    >>> ranks(np.array([True, False, False, True])).tolist()
    [0, 1, 2, 0]
    """
    starts = np.flatnonzero(is_start)
    places: Positions = np.arange(len(is_start)) - starts[np.cumsum(is_start) - 1]
    return places

"""Computes the history features of transactions, and the state after them.

A statistic is made of decayed sums, or of a set, so the state before each row is a scan over the rows of a key:
rows are ordered by key and time, and in each step a row takes over what the row 1, 2, 4, ... places before it
has. A call costs a few operations over all rows at once, however many of them have the same key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.history import formulas
from features.history.hashing import NO_KEY, Hashes
from features.history.plan import (
    NOVELTY_HASHES,
    NOVELTY_WORDS,
    SKETCH_CELLS,
    SKETCH_ROWS,
    Decayed,
    Plan,
    Sketch,
    half_life,
)
from features.history.rows import Rows
from features.history.state import Block

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_SECOND = 1e-6


class Updated(NamedTuple):
    """The result of an update.

    Attributes:
      values: float64 [n, names of the plan], in the order of the rows; finite, and within float32.
      changed: the state of the keys of the rows after them.
    """

    values: Floats
    changed: Block


def update(plan: Plan, block: Block, rows: Rows, counted: Mask | None = None) -> Updated:
    """Computes the features of rows from what came before each of them, and the state of their keys.

    Rows are taken in the order of their times, those of one time in the order in which they stand. A row before
    the last one of its key in `block` is late: its features are those at the time of the last one, and it
    counts with the weight that it would have had. A row without a key has the features of a new key, and
    changes nothing.

    Args:
      plan: of the history.
      block: the state of at least the keys of the rows that have one.
      rows: the transactions.
      counted: rows that are False have their features from `block` alone, and change nothing; None counts all.
    """
    new = [formulas.OF_NEW_KEY[feature.statistic or ""] for feature in plan.features]
    values = np.tile(np.array(new), (len(rows.keys), 1))
    is_counted = rows.keys != NO_KEY
    if counted is not None and not counted.all():
        read = np.flatnonzero(is_counted & ~counted)
        if len(read):
            values[read] = _Call(plan, block, rows.take(read), is_alone=True).values()
        is_counted = is_counted & counted
    index = np.flatnonzero(is_counted)
    if len(index) == 0:
        return Updated(values, Block.empty(plan))
    index = index[np.lexsort((rows.times[index], rows.keys[index]))]
    call = _Call(plan, block, rows.take(index))
    values[index] = call.values()
    return Updated(values, call.changed())


class _Call:
    """The rows of one call, ordered by key and time, and the state before and after each of them.

    A segment is the rows of a key without a gap beyond the horizon; it begins with the state of the block, or
    with nothing. `known` has the rows whose segment begins with the state at `place` of the block.
    """

    def __init__(self, plan: Plan, block: Block, rows: Rows, is_alone: bool = False) -> None:
        self._plan, self._block, self._rows = plan, block, rows
        n = len(rows.keys)
        self._is_first = is_first = np.ones(n, bool)
        if not is_alone:
            is_first[1:] = rows.keys[1:] != rows.keys[:-1]
        self._key = np.cumsum(is_first) - 1
        self._keys = keys = rows.keys[is_first]
        place = np.searchsorted(block.keys, keys)
        if len(block.keys):
            place = np.minimum(place, len(block.keys) - 1)
            has_state = block.keys[place] == keys
            last = np.where(has_state, block.last[place], rows.times[is_first])
        else:
            has_state, last = np.zeros(len(keys), bool), rows.times[is_first]
        # `times` never go back within a key; `age` is that of the state, or 0.
        self._times = times = np.maximum(rows.times, last[self._key])
        has_state &= times[is_first] - last <= plan.horizon
        is_start = is_first.copy()
        is_start[1:] |= np.diff(times) > plan.horizon
        starts = np.flatnonzero(is_start)
        self._segment = np.cumsum(is_start) - 1
        self._rank = np.arange(n) - starts[self._segment]
        self._ends = np.append(np.flatnonzero(is_first)[1:], n) - 1
        is_known = has_state[self._key] & is_first[starts][self._segment]
        self._known = np.flatnonzero(is_known)
        self._place = place[self._key[self._known]]
        self._age = times[self._known] - last[self._key[self._known]]
        self._gap = np.append(0, np.diff(times))
        late = times - rows.times
        self._late = late if late.any() else None
        self._after: list[tuple[slice, Floats]] = []
        self._bits_after: list[tuple[slice, Hashes]] = []

    def values(self) -> Floats:
        """The features, [n, names of the plan]."""
        plan, rows = self._plan, self._rows
        before = self._decayed()
        counts = {sketch: self._counts(sketch) for sketch in plan.shares}
        is_new = {sketch: self._is_new(sketch) for sketch in plan.novelties}
        columns: list[Floats] = []
        for feature in plan.features:
            half, of = half_life(feature), feature.of or ""
            if feature.statistic == "since_last":
                columns.append(self._since_last())
            elif feature.statistic == "count":
                columns.append(before[Decayed(half, "count")])
            elif feature.statistic == "sum":
                columns.append(before[Decayed(half, "sum", of)])
            elif feature.statistic == "mean":
                columns.append(
                    formulas.mean(before[Decayed(half, "present", of)], before[Decayed(half, "sum", of)])
                )
            elif feature.statistic == "deviation":
                x = rows.numbers[:, plan.numbers.index(of)]
                sums = (before[Decayed(half, what, of)] for what in ("present", "sum", "square"))
                columns.append(formulas.deviation(x, *sums))
            elif feature.statistic == "novelty":
                new = next(
                    values for sketch, values in is_new.items() if (sketch.of, sketch.half_life) == (of, half)
                )
                columns.append(new * formulas.shrunk(before[Decayed(half, "count")]))
            else:
                count = next(c for sketch, c in counts.items() if (sketch.of, sketch.half_life) == (of, half))
                is_missing = rows.categories[:, plan.categories.index(of)] == NO_KEY
                usual = formulas.share(count, before[Decayed(half, "present", of)])
                columns.append(np.where(is_missing, formulas.OF_NEW_KEY["share"], usual))
        return formulas.bounded(np.stack(columns, axis=1))

    def changed(self) -> Block:
        """The state of the keys after their rows; `values` comes first."""
        numbers = np.empty((len(self._keys), self._plan.width))
        bits = np.empty((len(self._keys), self._plan.words), np.uint64)
        for columns, sums in self._after:
            numbers[:, columns] = sums
        for words, sets in self._bits_after:
            bits[:, words] = sets
        return Block(self._keys, self._times[self._ends], numbers, bits)

    def _weight(self, half: int) -> Floats | float:
        """The weight with which a row counts: less than 1 if it is late."""
        return 1.0 if self._late is None else _decay(self._late, half)

    def _decayed(self) -> dict[Decayed, Floats]:
        """The decayed sums before each row."""
        plan = self._plan
        before: dict[Decayed, Floats] = {}
        for columns, half in _runs(plan.decayed):
            sums = plan.decayed[columns]
            added = np.stack([self._added(decayed) for decayed in sums], axis=1)
            added *= np.reshape(self._weight(half), (-1, 1))
            total, old = self._scan(added, half, columns)
            self._after.append((columns, total[self._ends]))
            before |= dict(zip(sums, old.T, strict=True))
        return before

    def _scan(self, added: Floats, half: int, columns: slice) -> tuple[Floats, Floats]:
        """Returns the decayed sums after and before each row, [n, columns]."""
        _scan(added, self._times, self._rank, half)
        before = np.zeros_like(added)
        rest = np.flatnonzero(self._rank)
        before[rest] = _decay(self._gap[rest], half)[:, None] * added[rest - 1]
        if len(self._known):
            state = _decay(self._age, half)[:, None] * self._block.numbers[self._place, columns]
            added[self._known] += state
            before[self._known] += state
        return added, before

    def _added(self, decayed: Decayed) -> Floats:
        """The numbers that rows add to a decayed sum."""
        rows, plan = self._rows, self._plan
        if decayed.what == "count":
            return np.ones(len(rows.keys))
        if decayed.of not in plan.numbers or (decayed.what == "present" and decayed.of in plan.categories):
            return (rows.categories[:, plan.categories.index(decayed.of)] != NO_KEY).astype(np.float64)
        x = rows.numbers[:, plan.numbers.index(decayed.of)]
        if decayed.what == "present":
            return (~np.isnan(x)).astype(np.float64)
        x = np.nan_to_num(x)
        return x if decayed.what == "sum" else x * x

    def _since_last(self) -> Floats:
        """Seconds since the last row of the key."""
        seconds = self._gap * _SECOND
        seconds[self._rank == 0] = formulas.OF_NEW_KEY["since_last"]
        at_start = self._rank[self._known] == 0
        seconds[self._known[at_start]] = self._age[at_start] * _SECOND
        return np.minimum(seconds, formulas.OF_NEW_KEY["since_last"])

    def _counts(self, sketch: Sketch) -> Floats:
        """The decayed count of each row's value before it, estimated from above by a count-min sketch."""
        values = self._rows.categories[:, self._plan.categories.index(sketch.of)]
        weights = np.where(values == NO_KEY, 0.0, self._weight(sketch.half_life))
        to_end = _decay(self._times[self._ends][self._key] - self._times, sketch.half_life) * weights
        # Rows before a gap beyond the horizon are no part of the state at the end.
        to_end[self._segment != self._segment[self._ends][self._key]] = 0.0
        is_known_end = np.zeros(len(values), bool)
        is_known_end[self._known] = True
        estimates = np.full(len(values), np.inf)
        for row in range(SKETCH_ROWS):
            start = sketch.start + row * SKETCH_CELLS
            cells = (values >> np.uint64(8 * row)).astype(np.int64) & (SKETCH_CELLS - 1)
            before = self._before_in_cell(cells, weights, sketch.half_life)
            if len(self._known):
                state = self._block.numbers[self._place, start + cells[self._known]]
                before[self._known] += _decay(self._age, sketch.half_life) * state
            estimates = np.minimum(estimates, before)
            after = np.bincount(
                self._key * SKETCH_CELLS + cells, to_end, len(self._keys) * SKETCH_CELLS
            ).reshape(-1, SKETCH_CELLS)
            ends = np.flatnonzero(is_known_end[self._ends])
            if len(ends):
                at = np.searchsorted(self._known, self._ends[ends])
                state = self._block.numbers[self._place[at], start : start + SKETCH_CELLS]
                after[ends] += _decay(self._age[at], sketch.half_life)[:, None] * state
            self._after.append((slice(start, start + SKETCH_CELLS), after))
        return estimates

    def _before_in_cell(self, cells: Ints, weights: Floats, half: int) -> Floats:
        """The decayed weights of the rows of the same segment and cell before each row."""
        group = self._segment * SKETCH_CELLS + cells
        order = np.argsort(group, kind="stable")
        group, times = group[order], self._times[order]
        rank = _ranks(np.append(True, np.diff(group) != 0))
        total = weights[order][:, None]
        _scan(total, times, rank, half)
        rest = np.flatnonzero(rank)
        before = np.zeros(len(cells))
        before[order[rest]] = _decay(times[rest] - times[rest - 1], half) * total[rest - 1, 0]
        return before

    def _is_new(self, sketch: Sketch) -> Floats:
        """1 for a row whose value is in neither generation of the set of its key, otherwise 0."""
        values = self._rows.categories[:, self._plan.categories.index(sketch.of)]
        own = _bits(values)
        generation = self._times // sketch.half_life
        is_start = self._rank == 0
        is_start[1:] |= np.diff(generation) != 0
        rank, starts = _ranks(is_start), np.flatnonzero(is_start)
        present = own.copy()
        for step in _steps(rank):
            index = np.flatnonzero(rank >= step)
            present[index] |= present[index - step]
        before = np.zeros_like(own)
        rest = np.flatnonzero(rank)
        before[rest] = present[rest - 1]
        # The generation before this one: whole in an earlier row of the segment, or in the state.
        earlier = starts[
            (self._rank[starts] > 0) & (np.diff(generation, prepend=generation[:1])[starts] == 1)
        ]
        older = np.zeros((len(starts), own.shape[1]), np.uint64)
        older[np.searchsorted(starts, earlier)] = present[earlier - 1]
        older = older[np.cumsum(is_start) - 1]
        if len(self._known):
            words = self._block.bits[self._place, sketch.start : sketch.start + 2 * NOVELTY_WORDS]
            ages = generation[self._known] - self._block.last[self._place] // sketch.half_life
            now, past = words[:, :NOVELTY_WORDS], words[:, NOVELTY_WORDS:]
            of_now = np.where(ages[:, None] == 0, now, np.uint64(0))
            before[self._known] |= of_now
            present[self._known] |= of_now
            older[self._known] |= np.where(
                ages[:, None] == 0, past, np.where(ages[:, None] == 1, now, np.uint64(0))
            )
        self._bits_after.append(
            (
                slice(sketch.start, sketch.start + 2 * NOVELTY_WORDS),
                np.concatenate([present[self._ends], older[self._ends]], axis=1),
            )
        )
        is_new = (own & ~(before | older)).any(axis=1)
        return is_new.astype(np.float64)


def _decay(micros: Ints, half: int) -> Floats:
    decayed: Floats = np.exp2(micros * (-1.0 / half))
    return decayed


def _scan(sums: Floats, times: Ints, rank: Positions, half: int) -> None:
    """Adds to each row the decayed numbers of the earlier rows of its group, in place.

    Args:
      sums: [n, columns].
      times: [n], which do not fall within a group.
      rank: [n], places after the first row of the group.
      half: the half-life.
    """
    for step in _steps(rank):
        index = np.flatnonzero(rank >= step)
        sums[index] += _decay(times[index] - times[index - step], half)[:, None] * sums[index - step]


def _steps(rank: Positions) -> Iterator[int]:
    """Powers of two, up to the greatest rank."""
    most, step = int(rank.max(initial=0)), 1
    while step <= most:
        yield step
        step *= 2


def _ranks(is_start: Mask) -> Positions:
    starts = np.flatnonzero(is_start)
    return np.arange(len(is_start)) - starts[np.cumsum(is_start) - 1]


def _runs(decayed: tuple[Decayed, ...]) -> Iterator[tuple[slice, int]]:
    """The columns of each half-life."""
    start = 0
    for end in range(1, len(decayed) + 1):
        if end == len(decayed) or decayed[end].half_life != decayed[start].half_life:
            yield slice(start, end), decayed[start].half_life
            start = end


def _bits(values: Hashes) -> Hashes:
    """The words [n, NOVELTY_WORDS] with the bits that each value sets; none for a missing value."""
    words = np.zeros((len(values), NOVELTY_WORDS), np.uint64)
    rows = np.flatnonzero(values != NO_KEY)
    for i in range(NOVELTY_HASHES):
        bit = (values[rows] >> np.uint64(16 + 8 * i)) & np.uint64(64 * NOVELTY_WORDS - 1)
        words[rows, (bit >> np.uint64(6)).astype(np.intp)] |= np.uint64(1) << (bit & np.uint64(63))
    return words

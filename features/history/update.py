"""Computes the history features of transactions, and the state after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from features.declaration import Feature
from features.history import formulas
from features.history.hashing import NO_KEY
from features.history.order import Floats, Mask, Order
from features.history.plan import Decayed, Plan, Sketch, half_life
from features.history.rows import Rows
from features.history.sketches import counts, novelties
from features.history.state import Block

_SECOND: Final = 1e-6


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

    Rows are taken in the order of their times, those of one time in the order given. A row before the last
    one of its key in `block` is late: its features are those at the time of the last one, and it counts with
    the weight that it would have had. A row without a key has the features of a new key, and changes nothing.

    Args:
      plan: of the history.
      block: the state of at least the keys of the rows that have one.
      rows: the transactions.
      counted: rows that are False have their features from `block` alone, and change nothing.
    """
    values = np.empty((len(rows.keys), len(plan.features)))
    values[:] = [formulas.OF_NEW_KEY[feature.statistic or ""] for feature in plan.features]
    is_counted = rows.keys != NO_KEY
    if counted is not None and not counted.all():
        read = np.flatnonzero(is_counted & ~counted)
        if len(read):
            values[read] = _Call(plan, block, rows.take(read), is_alone=True).values()
        is_counted &= counted
    index = np.flatnonzero(is_counted)
    if len(index) == 0:
        return Updated(values, Block.empty(plan))
    index = index[np.lexsort((rows.times[index], rows.keys[index]))]
    call = _Call(plan, block, rows.take(index))
    values[index] = call.values()
    return Updated(values, call.changed())


class _Call:
    """The statistics of the rows of one update."""

    def __init__(self, plan: Plan, block: Block, rows: Rows, is_alone: bool = False) -> None:
        self._plan, self._rows = plan, rows
        self._order = Order(block, rows, plan.horizon, is_alone)
        self._sums = {
            (decayed.half_life, decayed.what, decayed.of): self._order.add(
                column, self._added(decayed), decayed.half_life
            )
            for column, decayed in enumerate(plan.decayed)
        }

    def values(self) -> Floats:
        """The features, [n, names of the plan]."""
        # Several features may be made of one sketch, which counts its values once.
        made: dict[tuple[str, str | None, int], Floats] = {}
        values = np.empty((len(self._rows.keys), len(self._plan.features)))
        for column, feature in enumerate(self._plan.features):
            what = (feature.statistic or "", feature.of, half_life(feature))
            if what not in made:
                made[what] = _STATISTICS[what[0]](self, feature)
            values[:, column] = made[what]
        return formulas.bounded(values)

    def changed(self) -> Block:
        """The state of the keys after their rows; `values` comes first."""
        order = self._order
        return Block(order.keys, order.times[order.ends], order.state.T.copy(), order.bits.T.copy())

    def _added(self, decayed: Decayed) -> Floats:
        """The numbers that rows add to a decayed sum."""
        if decayed.what == "count":
            return np.ones(len(self._rows.keys))
        if decayed.of in self._plan.numbers:
            x = self._numbers(decayed.of)
            is_present = decayed.what == "present"
            return (~np.isnan(x)).astype(np.float64) if is_present else formulas.zero_for_nan(x)
        return (self._categories(decayed.of) != NO_KEY).astype(np.float64)

    def _numbers(self, field: str) -> Floats:
        return self._rows.numbers[:, self._plan.numbers.index(field)]

    def _categories(self, field: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
        return self._rows.categories[:, self._plan.categories.index(field)]

    def _sum(self, feature: Feature, what: str) -> Floats:
        of = "" if what == "count" else feature.of or ""
        return self._sums[half_life(feature), what, of]

    def _count(self, feature: Feature) -> Floats:
        return self._sum(feature, "count")

    def _total(self, feature: Feature) -> Floats:
        return self._sum(feature, "sum")

    def _mean(self, feature: Feature) -> Floats:
        return formulas.mean(self._sum(feature, "present"), self._sum(feature, "sum"))

    def _since_last(self, feature: Feature) -> Floats:
        micros = self._order.since_last()
        most = formulas.OF_NEW_KEY["since_last"]
        return np.where(micros < 0, most, np.minimum(micros * _SECOND, most))

    def _deviation(self, feature: Feature) -> Floats:
        x, n = self._numbers(feature.of or ""), self._sum(feature, "present")
        sketch, half = _sketch(self._plan.deviations, feature), half_life(feature)
        is_first, is_missing = n <= formulas.LEAST_COUNT, np.isnan(x)
        first_away = formulas.first_away(x)

        def before(added: Floats, column: int) -> Floats:
            return self._order.add(sketch.start + column, np.where(is_missing, 0.0, added), half)

        plain = self._mean(feature)
        away = before(np.where(is_first, first_away, np.abs(x - plain)), 0)
        bound = formulas.BOUND * formulas.spread(plain, n, away)
        kept = np.where(is_first, x, np.minimum(np.maximum(x, plain - bound), plain + bound))
        level = formulas.mean(n, before(kept, 1))
        away = before(np.where(is_first, first_away, np.minimum(np.abs(x - level), bound)), 2)
        return formulas.deviation(x, level, formulas.spread(level, n, away), n)

    def _novelty(self, feature: Feature) -> Floats:
        is_new = novelties(
            self._order, _sketch(self._plan.novelties, feature), self._categories(feature.of or "")
        )
        return is_new * formulas.shrunk(self._count(feature))

    def _share(self, feature: Feature) -> Floats:
        values = self._categories(feature.of or "")
        count = counts(self._order, _sketch(self._plan.shares, feature), values)
        share = formulas.share(count, self._sum(feature, "present"))
        return np.where(values == NO_KEY, formulas.OF_NEW_KEY["share"], share)


_STATISTICS: Final[dict[str, Callable[[_Call, Feature], Floats]]] = {
    "count": _Call._count,
    "sum": _Call._total,
    "mean": _Call._mean,
    "since_last": _Call._since_last,
    "deviation": _Call._deviation,
    "novelty": _Call._novelty,
    "share": _Call._share,
}


def _sketch(sketches: tuple[Sketch, ...], feature: Feature) -> Sketch:
    """Returns the sketch of a feature's field and half-life."""
    wanted = (feature.of, half_life(feature))
    return next(sketch for sketch in sketches if (sketch.of, sketch.half_life) == wanted)

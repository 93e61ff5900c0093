"""Compares the features of a feed with those that the model was trained on.

A feed in other units is scored all the same, and floods its readers with alerts. Two things give it away:
values outside the range of the training, and a first window of rows whose middle or spread is another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Quantiles = Mapping[str, Sequence[float]]

PROBABILITIES: Final = np.linspace(0.0, 1.0, 21)
"""Of the quantiles in a manifest: every 5 %, from the least value to the largest."""
WINDOW: Final = 500
"""Rows after which a feed is judged. Fair windows of this size from any hour of the ULB data pass."""
OUTSIDE_SHARE: Final = 0.02
"""Share of a feature's values in a window that may lie outside its range; fair windows have up to 0.6 %."""
SPREADS: Final = 2.5
"""A feature's middle half may be so many times wider or narrower than in training; 2.1 in fair windows."""
MAX_NAMED: Final = 6
"""Features that a warning names at most."""

_SIDE_BY_SIDE: Final = 16
"""Rows that are laid side by side: numpy compares few long rows faster than many short ones."""
_AT_ONCE: Final = 256
"""Long rows that are compared at once: so many stay in the cache of a core."""

_LOG: Final = logging.getLogger(__name__)


def feature_quantiles(names: Sequence[str], rows: Floats) -> dict[str, tuple[float, ...]]:
    """Computes the quantiles of each feature at PROBABILITIES.

    >>> feature_quantiles(["amount"], np.arange(101, dtype=np.float32)[:, None])["amount"][:3]
    (0.0, 5.0, 10.0)

    Args:
      names: of the columns.
      rows: features [n, k] of the training, n at least 1.
    """
    # Column by column: the quantiles of a whole matrix would copy it.
    return {
        name: tuple(np.quantile(rows[:, i].astype(np.float64), PROBABILITIES).tolist())
        for i, name in enumerate(names)
    }


def _count_outside(rows: Floats, low: Floats, high: Floats) -> npt.NDArray[np.int64] | None:
    """Counts the values of each column below `low` or above `high`; None where there are none, as mostly."""
    width = rows.shape[1]
    counts = None
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        is_outside = part < low
        is_outside |= part > high
        if np.count_nonzero(is_outside):
            part_counts = np.bincount(np.flatnonzero(is_outside) % width, minlength=width)
            counts = part_counts if counts is None else counts + part_counts
    return counts


def check_quantiles(names: Sequence[str], quantiles: Quantiles) -> None:
    """Checks that quantiles belong to these features, and that a feature's are finite and ascend.

    Raises:
      ValueError: they do not.
    """
    for name, values in quantiles.items():
        if name not in names:
            raise ValueError(f"feature_quantiles: {name!r} is no input of the model")
        if len(values) != len(PROBABILITIES) or not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise ValueError(
                f"feature_quantiles: {name}: expected {len(PROBABILITIES)} finite, ascending numbers"
            )


@dataclass(frozen=True)
class FeatureRanges:
    """The quantiles of the features that are watched.

    Attributes:
      names: of the model's features, in order.
      quantiles: of the watched ones, at PROBABILITIES.
    """

    names: tuple[str, ...] = ()
    quantiles: Quantiles = field(default_factory=dict)


class FeatureWatch:
    """Counts values outside the range of the training, and warns once of a feed that looks like another.

    One watch belongs to one model in memory. Threads may share it: two that count at the same time may lose
    a few rows of a window, never those that `look` returns.

    >>> watch = FeatureWatch(FeatureRanges(("amount",), {"amount": range(21)}))
    >>> watch.look(np.array([[3.0], [21.0], [-1.0]], np.float32))
    2
    """

    def __init__(self, ranges: FeatureRanges) -> None:
        self._names = names = ranges.names
        self._is_watched = np.array([name in ranges.quantiles for name in names], bool)
        table = np.full((len(names), len(PROBABILITIES)), np.nan)
        for i in np.flatnonzero(self._is_watched):
            table[i] = ranges.quantiles[names[i]]
        self._quantiles = table
        # The training rows were float32, so the ends of their range are too.
        self._low = np.where(self._is_watched, table[:, 0], -np.inf).astype(np.float32)
        self._high = np.where(self._is_watched, table[:, -1], np.inf).astype(np.float32)
        self._wide = np.tile(self._low, _SIDE_BY_SIDE), np.tile(self._high, _SIDE_BY_SIDE)
        self._rows = 0
        self._outside = np.zeros(len(names), np.int64)
        self._first: list[Floats] | None = []
        self._has_warned = not self._is_watched.any()

    def look(self, features: Floats) -> int:
        """Looks at raw features [n, k] of a feed; returns how many values lie outside their range."""
        if not len(features) or not self._names:
            return 0
        whole = len(features) - len(features) % _SIDE_BY_SIDE
        parts = [_count_outside(features[whole:], self._low, self._high)]
        if whole:
            wide = _count_outside(features[:whole].reshape(-1, len(self._wide[0])), *self._wide)
            parts.append(wide if wide is None else wide.reshape(_SIDE_BY_SIDE, -1).sum(axis=0))
        counts = [part for part in parts if part is not None]
        for by_feature in counts:
            self._outside += by_feature
        if not self._has_warned:
            self._gather(features)
        return int(np.sum(counts)) if counts else 0

    def _gather(self, features: Floats) -> None:
        first = self._first
        if first is not None:
            # A copy: the rows are a view of a batch that is gone soon.
            first.append(features[: WINDOW - self._rows].copy())
        self._rows += len(features)
        if self._rows < WINDOW:
            return
        odd = self._outside > OUTSIDE_SHARE * self._rows
        if first is not None:
            odd |= self._is_other(np.concatenate(first))
        if odd.any():
            self._has_warned = True
            _LOG.warning("%s", self._warning(np.flatnonzero(odd), first))
        self._rows, self._first = 0, None
        self._outside[:] = 0

    def _is_other(self, rows: Floats) -> npt.NDArray[np.bool_]:
        """Tells which features of the first window have another middle or spread than in training."""
        low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
        trained = self._quantiles.T
        spread, trained_spread = high - low, trained[15] - trained[5]
        # A feature whose middle half is one value, such as a flag, has no spread to compare.
        is_other_spread = (trained_spread > 0) & (
            (spread > SPREADS * trained_spread) | (spread * SPREADS < trained_spread)
        )
        return self._is_watched & ((middle < trained[1]) | (middle > trained[-2]) | is_other_spread)

    def _warning(self, odd: npt.NDArray[np.intp], first: list[Floats] | None) -> str:
        medians = None if first is None else np.median(np.concatenate(first), axis=0)
        parts = []
        for i in odd[:MAX_NAMED]:
            trained = self._quantiles[i]
            seen = f"{100 * min(1.0, self._outside[i] / self._rows):.0f} % outside"
            if medians is not None:
                seen += f", median {medians[i]:.4g}"
            parts.append(
                f"{self._names[i]} ({seen}; in training {trained[0]:.4g} to {trained[-1]:.4g}, "
                f"median {trained[10]:.4g})"
            )
        if len(odd) > MAX_NAMED:
            parts.append(f"{len(odd) - MAX_NAMED} more")
        return (
            f"{self._rows:,} transactions do not look like those that the model was trained on: "
            f"{', '.join(parts)}. Check the units (such as an amount in cents), the signs, and that values "
            "which training had as they were are not standardised. This is logged once; the counter "
            "values_out_of_range goes on"
        )

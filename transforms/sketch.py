"""A mergeable summary of numbers: how many, their sum, the greatest, and bins for quantiles. No Beam here.

A bin holds the numbers between two powers of GAMMA, so that a quantile is off by at most RELATIVE_ERROR of
its value, however the numbers are spread and in whatever order summaries are merged: bins of two summaries
are the same bins. It is the idea of DDSketch (Masson and others, 2019), on whole columns at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RELATIVE_ERROR: Final = 0.01
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG: Final = math.log(_GAMMA)
_SMALLEST, _LARGEST = 1e-9, 1e18
"""Numbers nearer to 0 count as 0, larger ones as the largest."""
_FIRST: Final = math.ceil(math.log(_SMALLEST) / _LOG)


def codes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Returns the number of the bin of each value, in the order of the values; 0 is the bin of 0."""
    sizes = np.abs(values)
    steps = np.ceil(np.log(np.clip(sizes, _SMALLEST, _LARGEST)) / _LOG) - _FIRST + 1
    return np.where(sizes < _SMALLEST, 0, np.copysign(steps, values)).astype(np.int32)


def centres(bins: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Returns the value that stands for each bin: RELATIVE_ERROR from both of its ends."""
    sizes = 2 * np.power(_GAMMA, np.abs(bins) - 1 + _FIRST) / (_GAMMA + 1)
    return np.where(bins == 0, 0.0, np.copysign(sizes, bins))


@dataclass(frozen=True, eq=False)
class Sketch:
    """A summary of some numbers.

    >>> left, right = Sketch.of(np.arange(1.0, 51.0)), Sketch.of(np.arange(51.0, 101.0))
    >>> both = Sketch.merged([left, right])
    >>> both.rows, both.mean, round(both.quantile(0.5)), both.greatest
    (100, 50.5, 50, 100.0)

    Attributes:
      bins: numbers of the bins that hold a number, ascending.
      counts: how many each holds.
      total: the sum.
      greatest: the largest number; -inf without any.
    """

    bins: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    total: float
    greatest: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Sketch:
        """Summarises finite numbers."""
        bins, counts = np.unique(codes(values), return_counts=True)
        greatest = float(values.max()) if len(values) else -math.inf
        return cls(bins, counts.astype(np.int64), float(values.sum()), greatest)

    @classmethod
    def merged(cls, sketches: Sequence[Sketch]) -> Sketch:
        """Returns the summary of all numbers of the summaries, of which there is at least one."""
        if len(sketches) == 1:
            return sketches[0]
        bins, places = np.unique(np.concatenate([each.bins for each in sketches]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, places, np.concatenate([each.counts for each in sketches]))
        total = math.fsum(each.total for each in sketches)
        return cls(bins, counts, total, max(each.greatest for each in sketches))

    @property
    def rows(self) -> int:
        """The number of numbers."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """Their mean; None without any."""
        return self.total / self.rows if self.rows else None

    def quantile(self, share: float) -> float | None:
        """Returns about the least number that a share of the numbers does not exceed; None without any."""
        if not self.rows:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), max(1.0, share * self.rows)))
        return min(float(centres(self.bins[place : place + 1])[0]), self.greatest)

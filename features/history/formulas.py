"""The formulas of the statistics: from the decayed sums of a key to the value of a feature.

N is the decayed count of the key's earlier transactions, x the value of the present one, SHRINK the number k.
A value is that of a key without history where N is 0, and moves to the key's own as N grows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from features.history.plan import SINCE_LAST_MOST
from features.kinds import MOST

Floats = npt.NDArray[np.float64]

SHRINK: Final = 3.0
"""Earlier transactions that count as much as the assumption that nothing is unusual."""
PRIOR_SPREAD: Final = 0.4
"""Mean absolute deviation over mean that a key is assumed to have before its own is known."""
TO_STANDARD: Final = 1.2533141373155001
"""Standard deviation over mean absolute deviation, of bell-shaped values."""
BOUND: Final = 2.0
"""Spreads within which a value counts for the robust level."""
MOST_DEVIATIONS: Final = 1000.0
"""A deviation saturates here."""

LEAST_COUNT: Final = 2.0**-960
"""Less is no count: near the least float64 a ratio of two decayed sums is made of a few bits."""

OF_NEW_KEY: Final = {
    "count": 0.0,
    "sum": 0.0,
    "mean": 0.0,
    "since_last": float(SINCE_LAST_MOST),
    "deviation": 0.0,
    "novelty": 0.0,
    "share": 1.0,
}
"""By statistic: the value of a key without history."""


def bounded(values: Floats) -> Floats:
    """Keeps values within float32."""
    # `np.clip` does the same at a cost that a few rows feel.
    return np.minimum(np.maximum(values, -MOST), MOST)


def zero_for_nan(values: Floats) -> Floats:
    """Puts 0 for NaN; `np.nan_to_num` would look for infinities as well."""
    return np.where(np.isnan(values), 0.0, values)


def mean(n: Floats, total: Floats) -> Floats:
    """total / N; 0 for a new key, and where the key's transactions have faded to less than LEAST_COUNT."""
    return np.divide(total, n, out=np.zeros(total.shape), where=n > LEAST_COUNT)


def spread(level: Floats, n: Floats, away: Floats) -> Floats:
    """s = TO_STANDARD (A + k PRIOR_SPREAD |m|) / (N + k), with the decayed sum A of deviations |x - m|."""
    return TO_STANDARD * (away + SHRINK * PRIOR_SPREAD * np.abs(level)) / (n + SHRINK)


def first_away(x: Floats) -> Floats:
    """The absolute deviation that the first value of a key counts with: PRIOR_SPREAD |x|."""
    return PRIOR_SPREAD * np.abs(x)


def deviation(x: Floats, level: Floats, scale: Floats, n: Floats) -> Floats:
    """(x - l) / s, within MOST_DEVIATIONS, times N / (N + k); 0 for a new key, and where x is missing.

    Level l and spread s are robust, so that a key's own frauds do not hide the next ones: what is farther
    than BOUND spreads from the plain mean of the key counts for both as if it were so far.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = zero_for_nan((x - level) / scale)
    return np.minimum(np.maximum(ratio, -MOST_DEVIATIONS), MOST_DEVIATIONS) * shrunk(n)


def shrunk(n: Floats) -> Floats:
    """N / (N + k): 0 for a new key, towards 1 for one with a long history."""
    return n / (n + SHRINK)


def share(count: Floats, n: Floats) -> Floats:
    """(c + k) / (N + k), with the decayed count c of the present value: towards c / N as N grows."""
    return (np.minimum(count, n) + SHRINK) / (n + SHRINK)

"""Which features explain a score: the largest contributions of each row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TOP_K = 3


def top_features(
    contributions: npt.NDArray[np.floating], k: int = TOP_K
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The `k` features that contribute most to the score of each row.

    Args:
      contributions: [n, 30], what `score` of the model answers; a row adds up to the row's anomaly_score.
      k: how many features, 1 to 30.

    Returns:
      indices: int [n, k] into `model.features.FEATURES`, by descending contribution; ties keep feature order.
      values: float64 [n, k], the contributions at these indices.

    Raises:
      ValueError: `contributions` is not a matrix, or `k` is not between 1 and its number of columns.
    """
    left = np.array(contributions, dtype=np.float64)
    if left.ndim != 2:
        raise ValueError(f"contributions must be a matrix [n, features], got shape {left.shape}")
    if not 1 <= k <= left.shape[1]:
        raise ValueError(f"k must be between 1 and {left.shape[1]}, got {k}")
    rows = np.arange(len(left))
    indices = np.empty((len(left), k), np.intp)
    values = np.empty((len(left), k), np.float64)
    # For a few of 30, k passes take less than half the time of a sort; argmax keeps ties in feature order.
    for place in range(k):
        best = left.argmax(axis=1)
        indices[:, place], values[:, place] = best, left[rows, best]
        left[rows, best] = -np.inf
    return indices, values

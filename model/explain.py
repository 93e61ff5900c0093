"""Explains a score by the features with the largest contributions."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

TOP_K = 3

_FEW = 16
"""Rows up to which a plain sort takes less time than the calls of the faster one."""
_SPARE_BITS = (1 << 29) - 1
"""The bits of a float64 that are zero when it holds a finite float32."""
_INFINITY = np.float64(np.inf).view(np.int64)
"""The bits of infinity; those of NaN without a sign are larger."""


def top_features(
    contributions: npt.NDArray[np.floating], k: int = TOP_K
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Finds the `k` features that contribute most to the score of each row.

    >>> indices, values = top_features(np.array([[0.5, 4.0, 0.25]]), k=2)
    >>> indices.tolist(), values.tolist()
    ([[1, 0]], [[4.0, 0.5]])

    Args:
      contributions: [n, k], from `score` of the model; none is negative, and a row adds up to its
        anomaly_score. Taken as float32, the model's own precision.
      k: how many features, at least 1 and at most all.

    Returns:
      indices: int [n, k] of the features, by descending contribution; ties keep feature order.
      values: float64 [n, k], the contributions at these indices.

    Raises:
      ValueError: `contributions` is not a matrix, or `k` is not between 1 and its number of columns.
    """
    matrix = np.asarray(contributions, np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"contributions must be a matrix [n, features], got shape {matrix.shape}")
    width = matrix.shape[1]
    if not 1 <= k <= width:
        raise ValueError(f"k must be between 1 and {width}, got {k}")
    if len(matrix) <= _FEW:
        return _sorted_top(matrix, k)
    # A float32 leaves 29 bits of a float64 empty. With the position in them, one sort of plain numbers, which
    # numpy does by vector instructions, orders values and positions: half the time of k passes of argmax.
    # Sorted as integers, which order as floats do where none is negative: a zero with its position is a
    # subnormal float, and a processor that flushes those would treat them as equal. -0.0 + 0.0 is a plain 0.
    keys = np.add(matrix, 0.0, dtype=np.float64)
    bits = keys.view(np.int64)
    bits |= _places(width)
    bits.sort(axis=1)
    if np.count_nonzero(bits[:, 0] < 0) or np.count_nonzero(bits[:, -1] >= _INFINITY):
        # This model answers no such value, but a server of another one may: sorted the slow way, not wrongly.
        return _sorted_top(matrix, k)
    values = np.ascontiguousarray(keys[:, : -k - 1 : -1])
    bits = values.view(np.int64)
    indices = width - 1 - (bits & _SPARE_BITS)
    bits &= ~_SPARE_BITS
    return indices, values


def _sorted_top(
    matrix: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    indices = (-matrix).argsort(axis=1, kind="stable")[:, :k]
    return indices, matrix[np.arange(len(matrix))[:, None], indices].astype(np.float64)


@functools.cache
def _places(width: int) -> npt.NDArray[np.int64]:
    return width - 1 - np.arange(width)

"""The rows that a history is updated with: keys, times and values of transactions as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.arrow import plain
from features.columns import category_texts, numbers, one_column
from features.history.hashing import NO_KEY, Hashes, hashes
from features.history.plan import Plan
from features.kinds import MOST


class Rows(NamedTuple):
    """Transactions, in any order.

    Attributes:
      keys: uint64 [n], hashes of the keys; NO_KEY for none, which has no history.
      times: int64 [n], microseconds since 1970.
      numbers: float64 [n, numbers of the plan]; NaN for none.
      categories: uint64 [n, categories of the plan], hashes of the values; 0 for none.
    """

    keys: Hashes
    times: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]
    categories: Hashes

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Rows:
        """Takes rows by their positions, a mask or a slice."""
        return Rows(self.keys[index], self.times[index], self.numbers[index], self.categories[index])


def inputs_of(plan: Plan, accounts: pa.Array, times: pa.Array, columns: Mapping[str, pa.Array]) -> Rows:
    """Reads what a plan needs of transactions. A value that cannot be read counts as missing.

    Args:
      plan: the history.
      accounts: the ids of the accounts, texts or whole numbers; null for none.
      times: event times, timestamps in microseconds; a row without one has no history.
      columns: at least those of the plan's key, numbers and categories.

    Raises:
      ColumnError: a column has a type that cannot be used.
    """
    keys = _hashes(accounts, "account") if plan.key is None else _hashes(columns[plan.key], plan.key)
    if times.null_count:
        keys = np.where(times.is_null().to_numpy(zero_copy_only=False), np.uint64(NO_KEY), keys)
    n = len(keys)
    return Rows(
        keys,
        pc.fill_null(times.cast(pa.int64()), 0).to_numpy(zero_copy_only=False),
        np.stack([_numbers(columns[name], name) for name in plan.numbers], axis=1)
        if plan.numbers
        else np.zeros((n, 0)),
        np.stack([_hashes(columns[name], name) for name in plan.categories], axis=1)
        if plan.categories
        else np.zeros((n, 0), np.uint64),
    )


def _numbers(column: pa.Array, name: str) -> npt.NDArray[np.float64]:
    values, _ = numbers(plain(one_column(column)), name)
    return np.where(np.abs(values) <= MOST, values, np.nan)


def _hashes(column: pa.Array, name: str) -> Hashes:
    texts, bad = category_texts(one_column(column), name)
    found = hashes(texts)
    return np.where(bad, np.uint64(NO_KEY), found) if bad.any() else found

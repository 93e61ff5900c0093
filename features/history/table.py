"""The histories of a bucket in memory, where rows change in place."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.history.plan import Plan
from features.history.state import Block

_GROWTH: Final = 1.5
_LEAST: Final = 64


class Table:
    """The histories of many keys. A few of them are found and replaced at a cost that does not grow with all.

    A Block is sorted, so that each new key would move all rows behind it. Here the keys alone are sorted, and
    say in which place of the growing arrays each row is.

    Args:
      plan: names the layout.
      block: the first content.
    """

    def __init__(self, plan: Plan, block: Block | None = None) -> None:
        self._plan = plan
        block = Block.empty(plan) if block is None else block
        self._keys = block.keys
        self._places: npt.NDArray[np.int64] = np.arange(len(block.keys))
        self._last = block.last.copy()
        self._numbers = block.numbers.copy()
        self._bits = block.bits.copy()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take, with the room for more keys."""
        arrays = (self._keys, self._places, self._last, self._numbers, self._bits)
        return sum(array.nbytes for array in arrays)

    def find(self, keys: npt.NDArray[np.uint64]) -> Block:
        """Returns the histories of those of the keys that have one.

        Args:
          keys: sorted, each once.
        """
        position = self._keys.searchsorted(keys)
        position[position == len(self)] = 0
        known = self._keys[position] == keys if len(self) else np.zeros(len(keys), bool)
        return self._at(keys[known], self._places[position[known]])

    def put(self, changed: Block) -> int:
        """Replaces or adds histories, and returns how many keys are new."""
        position = self._keys.searchsorted(changed.keys)
        inside = np.minimum(position, max(0, len(self) - 1))
        known = self._keys[inside] == changed.keys if len(self) else np.zeros(len(changed.keys), bool)
        places = np.empty(len(changed.keys), np.int64)
        places[known] = self._places[inside[known]]
        added = int(len(known) - known.sum())
        if added:
            start = len(self)
            self._reserve(start + added)
            is_new = ~known
            fresh = np.arange(start, start + added)
            places[is_new] = fresh
            # As `np.insert` of both arrays, whose preparation is most of its cost.
            at = position[is_new] + np.arange(added)
            is_old = np.ones(start + added, bool)
            is_old[at] = False
            self._keys = _inserted(self._keys, is_old, at, changed.keys[is_new])
            self._places = _inserted(self._places, is_old, at, fresh)
        self._last[places] = changed.last
        self._numbers[places] = changed.numbers
        self._bits[places] = changed.bits
        return added

    def block(self) -> Block:
        """Returns all histories."""
        return self._at(self._keys, self._places)

    def _at(self, keys: npt.NDArray[np.uint64], places: npt.NDArray[np.int64]) -> Block:
        return Block(keys, self._last[places], self._numbers[places], self._bits[places])

    def _reserve(self, count: int) -> None:
        if count <= len(self._last):
            return
        room = max(_LEAST, count, int(len(self._last) * _GROWTH))
        for name in ("_last", "_numbers", "_bits"):
            old = getattr(self, name)
            new = np.zeros((room, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def _inserted(
    old: npt.NDArray[Any], is_old: npt.NDArray[np.bool_], at: npt.NDArray[np.intp], new: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    merged = np.empty(len(is_old), old.dtype)
    merged[is_old] = old
    merged[at] = new
    return merged

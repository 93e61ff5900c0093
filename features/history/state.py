"""The state of many keys as a block of arrays: merged, compacted, written as bytes or as a record batch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.history.hashing import Hashes
from features.history.plan import Plan

Matrix = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]

_HEADER: Final = struct.Struct("<4s16sII")
_MAGIC: Final = b"AHB1"
MOST_LEAD: Final = 86_400_000_000
"""Microseconds by which the time of an event may lie ahead, where a job does not say otherwise."""


class StateError(ValueError):
    """The bytes or columns hold no state of this plan. The text says what was expected, and what came."""


class Block(NamedTuple):
    """The state of keys.

    Attributes:
      keys: uint64 [n], in order, each once.
      last: int64 [n], microseconds since 1970 of the last transaction.
      numbers: float64 [n, width of the plan], decayed to the last transaction.
      bits: uint64 [n, words of the plan].
    """

    keys: Hashes
    last: Times
    numbers: Matrix
    bits: Hashes

    @classmethod
    def empty(cls, plan: Plan) -> Block:
        """Makes the block without keys."""
        return cls(
            np.zeros(0, np.uint64),
            np.zeros(0, np.int64),
            np.zeros((0, plan.width)),
            np.zeros((0, plan.words), np.uint64),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self)

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Block:
        """Takes keys by their positions, in order, or by a mask."""
        return Block._make(array[index] for array in self)


def merge(block: Block, changed: Block) -> Block:
    """Returns the union of two blocks; the second has the later state of the keys that are in both."""
    if len(block.keys) == 0:
        return changed
    place = np.searchsorted(block.keys, changed.keys)
    is_known = block.keys[np.minimum(place, len(block.keys) - 1)] == changed.keys
    merged = Block._make(array.copy() for array in block)
    for old, new in zip(merged, changed, strict=True):
        old[place[is_known]] = new[is_known]
    if is_known.all():
        return merged
    fresh = changed.take(~is_known)
    at = place[~is_known]
    return Block._make(np.insert(old, at, new, axis=0) for old, new in zip(merged, fresh, strict=True))


def compact(plan: Plan, blocks: Sequence[Block], lead: int = MOST_LEAD) -> Block:
    """Makes one block of several, in which a later one has the later state.

    Keys that were not seen for the horizon of the plan are forgotten. `update` takes such a key for a new one
    whether it is there or not, so that forgetting changes no feature. The latest event in the blocks may be
    early: the present is taken to be before it by as much as an event may be early.

    Args:
      plan: of the blocks.
      blocks: in the order in which they were made.
      lead: how far the time of an event may lie ahead, in microseconds.
    """
    whole = Block._make(np.concatenate(arrays) for arrays in zip(Block.empty(plan), *blocks, strict=True))
    # The last one of each key: the first of the reversed order.
    keys, index = np.unique(whole.keys[::-1], return_index=True)
    kept = whole.take(len(whole.keys) - 1 - index)
    if len(keys) == 0:
        return kept
    # Subtracted from the present, not added to the last: a time at the end of the calendar stays a time.
    return kept.take(kept.last >= int(kept.last.max()) - lead - plan.horizon)


def to_bytes(plan: Plan, block: Block, buckets: int) -> bytes:
    """Writes a block for a log: a header of 28 bytes and the arrays, little-endian.

    Args:
      plan: of the block.
      block: the state.
      buckets: into how many buckets the keys are divided; the reader must expect the same number.
    """
    header = _HEADER.pack(_MAGIC, plan.version.encode(), buckets, len(block.keys))
    return header + b"".join(np.ascontiguousarray(array).tobytes() for array in block)


def from_bytes(plan: Plan, data: bytes, buckets: int) -> Block:
    """Reads what `to_bytes` wrote.

    Raises:
      StateError: the bytes are another thing, or the state of another plan or number of buckets.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise StateError("expected the state of a history, got other bytes, or those of another version")
    _, version, written_buckets, n = _HEADER.unpack_from(data)
    _check(plan, version.decode("ascii", "replace"), written_buckets, buckets)
    sizes = (8 * n, 8 * n, 8 * n * plan.width, 8 * n * plan.words)
    if len(data) != _HEADER.size + sum(sizes):
        raise StateError(f"expected {_HEADER.size + sum(sizes)} bytes of history state, got {len(data)}")
    arrays: list[Any] = []
    at = _HEADER.size
    for size, kind in zip(sizes, (np.uint64, np.int64, np.float64, np.uint64), strict=True):
        arrays.append(np.frombuffer(data, kind, size // 8, at))
        at += size
    return Block(arrays[0], arrays[1], arrays[2].reshape(n, plan.width), arrays[3].reshape(n, plan.words))


def schema(plan: Plan, buckets: int) -> pa.Schema:
    """The schema of a block as a record batch; its metadata has the version of the plan and the buckets."""
    return pa.schema(
        [
            pa.field("key", pa.uint64(), nullable=False),
            pa.field("last", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("numbers", pa.list_(pa.float64()), nullable=False),
            pa.field("bits", pa.list_(pa.uint64()), nullable=False),
        ],
        {"history_version": plan.version, "history_buckets": str(buckets)},
    )


def to_batch(plan: Plan, block: Block, buckets: int) -> pa.RecordBatch:
    """Makes a record batch of a block, for files."""
    n = len(block.keys)
    columns = [
        pa.array(block.keys),
        pa.array(block.last, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        # Not of a fixed size: Parquet takes no lists of size 0.
        *(
            pa.ListArray.from_arrays(
                (np.arange(n + 1) * matrix.shape[1]).astype(np.int32), pa.array(matrix.ravel())
            )
            for matrix in (block.numbers, block.bits)
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema(plan, buckets))


def from_batch(plan: Plan, batch: pa.RecordBatch, buckets: int) -> Block:
    """Reads what `to_batch` made.

    Raises:
      StateError: the columns are others, or the state is that of another plan or number of buckets.
    """
    metadata = batch.schema.metadata or {}
    _check(
        plan,
        metadata.get(b"history_version", b"none").decode("ascii", "replace"),
        int(metadata.get(b"history_buckets", b"0")),
        buckets,
    )
    wanted = schema(plan, buckets)
    if batch.schema.names != wanted.names:
        raise StateError(
            f"expected the columns {', '.join(wanted.names)}, got {', '.join(batch.schema.names)}"
        )
    n = batch.num_rows
    flat = [batch.column(i).flatten().to_numpy(zero_copy_only=False) for i in (2, 3)]
    return Block(
        batch.column(0).to_numpy(zero_copy_only=False),
        batch.column(1).cast(pa.int64()).to_numpy(zero_copy_only=False),
        flat[0].reshape(n, plan.width),
        flat[1].reshape(n, plan.words),
    )


def _check(plan: Plan, version: str, written: int, buckets: int) -> None:
    if version != plan.version:
        raise StateError(
            f"expected the history state {plan.version} of the model's feature spec, got {version}: the "
            "history features of the spec have changed; build the history anew with the present model"
        )
    if written != buckets:
        raise StateError(f"expected history state in {buckets} buckets, got {written}: pass the same number")

"""Columns in few calls: those of a batch of few rows cost the calls that make them."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

_FEW: Final = 16
"""Rows up to which buffers made here cost less than Arrow's own conversion."""
_TIME_BYTES: Final = 8


def one_time(micros: int, rows: int, kind: pa.TimestampType) -> pa.Array:
    """Makes a column of one time, in microseconds since the epoch.

    >>> one_time(1_000_000, 1, pa.timestamp("us")).to_pylist()
    [datetime.datetime(1970, 1, 1, 0, 0, 1)]
    """
    values = micros.to_bytes(_TIME_BYTES, sys.byteorder, signed=True) * rows
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(values)])


@functools.lru_cache(maxsize=32)
def no_texts(rows: int) -> pa.Array:
    """Makes a column of texts without any; those of the last numbers of rows are kept."""
    return pa.nulls(rows, pa.string())


@functools.lru_cache(maxsize=16)
def all_false(rows: int) -> pa.Array:
    """Makes a column of booleans that are all false."""
    return pa.repeat(pa.scalar(False), rows)


def texts(values: Sequence[str | None]) -> pa.Array:
    """Makes a column of texts.

    >>> texts(["a", "", None]).to_pylist()
    ['a', '', None]
    """
    if not any(values) and "" not in values:
        return no_texts(len(values))
    if len(values) > _FEW or not all(values):
        return pa.array(values, pa.string())
    parts = [value.encode() for value in values if value]
    ends = itertools.accumulate(map(len, parts), initial=0)
    offsets = np.fromiter(ends, np.int32, len(parts) + 1)
    return pa.StringArray.from_buffers(len(parts), pa.py_buffer(offsets), pa.py_buffer(b"".join(parts)))

"""Hashes of texts: 64 bits, the same in every process, on every machine and in every version."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

NO_KEY: Final = 0
"""The hash of null, which no text has."""
_WORD: Final = 8
_FIRST: Final = np.uint64(0x9E3779B97F4A7C15)
_SECOND: Final = np.uint64(0xBF58476D1CE4E5B9)
_THIRD: Final = np.uint64(0x94D049BB133111EB)


def hashes(texts: pa.Array) -> Hashes:
    """Hashes the UTF-8 of texts; NO_KEY for null.

    The multiply-and-shift mixing is that of splitmix64, over eight bytes at a time.

    >>> [hex(value) for value in hashes(pa.array(["acct-1", "", None])).tolist()]
    ['0xf5152d3140893b1d', '0xe220a8397b1dcdaf', '0x0']

    Args:
      texts: strings, or a dictionary of strings.
    """
    if pa.types.is_dictionary(texts.type):
        values = hashes(texts.dictionary)
        codes = texts.indices.fill_null(0).to_numpy(zero_copy_only=False)
        found = values[codes] if len(values) else np.zeros(len(texts), np.uint64)
    else:
        found = _hashes(texts.cast(pa.large_string()))
    if texts.null_count:
        found = np.where(texts.is_null().to_numpy(zero_copy_only=False), np.uint64(NO_KEY), found)
    return found


def _hashes(texts: pa.LargeStringArray) -> Hashes:
    n = len(texts)
    if n == 0:
        return np.zeros(0, np.uint64)
    _, offsets_buffer, data = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + n + 1]
    start, end = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(end - start + _WORD, np.uint8)
    if end > start:
        padded[: end - start] = np.frombuffer(data, np.uint8)[start:end]
    # A view of the eight bytes from each place on, little-endian on every machine.
    words = np.ndarray((end - start + 1,), "<u8", padded, strides=(1,))
    lengths, places = np.diff(offsets), offsets[:-1] - start
    mixed = _mix(lengths.astype(np.uint64) + _FIRST)
    rows: npt.NDArray[np.intp] | slice = slice(None)
    for at in range(0, int(lengths.max()), _WORD):
        if at:
            rows = np.flatnonzero(lengths > at)
        word = words[places[rows] + at if at else np.minimum(places, end - start)]
        left = np.clip(lengths[rows] - at, 0, _WORD).astype(np.uint64)
        # A shift by 64 is undefined: the bits beyond the text go in two steps.
        surplus = (np.uint64(_WORD) - left) * np.uint64(4)
        word = word << surplus << surplus
        mixed[rows] = np.where(left > 0, _mix((mixed[rows] ^ word) + _FIRST), mixed[rows])
    return np.where(mixed == NO_KEY, np.uint64(1), mixed)


def _mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * _SECOND
    values = (values ^ (values >> np.uint64(27))) * _THIRD
    return values ^ (values >> np.uint64(31))


def bucket_of(keys: Hashes, buckets: int) -> npt.NDArray[np.int64]:
    """Divides keys into buckets by their hashes; a multiple of `buckets` divides each bucket again.

    >>> bucket_of(hashes(pa.array(["acct-1", "acct-2"])), 16).tolist()
    [13, 13]
    """
    return (keys % np.uint64(buckets)).astype(np.int64)

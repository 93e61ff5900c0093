"""Ids of transactions that have none: hashes of their content, the same however often it is read."""

from __future__ import annotations

import binascii
import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def row_bytes(content: npt.NDArray[np.uint8]) -> list[bytes]:
    """Returns the bytes of each row of a matrix."""
    width = content.shape[1]
    rows = content.tobytes()
    return [rows[i : i + width] for i in range(0, len(rows), width)]


def fill_ids(ids: pa.Array, parts: list[bytes], accounts: pa.Array) -> pa.Array:
    """Derives the ids that are null: 128 bits over content and account, as 32 hex digits.

    Args:
      ids: [n].
      parts: content of the rows whose id is null, in order.
      accounts: [n].
    """
    missing = ids.is_null()
    if accounts.null_count < len(accounts):
        named = accounts.filter(missing).to_pylist()
        parts = [part + (name or "").encode() for part, name in zip(parts, named, strict=True)]
    digests = b"".join([hashlib.blake2b(part, digest_size=16).digest() for part in parts])
    # One string of all digits, cut every 32: a Python string for each row would cost as much as its hash.
    offsets = np.arange(0, 32 * len(parts) + 1, 32, dtype=np.int32)
    derived = pa.StringArray.from_buffers(
        len(parts), pa.py_buffer(offsets), pa.py_buffer(binascii.hexlify(digests))
    )
    return derived if len(parts) == len(ids) else pc.replace_with_mask(ids, missing, derived)

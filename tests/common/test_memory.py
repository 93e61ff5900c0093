"""Tests of the memory that is given back."""

from __future__ import annotations

import ctypes

import pytest

from common import memory

MEGABYTE = 1024 * 1024


def leave_hole(malloc: ctypes.CDLL, bytes_: int) -> int:
    """Writes small blocks and frees all but the last one, which keeps glibc from giving them back itself."""
    malloc.malloc.restype, malloc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size = 64 * 1024
    blocks = [malloc.malloc(size) for _ in range(bytes_ // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        malloc.free(block)
    return int(blocks[-1])


@pytest.mark.skipif(memory._TRIM is None, reason="another C library than glibc")
def test_memory_is_given_back_once_the_process_has_grown() -> None:
    malloc = ctypes.CDLL(None)
    memory.release()
    memory._TRIM(0)
    memory.release()
    before = memory.resident_bytes()
    last = leave_hole(malloc, 32 * MEGABYTE)
    assert not memory.release()  # so little is soon used again
    assert memory.resident_bytes() > before + 24 * MEGABYTE
    last_of_more = leave_hole(malloc, 256 * MEGABYTE)
    assert memory.release()
    assert memory.resident_bytes() < before + 64 * MEGABYTE
    assert not memory.release()
    for block in (last, last_of_more):
        malloc.free(block)

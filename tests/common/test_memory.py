"""Tests of the memory that is given back."""

from __future__ import annotations

import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from common import memory

MEGABYTE = 1024 * 1024


def leave_hole(malloc: ctypes.CDLL, bytes_: int) -> None:
    """Writes small blocks and frees all but the last one, which keeps glibc from giving them back itself."""
    malloc.malloc.restype, malloc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size = 64 * 1024
    blocks = [malloc.malloc(size) for _ in range(bytes_ // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        malloc.free(block)


def release_in_steps() -> tuple[bool, int, bool, int, bool]:
    """Calls release after 32 MB, after 256 MB more, and again; returns its answers and the growth in MB."""
    malloc = ctypes.CDLL(None)
    leave_hole(malloc, 128 * MEGABYTE)
    memory.release()  # from here on growth is counted
    before = memory.resident_bytes()
    leave_hole(malloc, 32 * MEGABYTE)
    after_little = memory.release()
    little = memory.resident_bytes() - before
    leave_hole(malloc, 256 * MEGABYTE)
    after_much = memory.release()
    much = memory.resident_bytes() - before
    return after_little, little // MEGABYTE, after_much, much // MEGABYTE, memory.release()


@pytest.mark.skipif(memory._TRIM is None, reason="another C library than glibc")
def test_memory_is_given_back_once_the_process_has_grown() -> None:
    # In a process of its own: this one has grown by what tests before have left, and their threads still run.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        after_little, little, after_much, much, at_once = pool.submit(release_in_steps).result()
    assert not after_little  # so little is soon used again
    assert little > 24
    assert after_much
    assert much < 64
    assert not at_once

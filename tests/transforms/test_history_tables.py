"""Histories in memory: a table finds what was put last, and tables that nobody needs go."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.history.plan import plans
from features.history.state import Block
from features.history.table import Table
from tests.transforms.history_cases import SPEC
from transforms.history_tables import MOST_IDLE, Tables

PLAN = plans(SPEC)[0]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_table_finds_what_was_put_last(sizes, seed):
    rng = np.random.default_rng(seed)
    table, known = Table(PLAN), {}
    for size in sizes:
        keys = np.unique(rng.integers(1, 100, size, dtype=np.uint64))
        n = len(keys)
        changed = Block(
            keys,
            rng.integers(0, 1000, n),
            rng.random((n, PLAN.width)),
            rng.integers(0, 9, (n, PLAN.words), dtype=np.uint64),
        )
        assert table.put(changed) == len(set(keys.tolist()) - known.keys())
        known |= dict.fromkeys(keys.tolist())
        found = table.find(keys)
        for one, other in zip(found, changed, strict=True):
            np.testing.assert_array_equal(one, other)
    whole = table.block()
    assert whole.keys.tolist() == sorted(known)
    assert len(table) == len(known)
    assert table.find(np.array([100, 2**63], np.uint64)).keys.tolist() == []


def filled(keys: int = 100) -> Table:
    table = Table(PLAN)
    numbers, bits = np.zeros((keys, PLAN.width)), np.zeros((keys, PLAN.words), np.uint64)
    table.put(Block(np.arange(1, keys + 1, dtype=np.uint64), np.zeros(keys, np.int64), numbers, bits))
    return table


def held(tables: Tables) -> list[int]:
    """The buckets whose tables are there."""
    there = []
    for bucket in range(100):
        table = tables.take(bucket, b"id")
        if table is not None:
            there.append(bucket)
            tables.keep(bucket, b"id", table)
    return there


def test_tables_that_were_used_least_recently_go_where_there_is_no_room():
    size = filled().nbytes
    tables = Tables(most_bytes=3 * size)
    for bucket in (1, 2, 3):
        tables.keep(bucket, b"id", filled())
    tables.keep(1, b"id", filled())
    assert tables.nbytes == 3 * size
    tables.keep(4, b"id", filled())
    assert held(tables) == [1, 3, 4]
    tables.keep(5, b"id", filled(1_000))
    assert held(tables) == [5], "one stays whatever its size"
    assert tables.nbytes == filled(1_000).nbytes


def test_tables_of_buckets_that_another_worker_has_go():
    clock = [0.0]
    tables = Tables(now=lambda: clock[0])
    for bucket in range(16):
        tables.keep(bucket, b"id", filled())
    for clock[0] in (MOST_IDLE / 2, MOST_IDLE, 1.5 * MOST_IDLE):
        tables.keep(3, b"id", filled())
    assert held(tables) == [3]
    assert tables.nbytes == filled().nbytes


def test_a_table_of_another_state_is_not_used():
    tables = Tables()
    tables.keep(1, b"id", filled())
    assert tables.take(1, b"other") is None
    assert tables.nbytes == 0

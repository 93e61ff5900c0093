"""The vectorised history is the plain one, whatever the order, the gaps, the batches and the buckets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.declaration import FeatureSpec
from features.history import state
from features.history.hashing import bucket_of
from features.history.plan import Plan, plans
from features.history.rows import Rows
from features.history.state import Block
from features.history.update import update
from tests.features.history.reference import Reference, Row

DAY = 86_400_000_000


def _history(name: str, statistic: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "history", "statistic": statistic, "by": "account", **more}


SPEC_AMOUNT = {"name": "amount", "kind": "number"}
SPEC = FeatureSpec.from_json(
    {
        "features": [
            SPEC_AMOUNT,
            _history("n_day", "count", half_life="1d"),
            _history("n_hour", "count", half_life="1h"),
            _history("total", "sum", of="amount", half_life="7d"),
            _history("level", "mean", of="amount", half_life="7d"),
            _history("idle", "since_last"),
            _history("high", "deviation", of="amount", half_life="7d"),
            _history("high_tip", "deviation", of="tip", half_life="30d"),
            _history("new_shop", "novelty", of="shop", half_life="7d"),
            _history("shop_share", "share", of="shop", half_life="7d"),
            _history("land_share", "share", of="land", half_life="30d"),
        ]
    }
)
(PLAN,) = plans(SPEC)


def _rows(rows: list[Row], plan: Plan = PLAN) -> Rows:
    numbers = [[np.nan if row[2][f] is None else row[2][f] for f in plan.numbers] for row in rows]
    return Rows(
        np.array([row[0] for row in rows], np.uint64),
        np.array([row[1] for row in rows], np.int64),
        np.array(numbers, np.float64).reshape(len(rows), len(plan.numbers)),
        np.array([[row[3][f] for f in plan.categories] for row in rows], np.uint64).reshape(
            len(rows), len(plan.categories)
        ),
    )


NUMBERS = st.one_of(st.none(), st.sampled_from([0.0, 10.0, 12.5]), st.floats(-1e6, 1e6))
HASHES = st.one_of(st.sampled_from([0, 0x123456789ABCDEF, 0xFEDCBA987654321]), st.integers(1, 2**64 - 1))


@st.composite
def streams(draw: st.DrawFn) -> list[list[Row]]:
    """Batches of rows: few keys, equal times, gaps beyond the horizon, and times that go back."""
    steps = st.sampled_from([0, 1, 60_000_000, DAY // 3, 3 * DAY, 40 * DAY, 400 * DAY, -DAY // 2, -20 * DAY])
    time, rows = 1_700_000_000_000_000, []
    for _ in range(draw(st.integers(1, 40))):
        time += draw(steps)
        numbers = {field: draw(NUMBERS) for field in ("amount", "tip")}
        categories = {field: draw(HASHES) for field in ("shop", "land")}
        rows.append((draw(st.sampled_from([0, 1, 2, 2, 2, 2**64 - 1])), time, numbers, categories))
    cuts = sorted({0, len(rows), *draw(st.lists(st.integers(1, len(rows)), max_size=5))})
    return [rows[a:b] for a, b in itertools.pairwise(cuts)]


def _expected(batches: list[list[Row]]) -> list[list[float]]:
    """The values of the plain history; within a batch, rows count in the order of their times."""
    reference = Reference(PLAN)
    values = []
    for batch in batches:
        order = sorted(range(len(batch)), key=lambda i: batch[i][1])
        of_batch: dict[int, list[float]] = {i: reference.values(batch[i]) for i in order}
        values += [of_batch[i] for i in range(len(batch))]
    return values


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(1, 4), st.booleans())
def test_update_is_the_plain_history(batches: list[list[Row]], buckets: int, compacts: bool) -> None:
    blocks = {bucket: Block.empty(PLAN) for bucket in range(buckets)}
    values = []
    for batch in batches:
        rows = _rows(batch)
        of_batch = np.empty((len(batch), len(PLAN.names)))
        for bucket, at in ((b, np.flatnonzero(bucket_of(rows.keys, buckets) == b)) for b in blocks):
            part, changed = update(PLAN, blocks[bucket], rows.take(at))
            of_batch[at] = part
            written = state.from_bytes(PLAN, state.to_bytes(PLAN, changed, buckets), buckets)
            if compacts:
                blocks[bucket] = state.compact(PLAN, [blocks[bucket], written])
            else:
                blocks[bucket] = state.merge(blocks[bucket], written)
        values.append(of_batch)
    np.testing.assert_allclose(np.concatenate(values), _expected(batches), rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(streams(), streams())
def test_a_row_that_does_not_count_reads_alone(counted: list[list[Row]], read: list[list[Row]]) -> None:
    reference, block = Reference(PLAN), Block.empty(PLAN)
    for batch in counted:
        for row in sorted(batch, key=lambda row: row[1]):
            reference.values(row)
        block = state.merge(block, update(PLAN, block, _rows(batch)).changed)
    rows = [row for batch in read for row in batch]
    values, changed = update(PLAN, block, _rows(rows), np.zeros(len(rows), bool))
    expected = [reference.values(row, is_counted=False) for row in rows]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert len(changed.keys) == 0


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_many_rows_of_one_key_are_those_of_the_plain_history(size: int) -> None:
    rng = np.random.default_rng(3)
    rows = [
        (9, int(t), {"amount": float(x), "tip": None}, {"shop": int(s) + 1, "land": int(s) % 3 * 77})
        for t, x, s in zip(
            np.cumsum(rng.integers(0, DAY // 4, 1000)),
            rng.lognormal(3, 1, 1000),
            rng.integers(0, 60, 1000),
            strict=True,
        )
    ]
    batches = [rows[at : at + size] for at in range(0, 1000, size)]
    block, values = Block.empty(PLAN), []
    for batch in batches:
        part, changed = update(PLAN, block, _rows(batch))
        block = state.merge(block, changed)
        values.append(part)
    np.testing.assert_allclose(np.concatenate(values), _expected(batches), rtol=1e-6, atol=1e-9)


def test_a_mean_keeps_its_value_and_ends_before_it_is_made_of_a_few_bits() -> None:
    mean = _history("level", "mean", of="amount", half_life="1h")
    (plan,) = plans(FeatureSpec.from_json({"features": [SPEC_AMOUNT, mean, _history("idle", "since_last")]}))
    _, changed = update(plan, Block.empty(plan), _rows([(1, 0, {"amount": 10.3}, {})], plan))
    hours = np.array([1, 900, 950, 1_000, 1_060, 1_073, 1_080])
    levels = [
        update(plan, changed, _rows([(1, int(hour) * 3_600_000_000, {"amount": 1.0}, {})], plan)).values[0, 0]
        for hour in hours
    ]
    np.testing.assert_allclose(levels, np.where(hours < 960, 10.3, 0.0), rtol=1e-9)

"""The state of keys: merged, compacted, written and read, and refused where it is that of another plan."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from features.declaration import FeatureSpec
from features.history import state
from features.history.hashing import bucket_of, hashes
from features.history.plan import Plan, plans
from features.history.rows import inputs_of
from features.history.state import Block, StateError
from features.history.update import update

DAY = 86_400_000_000


def _plan(half_life: str = "1d", **more: str) -> Plan:
    entry = {"name": "x", "kind": "history", "by": "account", "half_life": half_life}
    statistic = {"statistic": "novelty", "of": "shop"} if more else {"statistic": "count"}
    return plans(FeatureSpec.from_json({"features": [entry | statistic | more]}))[0]


def _block(plan: Plan, keys: list[int], last: list[int], number: float = 1.0) -> Block:
    n = len(keys)
    numbers = np.full((n, plan.width), number)
    bits = np.full((n, plan.words), 2**63 + 1, np.uint64)
    return Block(np.array(keys, np.uint64), np.array(last, np.int64), numbers, bits)


@pytest.mark.parametrize("plan", [_plan(), _plan(of="shop")], ids=["count", "novelty"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_block_comes_back_from_bytes_and_batches(plan: Plan, n: int) -> None:
    block = _block(plan, list(range(1, n + 1)), [-5, 10, 20, 30, 40][:n], 0.1)
    for again in (
        state.from_bytes(plan, state.to_bytes(plan, block, 16), 16),
        state.from_batch(plan, state.to_batch(plan, block, 16), 16),
    ):
        for old, new in zip(block, again, strict=True):
            np.testing.assert_array_equal(old, new)
            assert old.dtype == new.dtype


def test_the_state_of_another_plan_or_number_of_buckets_is_refused() -> None:
    plan, other = _plan(), _plan("2d")
    block = _block(plan, [1], [0])
    for written, read in (
        (state.to_bytes(plan, block, 16), state.from_bytes),
        (state.to_batch(plan, block, 16), state.from_batch),
    ):
        with pytest.raises(StateError, match=f"the history state {other.version} .*got {plan.version}"):
            read(other, written, 16)
        with pytest.raises(StateError, match="expected history state in 32 buckets, got 16"):
            read(plan, written, 32)
    data = state.to_bytes(plan, block, 16)
    with pytest.raises(StateError, match="expected 52 bytes of history state, got 51"):
        state.from_bytes(plan, data[:-1], 16)
    with pytest.raises(StateError, match="expected the state of a history, got other bytes"):
        state.from_bytes(plan, b"{}" + data, 16)


def test_a_later_state_wins_and_an_old_key_is_forgotten() -> None:
    plan = _plan()
    first, second = _block(plan, [1, 3, 5], [0, 0, 20 * DAY]), _block(plan, [2, 3], [DAY, 9 * DAY], 2.0)
    merged = state.merge(first, second)
    assert merged.keys.tolist() == [1, 2, 3, 5]
    assert merged.numbers[:, 0].tolist() == [1, 2, 2, 1]
    kept = state.compact(plan, [first, second])
    assert kept.keys.tolist() == [3, 5], "20 days are more than a day and 10 half-lives after 0 and 1"
    assert state.compact(plan, [first, second], lead=0).keys.tolist() == [5]
    assert state.compact(plan, [first, second], lead=10 * DAY).keys.tolist() == [1, 2, 3, 5]
    assert len(state.compact(plan, []).keys) == 0


def test_forgetting_a_key_changes_no_feature() -> None:
    plan = _plan()
    block = _block(plan, [1, 2], [0, 12 * DAY], 7.0)
    times = pa.array([11 * DAY], pa.timestamp("us", "UTC"))
    rows = inputs_of(plan, pa.array(["a"]), times, {})._replace(keys=np.array([1], np.uint64))
    forgotten = state.compact(plan, [block])
    assert forgotten.keys.tolist() == [2]
    for one in (block, forgotten):
        assert update(plan, one, rows).values.tolist() == [[0.0]]


def test_hashes_are_the_same_for_ever() -> None:
    texts = pa.array(["acct-1", "8 bytes!", "longer than eight bytes: zürich", "", None])
    expected = hashes(texts).tolist()
    assert expected[0] == 0xF5152D3140893B1D
    assert expected[-1] == 0
    assert len(set(expected)) == 5
    for same in (texts.dictionary_encode(), texts.cast(pa.large_string()), pa.concat_arrays([texts, texts])):
        assert hashes(same)[:5].tolist() == expected
    assert hashes(texts.slice(1, 2)).tolist() == expected[1:3]
    keys = hashes(pa.array([f"account {i}" for i in range(16_000)]))
    counts = np.bincount(bucket_of(keys, 16))
    assert 850 < counts.min() <= counts.max() < 1150, "buckets are of about equal size"
    assert (bucket_of(keys, 48) % 16 == bucket_of(keys, 16)).all()

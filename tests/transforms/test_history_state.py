"""The state of a bucket: bundles that fail, come again or move to another worker change no value."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.history.hashing import bucket_of
from features.history.plan import plans
from features.history.state import Block, StateError, from_bytes, to_bytes
from features.history.table import Table
from features.history.update import update
from tests.transforms.history_cases import SPEC, payments, transactions
from transforms import history_state
from transforms.history import with_rows
from transforms.history_state import Bucket, Head, HistoryStateError, apply, chunks
from transforms.history_tables import Tables

PLAN = plans(SPEC)[0]
ROWS = with_rows(PLAN, transactions(payments(200)))[1]
MICROS_A_DAY = 86_400_000_000
_OUTCOMES = st.sampled_from(["fails", "moves"])


class State:
    """A bag and a cell of Beam, that can be rolled back."""

    def __init__(self, items: list[bytes] | None = None, value: bytes | None = None) -> None:
        self.items = items or []
        self.value = value

    @property
    def log(self) -> Bag:
        return Bag(self)

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Bag:
    def __init__(self, state: State) -> None:
        self._items = state.items

    def read(self):
        return iter(list(self._items))

    def add(self, value: bytes) -> None:
        self._items.append(value)

    def clear(self) -> None:
        self._items.clear()


def of_bucket(rows, bucket: int, buckets: int):
    keys = np.where(rows.keys == 0, bucket, rows.keys)
    return np.flatnonzero(bucket_of(keys, buckets) == bucket)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_bundles_that_fail_and_workers_that_change_give_the_values_of_one_call(data):
    buckets = data.draw(st.sampled_from([1, 2, 16]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_state, "LEAST_LOG_BYTES", data.draw(st.sampled_from([0, 2_000, 10**6])))
        bucket = Bucket(PLAN, buckets)
        states = [State() for _ in range(buckets)]
        tables = Tables()
        wanted, _ = update(PLAN, Block.empty(PLAN), ROWS)
        values = np.full_like(wanted, np.nan)
        start = 0
        while start < len(ROWS.keys):
            size = data.draw(st.integers(1, 150))
            for number in range(buckets):
                index = of_bucket(ROWS, number, buckets)
                index = index[(index >= start) & (index < start + size)]
                if not len(index):
                    continue
                for outcome in [*data.draw(st.lists(_OUTCOMES, max_size=2)), ""]:
                    if outcome == "moves":
                        tables = Tables()  # another worker, or the same one after a restart
                    # What a bundle changes is there when it succeeds; the tables are not part of it.
                    attempt = copy.deepcopy(states[number])
                    parts = np.array_split(index, data.draw(st.integers(1, 2)))
                    for part in (part for part in parts if len(part)):
                        values[part] = bucket.update(
                            number, ROWS.take(part), attempt.log, attempt, tables
                        ).values
                    if outcome != "fails":
                        states[number] = attempt
                        break
            start += size
    rows = ROWS.keys != 0
    np.testing.assert_allclose(values[rows], wanted[rows], rtol=1e-6, atol=1e-6)


def stored(state: State) -> Block:
    """The histories in a log."""
    table = Table(PLAN)
    for entry in sorted(state.items, key=lambda entry: int.from_bytes(entry[:8], "little")):
        table.put(from_bytes(PLAN, entry[8:], 1))
    return table.block()


def run(bucket: Bucket, rows, state: State | None = None, tables: Tables | None = None):
    state, tables = state or State(), tables or Tables()
    return bucket.update(0, rows, state.log, state, tables), state


def test_the_log_is_compacted_when_it_has_doubled(monkeypatch):
    monkeypatch.setattr(history_state, "LEAST_LOG_BYTES", 1_000)
    bucket, state, tables, written, lengths = Bucket(PLAN, 1), State(), Tables(), 0, []
    for start in range(0, len(ROWS.keys), 5):
        updated, _ = run(bucket, ROWS.take(slice(start, start + 5)), state, tables)
        written += updated.written
        head = Head.from_bytes(state.value)
        assert sum(map(len, state.items)) == head.compacted + head.added
        assert head.added <= max(1_000, head.compacted)
        lengths.append(len(state.items))
    assert lengths.count(1) > 1  # compacted again and again
    entries = len(ROWS.keys) * len(to_bytes(PLAN, Block.empty(PLAN).take(slice(0)), 1)) + sum(
        array.nbytes for array in update(PLAN, Block.empty(PLAN), ROWS)[1]
    )
    assert written < 40 * entries


class Past:
    """Histories that a job begins with."""

    def __init__(self, rows) -> None:
        self.block = update(PLAN, Block.empty(PLAN), rows)[1]
        self.until = int(rows.times.max())
        self.loads = 0

    def load(self, plan, bucket):
        self.loads += 1
        return self.block


def test_a_start_is_loaded_once_and_its_events_are_not_counted_again():
    past = Past(ROWS.take(slice(0, 150)))
    wanted, changed = update(PLAN, Block.empty(PLAN), ROWS)
    state = State()
    updated, _ = run(Bucket(PLAN, 1, past), ROWS.take(slice(100, 200)), state)
    assert (updated.known, updated.late) == (50, updated.late)
    np.testing.assert_allclose(updated.values[50:], wanted[150:], rtol=1e-6)
    assert updated.written == sum(map(len, state.items)) + len(state.value), "what was loaded is written also"
    again, _ = run(Bucket(PLAN, 1, past), ROWS.take(slice(100, 150)), state)
    assert (again.known, again.new_keys, again.written, past.loads) == (50, 0, 0, 1)
    assert again.late == 0, "a row that does not count is not late"
    # The files may be gone: the state stands alone.
    np.testing.assert_allclose(stored(state).numbers, changed.numbers, rtol=1e-9)


def test_late_rows_are_counted_as_such():
    _, state = run(Bucket(PLAN, 1), ROWS.take(slice(50, 200)))
    keyed = ROWS.take(np.flatnonzero(ROWS.keys[:50] != 0))
    updated, _ = run(Bucket(PLAN, 1), keyed, state)
    assert updated.late == len(keyed.keys)
    assert np.isfinite(updated.values).all()


def test_forgotten_keys_leave_the_state(monkeypatch):
    monkeypatch.setattr(history_state, "LEAST_LOG_BYTES", 0)
    state, tables = State(), Tables()
    run(Bucket(PLAN, 1), ROWS, state, tables)
    one = ROWS.take(slice(0, 1))
    later = one._replace(times=one.times + PLAN.horizon + 100 * MICROS_A_DAY)
    for _ in range(40):
        run(Bucket(PLAN, 1), later, state, tables)
    assert len(stored(state).keys) == 1


def test_an_early_event_makes_no_other_key_new(monkeypatch):
    monkeypatch.setattr(history_state, "LEAST_LOG_BYTES", 0)
    plan = plans(SPEC)[1]  # a horizon of ten days
    lead = int(1.5 * plan.horizon)
    rows = with_rows(plan, transactions(payments(20)))[1]
    now = int(rows.times.max())
    rows = rows._replace(times=np.full_like(rows.times, now))
    early = rows.take(slice(0, 1))._replace(times=np.array([now + lead]))
    others = rows.take(rows.keys != early.keys[0])
    for tolerated, is_known in ((lead, True), (0, False)):
        state, bucket = State(), Bucket(plan, 1, lead=tolerated)
        for each in (rows, early, early):  # written anew with each
            run(bucket, each, state)
        updated, _ = run(bucket, others, state)
        assert (updated.values[0, 0] > 1, updated.new_keys == 0) == (is_known, is_known)


def test_the_state_of_another_job_is_refused_in_words():
    _, state = run(Bucket(PLAN, 1), ROWS)
    other = plans(SPEC)[1]
    remedy = "drain the job and launch a new one with --history"
    with pytest.raises(HistoryStateError, match=rf"expected that of {PLAN.version} in 2 buckets.*{remedy}"):
        run(Bucket(PLAN, 2), ROWS, state)
    with pytest.raises(HistoryStateError, match=f"expected that of {other.version}.*got {PLAN.version}"):
        run(Bucket(other, 1), ROWS, state)
    state.value = b"\x09" + state.value[1:]
    for old in (1, 9):
        state.value = bytes([old]) + state.value[1:]
        with pytest.raises(HistoryStateError, match=f"expected format 2, got {old}. {'.*' + remedy}"):
            run(Bucket(PLAN, 1), ROWS, state)
    with pytest.raises(StateError):
        from_bytes(other, state.items[0][8:], 1)


def logged(count: int) -> State:
    """The state after some updates of the same keys, one entry each."""
    state = State()
    for start in range(0, 10 * count, 10):
        run(Bucket(PLAN, 1), ROWS.take(slice(start, start + 10)), state)
    return state


def test_the_log_may_be_read_in_any_order():
    state, last = logged(12), ROWS.take(slice(120, 150))
    wanted, _ = run(Bucket(PLAN, 1), last, copy.deepcopy(state))
    for seed in range(3):
        shuffled = State(random.Random(seed).sample(state.items, len(state.items)), state.value)
        assert shuffled.items != state.items
        np.testing.assert_array_equal(run(Bucket(PLAN, 1), last, shuffled)[0].values, wanted.values)


@pytest.mark.parametrize(
    ("damaged", "got"),
    [
        (lambda items: items[:-1], "got 4 entries"),
        (lambda items: items[1:], "got 4 entries"),
        (lambda items: [*items, items[0]], "got 6 entries"),
        (lambda items: [*items[:-1], items[0]], "got 5 entries"),
    ],
    ids=["without the last", "without the first", "one twice", "one in place of another"],
)
def test_a_log_with_other_entries_than_the_head_says_is_refused(damaged, got):
    state = logged(5)
    state.items = damaged(state.items)
    with pytest.raises(HistoryStateError, match=f"bucket 0: expected entries 0 to 4 with .* {got} .*drain"):
        run(Bucket(PLAN, 1), ROWS, state)


def test_an_empty_table_is_not_read_again(monkeypatch):
    state, tables = State(), Tables()
    no_keys = ROWS._replace(keys=np.zeros_like(ROWS.keys))
    run(Bucket(PLAN, 1), no_keys, state, tables)
    monkeypatch.setattr(Bucket, "_decoded", None)
    run(Bucket(PLAN, 1), no_keys, state, tables)


def test_long_blocks_are_cut():
    block = update(PLAN, Block.empty(PLAN), ROWS)[1]
    pieces = chunks(block, 1_000)
    assert len(pieces) > 1
    assert max(piece.nbytes for piece in pieces) <= 1_000
    assert [*np.concatenate([piece.keys for piece in pieces])] == [*block.keys]
    assert chunks(Block.empty(PLAN)) == []


def test_rows_without_a_key_change_nothing():
    rows = ROWS._replace(keys=np.zeros_like(ROWS.keys))
    table = Table(PLAN)
    applied = apply(PLAN, table, rows)
    assert (len(table), applied.new_keys, applied.late) == (0, 0, 0)

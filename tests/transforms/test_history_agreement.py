"""Training, messages, columns, and jobs that begin with files agree, whatever keys and times are."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.history.columns import add_history
from features.history.hashing import bucket_of
from features.history.plan import plans
from features.history.rows import Rows
from features.history.state import Block
from features.history.table import Table
from features.history.update import update
from features.learnt import NOTHING
from model.dataset import from_arrow
from tests.transforms.history_cases import spec_of
from transforms.columnar import to_transactions
from transforms.forms import Encoding
from transforms.history import with_rows
from transforms.history_files import GROUPS_A_BUCKET, HistoryFiles, Keys, write_bucket
from transforms.history_state import apply
from transforms.message import MessageColumns, MessageRules, parse_messages

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SPEC = spec_of("shop", account="card", event_time="time")
NAMES = [feature.name for feature in SPEC.history]
RULES = MessageRules(NOW, roles=SPEC.roles, encoding=Encoding(SPEC, NOTHING))

TEXTS = [
    "a",
    "A",
    "é",
    "e\u0301",
    "日本",
    "😀",
    " a",
    "1",
    "01",
    "1.0",
    "true",
    "\x00",
    "x" * 256,
    "x" * 257,
    None,
]
ACCOUNTS = {
    pa.string(): st.sampled_from(TEXTS),
    pa.int64(): st.sampled_from([None, -1, 0, 1, 2**53 + 1, 2**63 - 1]),
}
SHOPS = ACCOUNTS | {
    pa.bool_(): st.sampled_from([True, False, None]),
    pa.float64(): st.sampled_from([1.0, -0.0, 2.5, 2.0**60, None]),
}
TIMES = {
    "text": pa.string(),
    "naive": pa.timestamp("us"),
    "other zone": pa.timestamp("us", "Asia/Kolkata"),
    "nanoseconds": pa.timestamp("ns", "UTC"),
    "seconds": pa.int64(),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Payments with keys of one type; times in any order, over more than the horizon of a day's count."""
    account, shop = draw(st.sampled_from([*ACCOUNTS])), draw(st.sampled_from([*SHOPS]))
    row = st.tuples(
        ACCOUNTS[account], SHOPS[shop], st.integers(0, 40 * 86_400), st.sampled_from([0, -5, 10.5, 1e30])
    )
    rows = draw(st.lists(row, min_size=1, max_size=25))
    form = draw(st.sampled_from([*TIMES]))
    moments = [NOW - dt.timedelta(seconds=seconds) for _, _, seconds, _ in rows]
    offsets = [dt.timezone(dt.timedelta(hours=seconds % 27 - 12)) for _, _, seconds, _ in rows]
    if form == "text":
        times = pa.array(
            [each.astimezone(zone).isoformat() for each, zone in zip(moments, offsets, strict=True)]
        )
    elif form == "seconds":
        times = pa.array([int(each.timestamp()) for each in moments])
    else:
        times = pa.array(moments, pa.timestamp("us", "UTC")).cast(TIMES[form])
    return pa.table(
        {
            "transaction_id": [f"t{i:03d}" for i in range(len(rows))],
            "card": pa.array([each[0] for each in rows], account),
            "shop": pa.array([each[1] for each in rows], shop),
            "time": times,
            "amount": pa.array([float(each[3]) for each in rows]),
        }
    )


def messages(table: pa.Table) -> list[bytes]:
    def text(value: Any) -> Any:
        return (
            value.replace(tzinfo=value.tzinfo or dt.UTC).isoformat()
            if isinstance(value, dt.datetime)
            else value
        )

    table = table.set_column(
        3,
        "time",
        table["time"].cast(pa.timestamp("us", table["time"].type.tz))
        if pa.types.is_timestamp(table["time"].type)
        else table["time"],
    )
    return [
        json.dumps({name: text(value) for name, value in row.items()}).encode() for row in table.to_pylist()
    ]


def values(transactions: pa.RecordBatch) -> dict[str, np.ndarray]:
    """By transaction: the history features."""
    found = {}
    for plan in plans(SPEC):
        columns, _ = update(plan, Block.empty(plan), with_rows(plan, transactions)[1])
        found |= dict(zip(plan.names, columns.T, strict=True))
    matrix = np.stack([found[name] for name in NAMES], axis=1)
    return dict(zip(transactions["transaction_id"].to_pylist(), matrix, strict=True))


@settings(deadline=None)
@given(tables())
def test_training_messages_and_columns_agree(table):
    """Also on rows that are dead letters: in training they are in no history."""
    by_message = values(parse_messages(MessageColumns(messages(table)), RULES).transactions)
    by_column = values(to_transactions(table.to_batches()[0], NOW, RULES).transactions)
    columns = {name: table[name] for name in SPEC.message_fields}
    trained = add_history(SPEC, table, columns)
    assert by_message.keys() == by_column.keys()
    for i, key in enumerate(table["transaction_id"].to_pylist()):
        if key in by_message:
            np.testing.assert_allclose(by_message[key], by_column[key], rtol=1e-6, atol=1e-6)
            row = [trained[name][i].as_py() for name in NAMES]
            np.testing.assert_allclose(by_message[key], row, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("column", "refused"), [("card", "x" * 257), ("transaction_id", "x" * 257), ("shop", 2.5)]
)
def test_a_dead_letter_is_in_no_history_of_the_training(column, refused):
    """Another account, or shop, would have one payment more than in production."""
    kept = {"transaction_id": "t", "card": "a", "shop": 1.0, "time": NOW, "amount": 1.0}
    rows = [kept | {"time": NOW - dt.timedelta(days=1), column: refused}, kept]
    assert (
        parse_messages(MessageColumns(messages(pa.Table.from_pylist(rows))), RULES).dead_letters.num_rows == 1
    )
    features = from_arrow(pa.Table.from_pylist(rows), "x", spec=SPEC).features
    counts = [NAMES.index("payments") + 1, NAMES.index("shop_payments") + 1]
    assert features[-1, counts].tolist() == [0, 0]


DAY = 86_400_000_000
PAYMENT = st.tuples(
    st.sampled_from([0, 1, 2, 2**63, 2**64 - 1, 17, 33, 4097]),  # keys; 0 is none
    st.sampled_from([0, 1, DAY // 2, DAY, 20 * DAY, 400 * DAY]),  # after the one before
    st.floats(-1e6, 1e6) | st.just(float("nan")),
    st.integers(0, 5),
)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(PAYMENT, min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 3])), max_size=3),
)
def test_jobs_that_begin_with_files_have_the_values_of_one_job(payments, builds):
    """With any number of buckets at each build, and gaps in which accounts are forgotten."""
    keys, gaps, amounts, shops = zip(*payments, strict=True)
    plan = plans(SPEC)[0]
    rows = Rows(
        np.array(keys, np.uint64),
        1_700_000_000_000_000 + np.cumsum(np.array(gaps, np.int64)),
        np.array(amounts, float).reshape(-1, 1),
        np.array(shops, np.uint64).reshape(-1, 1) << np.uint64(20),
    )
    wanted, _ = update(plan, Block.empty(plan), rows)
    table, start, done = Table(plan), 0, []
    with TemporaryDirectory() as place:
        for i, (end, buckets) in enumerate([*sorted(builds), (len(payments), 1)]):
            end = min(end, len(payments))
            # Rows of the last time would be taken for known ones.
            while 0 < end < len(payments) and rows.times[end] == rows.times[end - 1]:
                end += 1
            until = int(rows.times[start - 1]) if start else -(2**63)
            if end > start:
                done.append(apply(plan, table, rows.take(slice(start, end)), until).values)
                start = end
            table = from_files(plan, table.block(), Path(place, str(i)), buckets)
    np.testing.assert_allclose(np.concatenate(done), wanted, rtol=1e-6, atol=1e-6)


def from_files(plan, block: Block, place: Path, buckets: int) -> Table:
    """Writes the histories, and reads them as the groups of a batch job do."""
    for bucket in range(buckets):
        own = block.take(bucket_of(block.keys, buckets) == bucket)
        write_bucket(str(place), "d", plan, own, bucket, buckets, "build")
    keys = (Keys("account", plan.version, "d", len(block.keys), tuple(range(buckets))),)
    files = HistoryFiles(str(place), buckets, 0, "build", keys=keys)
    table = Table(plan)
    for group in range(buckets * GROUPS_A_BUCKET):
        table.put(files.load_group(plan, group))
    assert sum(len(files.load(plan, bucket).keys) for bucket in range(buckets)) == len(table)
    return table

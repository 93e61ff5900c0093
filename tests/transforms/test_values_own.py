"""Drives ids, accounts and times of the table in docs/messages.md through a feature spec of one's own."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from features.declaration import FeatureSpec
from features.history.columns import add_history
from features.learnt import Learnt
from tests.transforms.test_values import CASES, NOTHING, NOW, Case, array, name_of, replayed
from transforms.columnar import to_transactions
from transforms.forms import Encoding
from transforms.message import MessageColumns, MessageRules, Parsed, parse_messages

SPEC = FeatureSpec.from_json(
    {
        "features": [
            {"name": "amount", "kind": "number"},
            {"name": "visits", "kind": "history", "statistic": "count", "by": "shop", "half_life": "1d"},
        ]
    }
)
RULES = MessageRules(encoding=Encoding(SPEC, Learnt()), default_time=NOW)
ROW = {"transaction_id": "t-0", "account_id": "a-0", "event_time": "2026-11-25T00:00:00Z"}
ROLES = [case for case in CASES if case.column in ROW and not case.is_refused]


def parsed(case: Case) -> Parsed:
    row: dict[str, Any] = ROW | {"amount": 1.5, "shop": "s", case.column: case.value}
    if case.kind is None:
        return parse_messages(MessageColumns([orjson.dumps(row)]), RULES)
    columns = {name: pa.array([value]) for name, value in row.items()}
    columns[case.column] = array(case.value, case.kind)
    return to_transactions(pa.RecordBatch.from_pydict(columns), NOW, RULES)


@pytest.mark.parametrize("case", ROLES, ids=name_of)
def test_a_role_is_read_the_same_way_whatever_brings_it(case):
    result = parsed(case)
    reasons = result.dead_letters.column("errorMessage").to_pylist()
    if case.expected is NOTHING:
        (reason,) = reasons
        assert reason.startswith(f"{case.column}: ")
        again = replayed(result.dead_letters, RULES)
        assert again.dead_letters.column("errorMessage").to_pylist() == reasons
        return
    assert reasons == []
    (value,) = result.transactions.column(case.column).to_pylist()
    if case.column == "event_time":
        assert value == (NOW if case.expected is None else dt.datetime.fromisoformat(case.expected))
    elif case.expected is not None or case.column == "account_id":
        assert value == case.expected
    assert result.ids_derived == (case.column == "transaction_id" and case.expected is None)


@pytest.mark.parametrize("role", ["transaction_id", "account_id", "event_time"])
def test_a_row_with_an_empty_role_counts_in_no_history_of_a_training(role):
    rows = [ROW | {"transaction_id": f"t-{i}", "amount": 1.5, "shop": "s"} for i in range(3)]
    rows[1][role] = ""
    table = pa.Table.from_pylist(rows)
    visits = add_history(SPEC, table, {name: table[name] for name in ("amount", "shop")})["visits"]
    np.testing.assert_allclose(visits.take(pa.array([0, 2])), [0, 1])

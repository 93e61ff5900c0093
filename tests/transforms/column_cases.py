"""A table in which every role and kind of feature stands, and what the columnar way makes of it."""

from __future__ import annotations

import pyarrow as pa

from features.declaration import FeatureSpec
from features.learning import learn
from tests.transforms.test_own_features import NOW, check_conserved, rules_of
from transforms.columnar import to_transactions
from transforms.message import MessageColumns, MessageRules, Parsed, parse_messages

TIME = b"2026-03-01T11:00:00Z"
ROLES = {"transaction_id": "id", "account": "who", "event_time": "when", "amount": "paid"}
SPEC = FeatureSpec.from_json(
    ROLES
    | {
        "features": [
            {"name": "city", "kind": "category"},
            {"name": "known", "kind": "boolean"},
            {"name": "x", "kind": "number", "missing": "median"},
        ]
    }
)
GOOD = {"id": b"t", "who": b"a", "when": TIME, "paid": b"1.5", "city": b"NZ", "known": b"true", "x": b"2"}


def table_of(**columns: pa.Array) -> pa.Table:
    rows = len(next(iter(columns.values())))
    good = {
        name: pa.array([b"%b%d" % (value, i) if name == "id" else value for i in range(rows)]).view(
            pa.string()
        )
        for name, value in GOOD.items()
    }
    return pa.table(good | columns)


def parsed_of(table: pa.Table, rules: MessageRules) -> Parsed:
    (batch,) = table.combine_chunks().to_batches()
    parsed = to_transactions(batch, NOW, rules)
    check_conserved(parsed, len(table))
    parsed.transactions.validate(full=True)
    # What was rejected is rejected when it is sent again, for its value and not for its form.
    letters = parsed.dead_letters.column("payloadBytes").to_pylist()
    assert parse_messages(MessageColumns(letters), rules).transactions.num_rows == 0
    return parsed


def learnt_rules() -> MessageRules:
    return rules_of(SPEC, learn(SPEC, table_of(city=pa.array(["NZ", "NZ", "DE"]))))

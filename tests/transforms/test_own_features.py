"""Messages and columns of generated specs: conservation, no exception, the same encoding everywhere."""

from __future__ import annotations

import datetime as dt

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.declaration import FeatureSpec
from features.history.plan import plans
from features.learning import learn
from features.learnt import Learnt, Rarity
from features.rows import RowEncoder
from tests.features.cases import rows, specs
from transforms.alert import alerts
from transforms.columnar import to_transactions
from transforms.forms import Encoding
from transforms.history import with_history, with_rows, with_values
from transforms.instances import instances, plain_instances
from transforms.message import MessageColumns, MessageRules, Parsed, parse_messages
from transforms.scores import ScoreRules, assemble_scores, feature_matrix, transaction_messages
from transforms.topics import row_messages

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def rules_of(spec: FeatureSpec, learnt: Learnt) -> MessageRules:
    wide = dt.timedelta(days=200_000)
    return MessageRules(NOW, max_lead=wide, max_age=wide, roles=spec.roles, encoding=Encoding(spec, learnt))


def check_conserved(parsed: Parsed, n: int) -> None:
    assert parsed.transactions.num_rows + parsed.dead_letters.num_rows == n
    assert np.isfinite(feature_matrix(parsed.transactions)).all()
    assert all(parsed.dead_letters.column("errorMessage").to_pylist())


@given(st.data())
def test_pipeline_and_servers_encode_alike_and_lose_nothing(data):
    spec = data.draw(specs())
    objects, table = data.draw(rows(spec, least=1))
    rules = rules_of(spec, learn(spec, table))
    payloads = [orjson.dumps(row | {"transaction_id": str(i)}) for i, row in enumerate(objects)]
    parsed = parse_messages(MessageColumns(payloads), rules)
    check_conserved(parsed, len(objects))
    encoder = RowEncoder(spec, rules.encoding.learnt)
    by_rows = encoder.encode([orjson.loads(payload) for payload in payloads])
    for i, row in zip(
        parsed.transactions["transaction_id"].to_pylist(), feature_matrix(parsed.transactions), strict=True
    ):
        if int(i) not in by_rows.reasons:  # the pipeline fills in a time that is missing
            np.testing.assert_allclose(row, by_rows.inputs[int(i)], rtol=1e-6, atol=1e-6)
    # As a server gets them: a spec of numbers alone sends a matrix, which is lists of numbers in JSON.
    sent = orjson.dumps(instances(parsed.transactions, spec), option=orjson.OPT_SERIALIZE_NUMPY)
    asked = encoder.encode(orjson.loads(sent))
    assert asked.reasons == {}
    np.testing.assert_allclose(asked.inputs, feature_matrix(parsed.transactions), rtol=1e-6, atol=1e-6)


@given(st.data())
def test_columns_and_what_is_sent_again_give_the_same_transactions(data):
    spec = data.draw(specs())
    objects, table = data.draw(rows(spec, least=1))
    rules = rules_of(spec, learn(spec, table))
    ids = pa.array([str(i) for i in range(len(objects))])
    if "when" not in table.column_names:
        table = table.append_column("when", pa.nulls(len(objects)))
    batch = table.append_column("transaction_id", ids).combine_chunks().to_batches()[0]
    parsed = to_transactions(batch, NOW, rules)
    check_conserved(parsed, len(objects))
    again = parse_messages(MessageColumns(transaction_messages(parsed.transactions, spec)), rules)
    assert again.transactions.drop_columns(["event_time"]).equals(
        parsed.transactions.drop_columns(["event_time"])
    )
    letters = parsed.dead_letters.column("payloadBytes").to_pylist()
    assert parse_messages(MessageColumns(letters), rules).transactions.num_rows == 0


SPEC = FeatureSpec.from_json(
    {
        "amount": "paid.amount",
        "features": [
            {"name": "amount", "from": "paid.amount", "kind": "number"},
            {"name": "country", "kind": "category", "missing": "own"},
            {"name": "present", "kind": "boolean"},
            {"name": "hour", "kind": "time_of_day", "timezone": "Europe/Berlin"},
        ],
    }
)
RARITIES = Learnt({"country": Rarity.of_counts({"NZ": 9}, 1, 9)})


def test_a_reviewer_reads_the_values_of_rows_above_the_lowest_severity_in_tables_and_messages():
    payloads = [
        b'{"paid": {"amount": 4312.50}, "country": "NZ", "present": true, "event_time": '
        b'"2026-03-01T02:17:00Z"}',
        b'{"paid": {"amount": 7}, "present": false}',
    ]
    batch = parse_messages(MessageColumns(payloads), rules_of(SPEC, RARITIES)).transactions
    shares = np.array([[1.0, 5.0, 0.5, 2.0, 4.0]] * 2, np.float32)
    outputs = {"anomaly_score": np.array([25.0, 1.0]), "encoded": np.zeros((2, 2)), "contributions": shares}
    rules = ScoreRules({"medium": 10.0, "high": 20.0}, "v1", spec=SPEC)
    scored = assemble_scores(batch, outputs, rules, 0).scores
    high, normal = scored.to_pylist()
    assert high["amount"] == 4312.5
    assert high["top_features"] == [
        {"feature": "hour", "contribution": 6.0, "value": "03:17"},
        {"feature": "country", "contribution": 5.0, "value": "NZ"},
        {"feature": "amount", "contribution": 1.0, "value": "4312.5"},
    ]
    assert [item["value"] for item in normal["top_features"]] == [None] * 3
    assert normal["amount"] == 7.0
    (alert,) = row_messages(alerts(scored))
    sent = orjson.loads(alert.data)
    assert (sent["severity"], sent["amount"]) == ("high", 4312.5)
    assert sent["top_features"] == high["top_features"]


def test_a_reviewer_reads_what_a_history_feature_means():
    history = {"kind": "history", "by": "account"}
    spec = FeatureSpec.from_json(
        {
            "features": [
                {"name": "amount", "kind": "number"},
                {"name": "level", "statistic": "deviation", "of": "amount", "half_life": "30d"} | history,
                {"name": "burst", "statistic": "count", "half_life": "1h"} | history,
            ],
        }
    )
    parsed = parse_messages(MessageColumns([b'{"amount": 900}']), rules_of(spec, Learnt({})))
    (plan,) = plans(spec)
    with_sums, _ = with_rows(plan, parsed.transactions)
    batch = with_history(plan, with_values(with_sums, np.array([[6.14, 0.0]])))
    shares = np.array([[1.0, 6.0, 3.0]], np.float32)
    outputs = {"anomaly_score": np.array([10.0]), "encoded": np.zeros((1, 2)), "contributions": shares}
    rules = ScoreRules({"medium": 5.0, "high": 20.0}, "v1", spec=spec)
    scores = assemble_scores(batch, outputs, rules, 0).scores
    clause = "amount is 6.1 deviations over this account's 30-day level"
    (row,) = scores.to_pylist()
    assert [top["value"] for top in row["top_features"]] == [
        clause,
        "this account has 0 earlier transactions, at a half-life of 1 hour",
        "900",
    ]
    (alert,) = row_messages(alerts(scores))
    assert orjson.loads(alert.data)["top_features"][0]["value"] == clause


def test_a_server_of_the_spec_takes_the_plain_instance():
    for form in ("any", "seconds", "milliseconds", "%d.%m.%Y"):
        spec = FeatureSpec.from_json(SPEC.to_json() | {"event_time": {"from": "event_time", "format": form}})
        assert RowEncoder(spec, RARITIES).encode(plain_instances(spec)).reasons == {}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"paid": 5, "present": true}', "paid.amount: expected a finite number within float32, got null"),
        (
            b'{"paid": {"amount": 1e39}, "present": true}',
            "paid.amount: expected a finite number within float32",
        ),
        (b'{"paid": {"amount": 5}, "present": "maybe"}', "present: expected true or false, got a text"),
        (
            b'{"paid": {"amount": 5}, "country": {}, "present": 1}',
            "country: expected a text or a whole number",
        ),
        (
            b'{"paid": {"amount": 5}, "present": 1, "event_time": true}',
            "event_time: expected a time as RFC 3339",
        ),
        (b'{"paid": {"amount": 5}, "present": 1, "account_id": 1.5}', "account_id: "),
        (
            b'{"paid": {"amount": 5}, "present": 1, "event_time_derived": 1}',
            "event_time_derived: 1, not true or",
        ),
    ],
)
def test_a_dead_letter_names_the_field(payload, reason):
    parsed = parse_messages(MessageColumns([payload]), rules_of(SPEC, RARITIES))
    assert parsed.dead_letters.column("errorMessage")[0].as_py().startswith(reason)

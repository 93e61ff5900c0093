"""From model outputs to rows, without Beam and without a model."""

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pytest

from features.ulb import FEATURES
from features.values import FeatureError, features
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.schema import KEY_FIELDS, SCORES, SCORES_FULL, TRANSACTIONS
from transforms.scores import ScoreRules, assemble_scores, feature_matrix, transaction_messages

RULES = ScoreRules({"medium": 10.0, "high": 20.0}, "v1")
SCORED_AT = 1_772_366_400_000_000
TIME = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)


def transactions(n):
    rows = [
        {
            "transaction_id": f"tx-{i}",
            "account_id": None if i % 2 else f"acc-{i}",
            "event_time": TIME,
            "event_time_derived": i % 2 == 0,
            "features": [float(i)] * 30,
        }
        for i in range(n)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=TRANSACTIONS)


def outputs(scores):
    n = len(scores)
    contributions = np.zeros((n, 30), np.float32)
    contributions[:, 5], contributions[:, 29], contributions[:, 1] = 3.0, 2.0, 1.0
    return {
        "anomaly_score": np.array(scores, np.float32),
        "encoded": np.arange(n * 4, dtype=np.float32).reshape(n, 4),
        "contributions": contributions,
    }


@pytest.mark.parametrize("n", [1, 4, 5, 16, 17, 64, 65])
def test_small_batches_have_the_rows_of_a_large_one(n):
    """Some columns of few rows are made in another way."""
    rng, rows = np.random.default_rng(3), 130
    matrix = rng.normal(0, 50, (rows, 30)).astype(np.float32)
    matrix[:10, 29] = [0.03125, 12.34, 999.99994, 1000, 1000.125, -5.125, -0.0, 1e6 + 0.125, 3.4e38, 1e-30]
    batch = transactions(rows).set_column(
        4, TRANSACTIONS.field(4), pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 30)
    )
    made = outputs(rng.choice([1.0, 9.999, 10.0, 30.0], rows, p=[0.9, 0.06, 0.02, 0.02]))
    made["contributions"] = rng.choice([0.0, 1.0, 2.5], (rows, 30)).astype(np.float32)
    whole = assemble_scores(batch, made, RULES, SCORED_AT).scores
    whole.validate(full=True)
    assert whole["amount"][:6].to_pylist() == [0.0312, 12.34, 999.9999, 1000, 1000.12, -5.125]
    for start in range(0, rows, n):
        part = {name: values[start : start + n] for name, values in made.items()}
        scored = assemble_scores(batch.slice(start, n), part, RULES, SCORED_AT)
        scored.scores.validate(full=True)
        assert scored.scores.equals(whole.slice(start, n))


def test_literal_rows():
    scored = assemble_scores(transactions(2), outputs([9.5, 20.0]), RULES, SCORED_AT)
    assert scored.scores.schema.remove_metadata().equals(SCORES, check_metadata=True)
    assert scored.dead_letters.num_rows == 0
    shadow = ("shadow_score", "shadow_severity", "shadow_version")
    untraced = dict.fromkeys(("message_id", "publish_time", "read_at", "pass_through", *shadow, "stored_at"))

    def top(value):
        features = [("V5", 3.0), ("Amount", 2.0), ("V1", 1.0)]
        return [{"feature": name, "contribution": share, "value": value} for name, share in features]

    common = untraced | {"event_time": TIME, "model_version": "v1", "scored_at": TIME}
    assert scored.scores.to_pylist() == [
        common
        | {
            "transaction_id": "tx-0",
            "account_id": "acc-0",
            "event_time_derived": True,
            "amount": 0.0,
            "anomaly_score": 9.5,
            "severity": "normal",
            "top_features": top(None),
            "encoded": [0.0, 1.0, 2.0, 3.0],
        },
        common
        | {
            "transaction_id": "tx-1",
            "account_id": None,
            "event_time_derived": False,
            "amount": 1.0,
            "anomaly_score": 20.0,
            "severity": "high",
            "top_features": top("1"),
            "encoded": [4.0, 5.0, 6.0, 7.0],
        },
    ]


def test_a_score_at_the_threshold_reaches_the_severity():
    scores = [9.999, 10.0, 19.999, 20.0, 1e30]
    scored = assemble_scores(transactions(5), outputs(scores), RULES, SCORED_AT)
    assert scored.scores.column("severity").to_pylist() == ["normal", "medium", "medium", "high", "high"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_without_a_finite_score_is_one_dead_letter_and_its_neighbours_are_scored(bad):
    batch = transactions(3)
    scored = assemble_scores(batch, outputs([1.0, bad, 3.0]), RULES, SCORED_AT)
    assert scored.scores.column("transaction_id").to_pylist() == ["tx-0", "tx-2"]
    assert scored.scores.column("encoded").to_pylist() == [[0.0, 1.0, 2.0, 3.0], [8.0, 9.0, 10.0, 11.0]]
    (row,) = scored.dead_letters.to_pylist()
    assert (row["stage"], row["errorMessage"]) == ("score", f"anomaly_score: the model gave {bad}")
    replayed = parse_messages(MessageColumns([row["payloadBytes"]]), MessageRules(TIME))
    assert replayed.transactions.equals(batch.slice(1, 1))


def test_full_detail_adds_the_other_outputs():
    rules = ScoreRules(RULES.thresholds, "v1", "full")
    values = outputs([1.0, 2.0])
    for scale in ("normalized", "denormalized"):
        values[f"{scale}_reconstruction"] = np.full((2, 30), 0.5, np.float32)
        values[f"{scale}_reconstruction_errors"] = np.full((2, 30), 0.25, np.float32)
        for k, name in enumerate(("MAE", "RMSE", "MSE", "MSLE")):
            values[f"{scale}_{name}"] = np.array([k, k + 0.5], np.float32)
    scores = assemble_scores(transactions(2), values, rules, SCORED_AT).scores
    assert scores.schema.remove_metadata().equals(SCORES_FULL, check_metadata=True)
    row = scores.to_pylist()[1]
    assert row["normalized_reconstruction"] == [0.5] * 30
    assert row["denormalized_reconstruction_errors"] == [0.25] * 30
    assert [row[f"normalized_{name}"] for name in ("MAE", "RMSE", "MSE", "MSLE")] == [0.5, 1.5, 2.5, 3.5]


def test_no_rows():
    scored = assemble_scores(transactions(0), outputs([]), RULES, SCORED_AT)
    assert (scored.scores.num_rows, scored.dead_letters.num_rows) == (0, 0)


def test_feature_matrix_of_a_slice():
    matrix = feature_matrix(transactions(5).slice(2, 2))
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[2.0] * 30, [3.0] * 30]


def test_a_dead_letter_of_a_score_is_no_list_that_a_model_could_take_in_another_order():
    (payload,) = transaction_messages(transactions(3).slice(2))
    letter = json.loads(payload)
    assert "features" not in letter
    values = dict(zip(FEATURES, transactions(3).column("features").to_pylist()[2], strict=True))
    other_order = FEATURES[::-1]
    assert features(letter, other_order) == [values[name] for name in other_order]
    with pytest.raises(FeatureError, match=r"Merchant missing; the keys are transaction_id, "):
        features(letter, (*FEATURES[:-1], "Merchant"))


def test_transactions_as_messages_survive_the_parser():
    batch = transactions(3)
    messages = transaction_messages(batch)
    assert list(json.loads(messages[0])) == [*(field.name for field in KEY_FIELDS), *FEATURES]
    assert "account_id" not in json.loads(messages[1])
    assert parse_messages(MessageColumns(messages), MessageRules(TIME)).transactions.equals(batch)
    assert len(FEATURES) == batch.schema.field("features").type.list_size

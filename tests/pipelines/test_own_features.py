"""Pipelines over a model of other features: nested fields, categories, missing values, unicode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import pubsub_v1

from common.options import OptionError
from features.columns import ColumnEncoder, field_columns
from local.runner import LocalStreamingRunner, run_until_drained
from model import data, train
from model.fitting import TrainingOptions
from pipelines import streaming
from tests.model.test_own_features import SPEC, payments
from tests.pipelines.test_end_to_end import endpoints, rows, run_batch
from transforms import metrics

ROWS = 600


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own")
    (directory / "features.yaml").write_text(SPEC, encoding="utf-8")
    pq.write_table(payments(8_000), directory / "train.parquet")
    spec = data.DataOptions(features=str(directory / "features.yaml")).spec
    dataset = data.load(str(directory / "train.parquet"), spec=spec)
    train.train(dataset, str(directory / "model"), TrainingOptions(epochs=2), "own-1", progress=False)
    return directory / "model"


def messages(table: pa.Table) -> list[bytes]:
    """Payments as a producer would send them."""
    return [orjson.dumps(row | {"is_fraud": None}) for row in table.to_pylist()]


BAD = {
    b"{": "payload: not JSON",
    b'{"id": "b-1", "amount": "x"}': "amount: expected a finite number within float32, got a text",
    b'{"id": "b-2", "amount": 5, "present": true}': "merchant.category: expected a text or a whole",
    b'{"id": "b-3", "amount": 5, "present": 7}': "present: expected true or false, got 7",
    b'{"id": "b-4", "amount": 5, "card": []}': "present: expected true or false, got null",
    b'{"id": "b-5", "time": "yesterday", "amount": 1}': "time: expected a time as RFC 3339",
}
"""Messages that break a rule, and the reasons."""


def scored(directory: Path) -> dict[str, dict]:
    table = pa.concat_tables(pq.read_table(path) for path in directory.glob("scores-*.parquet"))
    return {row["transaction_id"]: row for row in table.to_pylist()}


def test_json_lines_and_nested_columns_give_the_same_scores(own_model, tmp_path):
    table = payments(ROWS, seed=3)
    lines = tmp_path / "payments.jsonl"
    lines.write_bytes(b"".join(line + b"\n" for line in [*messages(table), *BAD]))
    refused = table.slice(0, 1).to_pylist()[0] | {"id": "b-0", "amount": None}
    pq.write_table(
        pa.concat_tables([table, pa.Table.from_pylist([refused], table.schema)]),
        tmp_path / "payments.parquet",
    )
    outputs = {}
    for name, n_bad in (("payments.jsonl", len(BAD)), ("payments.parquet", 1)):
        totals = run_batch(
            [f"--input={tmp_path / name}", f"--model={own_model}", f"--output={tmp_path / name}-out"]
        )
        assert totals[metrics.ROWS_IN] == ROWS + n_bad
        assert totals[metrics.ROWS_SCORED] == ROWS
        assert totals[metrics.DEAD_LETTERS] == n_bad
        outputs[name] = scored(Path(f"{tmp_path / name}-out"))
    by_lines, by_columns = outputs.values()
    assert by_lines.keys() == by_columns.keys()
    for key, row in by_lines.items():
        assert by_columns[key]["anomaly_score"] == pytest.approx(row["anomaly_score"], rel=1e-5)
        assert by_columns[key]["account_id"] == row["account_id"]
        assert by_columns[key]["event_time"] == row["event_time"]
        assert by_columns[key]["amount"] == row["amount"]
    source = {row["id"]: row for row in table.to_pylist()}
    assert {key: row["amount"] for key, row in by_lines.items()} == {
        key: row["amount"] for key, row in source.items()
    }
    check_values([row for row in by_lines.values() if row["severity"] != "normal"], source)


def check_values(alerted: list[dict], source: dict[str, dict]) -> None:
    """Top features have the values that the payment had."""
    assert alerted
    for row in alerted:
        payment = source[row["transaction_id"]]
        texts = {item["feature"]: item["value"] for item in row["top_features"]}
        assert len(texts) == 3
        if "category" in texts:
            assert texts["category"] == payment["merchant"]["category"]
        if "amount" in texts:
            assert float(texts["amount"]) == pytest.approx(payment["amount"])
        if "present" in texts:
            assert texts["present"] == json.dumps(payment["present"])


def test_scores_are_those_of_the_model_itself(own_model, tmp_path):
    from model import artifact, evaluation

    table = payments(200, seed=4)
    pq.write_table(table, tmp_path / "payments.parquet")
    run_batch([f"--input={tmp_path}/payments.parquet", f"--model={own_model}", f"--output={tmp_path}/out"])
    own = artifact.read(own_model)
    spec = own.manifest.spec
    encoded = ColumnEncoder(spec, own.manifest.learnt).encode(field_columns(table, spec.fields))
    expected = evaluation.anomaly_scores(own.load_model(), encoded.inputs)
    rows = scored(tmp_path / "out")
    np.testing.assert_allclose(
        [rows[key]["anomaly_score"] for key in table["id"].to_pylist()], expected, rtol=1e-5
    )


@pytest.mark.integration
def test_a_stream_gives_the_scores_of_the_batch(
    own_model, local_stack, channel, dataset, bigquery_client, tmp_path
):
    table = payments(ROWS, seed=5)
    payloads = [*messages(table), *BAD]
    lines = tmp_path / "payments.jsonl"
    lines.write_bytes(b"".join(line + b"\n" for line in payloads))
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={own_model}",
        f"--output_dataset={local_stack.project}.{dataset}",
        *endpoints(local_stack),
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())
    publisher = pubsub_v1.PublisherClient()
    for future in [publisher.publish(channel.topic, payload) for payload in payloads]:
        future.result(timeout=60)

    def is_done():
        totals = metrics.totals(result)
        return totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0) >= len(payloads)

    run_until_drained(result, is_done, timeout=120)
    stored = {
        row["transaction_id"]: row for row in rows(bigquery_client, dataset, "scores_latest").to_pylist()
    }
    run_batch([f"--input={lines}", f"--model={own_model}", f"--output={tmp_path}/out"])
    batch = scored(tmp_path / "out")
    assert stored.keys() == batch.keys()
    for key, row in stored.items():
        for name in ("severity", "amount", "account_id", "event_time"):
            assert row[name] == batch[key][name], name
        # The last bits of a score depend on how many rows are scored at once.
        assert row["anomaly_score"] == pytest.approx(batch[key]["anomaly_score"])
        for feature, expected in zip(row["top_features"], batch[key]["top_features"], strict=True):
            assert feature == expected | {"contribution": pytest.approx(expected["contribution"], rel=1e-5)}
    letters = rows(bigquery_client, dataset, "error_records_latest").to_pylist()
    reasons = {letter["payloadString"].encode(): letter["errorMessage"] for letter in letters}
    assert reasons.keys() == BAD.keys()
    for payload, reason in BAD.items():
        assert reasons[payload].startswith(reason)


def test_a_source_that_does_not_fit_is_told_at_launch(own_model, tmp_path):
    pq.write_table(payments(5).drop_columns(["merchant"]), tmp_path / "payments.parquet")
    with pytest.raises(OptionError, match=r"no column 'merchant.category', which the model's feature spec"):
        run_batch([f"--input={tmp_path}/payments.parquet", f"--model={own_model}", f"--output={tmp_path}/o"])

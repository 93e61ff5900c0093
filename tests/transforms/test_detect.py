"""Parse, score, alert and detect on FnApiRunner."""

import datetime as dt
import json

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to

from model import artifact
from model.inference import CALL_ROWS
from transforms import metrics
from transforms.alert import Alert, alerts
from transforms.coder import RecordBatchCoder
from transforms.detect import Detect
from transforms.gather import BatchMessages
from transforms.message import MessageRules
from transforms.parse import Parse
from transforms.remote import TorchServeHandler
from transforms.schema import ALERTS, SCORES
from transforms.score import PytorchHandler, Score
from transforms.thresholds import with_thresholds
from transforms.topics import RowMessages, row_messages

TIME = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
NORMAL = [1000.0, *([0.0] * 28), 20.0]
STRANGE = [1000.0, 60.0, *([0.0] * 27), 20.0]


def payload(identifier, features):
    return json.dumps({"transaction_id": identifier, "features": features}).encode()


def message(identifier, features):
    return PubsubMessage(payload(identifier, features), {"k": "v"}, f"m-{identifier}", TIME)


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def rows(batches, label="Rows"):
    return batches | label >> beam.FlatMap(lambda batch: batch.to_pylist())


@pytest.fixture(scope="module")
def detect(model_dir):
    return Detect(Parse(MessageRules(TIME)), Score(PytorchHandler(str(model_dir))), Alert())


def test_detect_scores_alerts_and_rejects(detect):
    messages = [message("a", NORMAL), message("b", STRANGE), PubsubMessage(b"{", {}, "m-c", TIME)]
    with pipeline() as p:
        detected = p | beam.Create(messages) | BatchMessages(rows=10) | detect
        keys = ["transaction_id", "severity", "model_version", "event_time"]
        assert_that(
            rows(detected.scores) | beam.Map(lambda row: tuple(row[key] for key in keys)),
            equal_to([("a", "normal", "test-1", TIME), ("b", "high", "test-1", TIME)]),
            "scores",
        )
        assert_that(
            rows(detected.alerts, "AlertRows")
            | "Alerts" >> beam.Map(lambda row: (row["transaction_id"], row["top_features"][0]["feature"])),
            equal_to([("b", "V1")]),
            "alerts",
        )
        assert detected.scores.element_type is detected.dead_letters.element_type is pa.RecordBatch
        assert_that(
            rows(detected.dead_letters, "RejectedRows")
            | "Rejected" >> beam.Map(lambda row: (row["payloadBytes"], row["stage"], row["errorMessage"])),
            equal_to([(b"{", "parse", "payload: not JSON (Input data was truncated)")]),
            "dead letters",
        )


def test_conservation_over_many_messages(detect):
    good = [message(f"t-{i}", NORMAL) for i in range(900)]
    bad = [PubsubMessage(b"\xff" * i, {}, str(i), TIME) for i in range(100)]
    p = pipeline()
    _ = p | beam.Create(good + bad) | BatchMessages(rows=64) | detect
    result = p.run()
    result.wait_until_finish()
    assert metrics.totals(result) == {
        metrics.ROWS_IN: 1000,
        metrics.ROWS_SCORED: 900,
        metrics.TIMES_DEFAULTED: 900,
        metrics.DEAD_LETTERS: 100,
        f"{metrics.DEAD_LETTERS}.parse.payload": 100,
    }


def test_lateness_scores_and_the_age_of_the_model_are_distributions(detect):
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    late = [PubsubMessage(payload(f"t-{i}", NORMAL), {}, str(i), hour_ago) for i in range(20)]
    p = pipeline()
    _ = p | beam.Create([late, [message("b", STRANGE)]]) | detect
    result = p.run()
    result.wait_until_finish()
    totals = metrics.totals(result)
    assert (totals["alerts_high"], totals[metrics.ALERTS]) == (1, 1)
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.NAMESPACE))["distributions"]
    spread = {each.key.metric.name: each.result for each in found}
    # Seven of twenty rows stand for their batch, the one of the other for itself.
    assert spread[metrics.EVENT_TO_SCORED].count == spread[metrics.SCORE_MILLI].count == 8
    assert spread[metrics.EVENT_TO_SCORED].max > 3_600_000
    assert spread[metrics.FRESHNESS].count == spread[metrics.MODEL_AGE].count == 2
    assert spread[metrics.FRESHNESS].max >= 3_600_000
    assert spread[metrics.SCORE_MILLI].max >= 20_000
    assert 0 <= spread[metrics.MODEL_AGE].max < 3600


def test_values_out_of_the_range_of_the_training_are_counted(detect):
    beyond = [[1e9, *([0.0] * 28), 20.0], [0.0, 1e6, *([0.0] * 27), -1.0]]
    messages = [message(str(i), features) for i, features in enumerate([NORMAL, *beyond])]
    p = pipeline()
    _ = p | beam.Create(messages) | BatchMessages(rows=10) | detect
    result = p.run()
    result.wait_until_finish()
    # Time is not in the score, and may have any value.
    assert metrics.totals(result)[metrics.VALUES_OUT_OF_RANGE] == 2


@pytest.mark.parametrize("copies", [1, CALL_ROWS])  # the second takes more than one call
def test_rows_of_the_handler_are_the_models_own(model_dir, copies):
    handler = PytorchHandler(str(model_dir))
    model = handler.load_model()
    features = np.array([NORMAL, STRANGE] * copies, np.float32)
    features[:, 1] += np.linspace(0, 1, len(features))
    reference = artifact.read(model_dir).load_model(freeze=False)
    with torch.no_grad():
        score, encoded, contributions = reference.score(torch.from_numpy(features))
    outputs = model.current.outputs(features)
    np.testing.assert_allclose(outputs["anomaly_score"], score.numpy(), rtol=1e-6)
    np.testing.assert_allclose(outputs["encoded"], encoded.numpy(), rtol=1e-6)
    np.testing.assert_allclose(outputs["contributions"], contributions.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("detail", ["compact", "full"])
def test_thresholds_given_by_hand_replace_the_manifests(model_dir, detail):
    thresholds = {"medium": 0.0, "high": 1e9}
    handler = PytorchHandler(str(model_dir), detail, thresholds)
    elements = [[payload("a", NORMAL)]]
    with pipeline() as p:
        parsed = p | beam.Create(elements) | Parse(MessageRules(TIME))
        scored = parsed.transactions | Score(handler)
        assert_that(
            rows(scored.scores) | beam.Map(lambda row: (row["severity"], "normalized_MAE" in row)),
            equal_to([("medium", detail == "full")]),
        )


def test_an_altered_model_is_refused_before_the_first_row(model_dir, tmp_path):
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / artifact.MODEL_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(artifact.ArtifactError, match="sha256"):
        PytorchHandler(str(tmp_path)).load_model()


SCORE_ROW = {
    "transaction_id": "b",
    "account_id": None,
    "event_time": TIME,
    "event_time_derived": True,
    "anomaly_score": 25.0,
    "severity": "high",
    "encoded": [0.0] * 4,
    "amount": 12.5,
    "top_features": [
        {"feature": "V1", "contribution": 3.0, "value": "-4.25"},
        {"feature": "V2", "contribution": 2.0, "value": "0.5"},
    ],
    "model_version": "v1",
    "scored_at": TIME,
}
ALERTING = with_thresholds(SCORES, {"medium": 10.0, "high": 20.0})


def test_alerts_are_the_rows_at_or_over_the_wanted_severity():
    medium = SCORE_ROW | {"transaction_id": "m", "severity": "medium", "anomaly_score": 12.0}
    normal = SCORE_ROW | {"transaction_id": "n", "severity": "normal", "anomaly_score": 2.0}
    batch = pa.RecordBatch.from_pylist([normal, medium, SCORE_ROW], schema=ALERTING)
    alerted = alerts(batch)
    assert alerted.schema.equals(ALERTS, check_metadata=True)
    assert alerted.select(["transaction_id", "severity", "threshold"]).to_pylist() == [
        {"transaction_id": "m", "severity": "medium", "threshold": 10.0},
        {"transaction_id": "b", "severity": "high", "threshold": 20.0},
    ]
    assert alerts(batch, "high").column("transaction_id").to_pylist() == ["b"]


def test_alerts_refuse_an_unknown_severity():
    batch = pa.RecordBatch.from_pylist([SCORE_ROW], schema=ALERTING)
    with pytest.raises(ValueError, match="min_severity: expected one of medium, high"):
        alerts(batch, "normal")


def test_alert_messages_literally():
    batch = alerts(pa.RecordBatch.from_pylist([SCORE_ROW], schema=ALERTING))
    (sent,) = row_messages(batch)
    assert json.loads(sent.data) == {
        "transaction_id": "b",
        "account_id": None,
        "event_time": "2026-03-01T12:00:00+00:00",
        "event_time_derived": True,
        "amount": 12.5,
        "anomaly_score": 25.0,
        "severity": "high",
        "threshold": 20.0,
        "top_features": SCORE_ROW["top_features"],
        "model_version": "v1",
        "scored_at": "2026-03-01T12:00:00+00:00",
    }
    assert sent.attributes == {
        "severity": "high",
        "top_features": "V1,V2",
        "transaction_id": "b",
        "model_version": "v1",
    }
    with pipeline() as p:
        sent_messages = p | beam.Create([batch]) | RowMessages()
        assert_that(sent_messages | beam.Map(lambda m: m.data), equal_to([sent.data]))


def test_batches_are_gathered_up_to_the_wanted_rows():
    with pipeline() as p:
        lists = p | beam.Create([b"%d" % i for i in range(10)], reshuffle=False) | BatchMessages(rows=4)
        assert_that(lists | beam.Map(len), equal_to([4, 4, 2]))


def test_a_slice_crosses_the_coder_alone():
    batch = pa.RecordBatch.from_pylist([SCORE_ROW] * 1000, schema=SCORES)
    coder = RecordBatchCoder()
    encoded = coder.encode(batch.slice(500, 1))
    assert coder.decode(encoded).equals(batch.slice(0, 1))
    assert len(encoded) < len(coder.encode(batch)) / 10
    assert isinstance(beam.coders.registry.get_coder(pa.RecordBatch), RecordBatchCoder)


def test_a_model_under_any_path_makes_a_graph():
    """Beam writes the text of the handler into the graph, as ASCII."""
    p = beam.Pipeline("FnApiRunner")
    for i, handler in enumerate((PytorchHandler("/Modèle/日本"), TorchServeHandler({}, "v1", name="Modèle"))):
        _ = p | f"Rows {i}" >> beam.Create([]) | f"Score {i}" >> Score(handler)

"""A model that scores beside the first: its columns, and that its failures cost no row."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model import artifact
from model.manifest import MANIFEST_FILE, MODEL_FILE
from model.thresholds import SEVERITIES, severity_codes
from tests.model.serving.artifacts import build_models
from tests.transforms.test_refresh import ENCODING, batch
from transforms import metrics
from transforms import shadow as shadow_module
from transforms.alert import alerts
from transforms.score import PytorchHandler
from transforms.scores import feature_matrix

COLUMNS = ["shadow_score", "shadow_severity", "shadow_version"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return build_models(tmp_path_factory.mktemp("models"), "ab")


@pytest.fixture
def counted(monkeypatch) -> list[dict]:
    amounts: list[dict] = []
    monkeypatch.setattr(metrics, "add", lambda more: amounts.append(dict(more)))
    return amounts


def scored(models: Path, shadow: Path | None, rows: pa.RecordBatch, handler: PytorchHandler | None = None):
    handler = handler or PytorchHandler(
        str(models / "a"), encoding=ENCODING, shadow=str(shadow) if shadow else None
    )
    return handler.run_inference(rows, handler.load_model())[0]


def test_both_models_score_each_row_and_the_first_raises_the_alerts(models):
    rows = batch(500)
    alone, both = scored(models, None, rows).scores, scored(models, models / "b", rows).scores
    own = [name for name in both.schema.names if name not in ("scored_at", *COLUMNS)]
    assert both.select(own).equals(alone.select(own))
    shadow = artifact.read(models / "b")
    expected = scored(models, None, rows, PytorchHandler(shadow.uri)).scores
    np.testing.assert_array_equal(both["shadow_score"], expected["anomaly_score"])
    codes = severity_codes(np.asarray(both["shadow_score"]), shadow.manifest.thresholds)
    assert both["shadow_severity"].to_pylist() == [SEVERITIES[code] for code in codes]
    assert set(both["shadow_version"].to_pylist()) == {"b"}
    assert alerts(both).drop_columns("scored_at").equals(alerts(alone).drop_columns("scored_at"))
    assert all(alone[name].null_count == len(rows) for name in COLUMNS)


def test_rows_that_the_first_cannot_score_keep_the_others_shadows_in_place(models):
    rows = batch(5)
    features = feature_matrix(rows).copy()
    features[2] = np.nan
    spoiled = rows.set_column(
        rows.schema.get_field_index("features"),
        rows.schema.field("features"),
        pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 30),
    )
    whole, part = scored(models, models / "b", rows), scored(models, models / "b", spoiled)
    assert part.dead_letters.num_rows == 1
    kept = pa.array([0, 1, 3, 4])
    assert part.scores["shadow_score"].equals(whole.scores["shadow_score"].take(kept))


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_shadow_that_cannot_be_loaded_costs_no_row(models, tmp_path, counted, caplog, damage):
    shadow = tmp_path / "shadow"
    if damage == "torn":
        shutil.copytree(models / "b", shadow)
        (shadow / MODEL_FILE).write_bytes(b"torn")
    rows = scored(models, shadow, batch(7)).scores
    assert rows.num_rows == 7
    assert all(rows[name].null_count == 7 for name in COLUMNS)
    assert {metrics.SHADOW_UNSCORED: 7} in counted
    (line,) = [each for each in caplog.messages if str(shadow) in each]
    assert line.startswith("No model of --shadow_model is in use. ")


def test_a_shadow_that_was_not_there_at_the_start_is_loaded_when_it_comes(models, tmp_path, monkeypatch):
    monkeypatch.setattr(shadow_module, "RETRY_SECONDS", 0.01)
    shadow = tmp_path / "shadow"
    handler = PytorchHandler(str(models / "a"), encoding=ENCODING, shadow=str(shadow))
    model = handler.load_model()
    (thread,) = [each for each in threading.enumerate() if each.name == "model-refresh"]
    assert handler.run_inference(batch(1), model)[0].scores["shadow_version"].to_pylist() == [None]
    artifact.copy(artifact.read(models / "b"), shadow)
    thread.join(60)
    assert not thread.is_alive()  # it keeps this one: --model_refresh_seconds was not passed
    assert handler.run_inference(batch(1), model)[0].scores["shadow_version"].to_pylist() == ["b"]
    assert not model.take_events()  # these would be counted as the first model's


def test_the_log_tells_the_shadow_from_the_model(models, tmp_path, caplog):
    shadow = tmp_path / "shadow"
    shutil.copytree(models / "b", shadow)
    handler = PytorchHandler(str(models / "a"), encoding=ENCODING, shadow=str(shadow), refresh_seconds=0.01)
    model = handler.load_model()
    (shadow / MODEL_FILE).write_bytes(b"torn")
    (shadow / MANIFEST_FILE).touch()
    while not (lines := [each for each in caplog.messages if "has sha256" in each]):
        time.sleep(0.01)
    assert lines[0].startswith(f"The model of --shadow_model in use stays. {shadow}: ")
    assert not model.take_events()


def test_a_shadow_that_fails_costs_no_row_and_says_so_once(models, counted, caplog):
    handler = PytorchHandler(str(models / "a"), encoding=ENCODING, shadow=str(models / "b"))
    model = handler.load_model()
    model.shadow._live.current.rules = None  # as good as any exception within
    for _ in range(3):
        (result,) = handler.run_inference(batch(4), model)
        assert result.scores["anomaly_score"].null_count == 0
        assert result.scores["shadow_version"].null_count == 4
    assert counted.count({metrics.SHADOW_UNSCORED: 4}) == 3
    assert caplog.text.count("does not score") == 1


def test_a_shadow_is_refreshed_as_the_first_is(models, tmp_path):
    shadow = tmp_path / "shadow"
    shutil.copytree(models / "a", shadow)
    handler = PytorchHandler(str(models / "a"), refresh_seconds=0.01, encoding=ENCODING, shadow=str(shadow))
    model = handler.load_model()
    artifact.copy(artifact.read(models / "b"), shadow)
    while set(handler.run_inference(batch(1), model)[0].scores["shadow_version"].to_pylist()) != {"b"}:
        pass

"""A model that is replaced in the worker: whole batches by one model, its thresholds with them, no leak."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.columns import ColumnEncoder, field_columns
from features.declaration import FeatureSpec
from features.default import ULB
from features.learning import learn
from features.learnt import NOTHING
from model import artifact
from model.live import Follower, ForeignError
from model.manifest import MODEL_FILE
from tests.model.serving.artifacts import build_artifact, build_own_artifact, transactions
from tests.transforms.history_cases import SPEC as HISTORY_SPEC
from transforms import metrics
from transforms.alert import alerts
from transforms.coder import RecordBatchCoder
from transforms.forms import Encoding
from transforms.learnt_inputs import LearntInputs
from transforms.schema import TRANSACTIONS
from transforms.score import PytorchHandler
from transforms.scores import feature_matrix
from transforms.thresholds import thresholds_of, with_thresholds

ENCODING = Encoding(ULB, NOTHING)


def batch(n: int) -> pa.RecordBatch:
    features = pa.FixedSizeListArray.from_arrays(pa.array(transactions(n).reshape(-1)), 30)
    columns = {"transaction_id": pa.array([str(i) for i in range(n)]), "features": features}
    nulls = {field.name: pa.nulls(n, field.type) for field in TRANSACTIONS}
    return pa.RecordBatch.from_arrays(list((nulls | columns).values()), schema=TRANSACTIONS)


@pytest.fixture
def live(tmp_path):
    """A handler, its model, and the follower of an artifact that the test looks with."""
    build_artifact(tmp_path / "live", "1")
    handler = PytorchHandler(str(tmp_path / "live"), encoding=ENCODING)
    model = handler.load_model()
    digest = artifact.peek(tmp_path / "live").digest
    return handler, model, Follower(handler.model, handler._load, digest)


def test_a_batch_has_the_scores_and_thresholds_of_the_model_that_scored_it(live):
    handler, model, follower = live
    rows = batch(200)
    (first,) = handler.run_inference(rows, model)
    manifest = build_artifact(Path(handler.model), "2", seed=8).manifest
    model.take(follower.look())
    (second,) = handler.run_inference(rows, model)
    for scored, version in ((first.scores, "1"), (second.scores, "2")):
        assert set(scored.column("model_version").to_pylist()) == {version}
    assert dict(thresholds_of(second.scores)) == manifest.thresholds != dict(thresholds_of(first.scores))
    expected = artifact.read(handler.model).load_model().score(_tensor(rows))[0].numpy()
    np.testing.assert_allclose(second.scores.column("anomaly_score"), expected, rtol=1e-5)


def _tensor(rows):
    import torch

    return torch.tensor(feature_matrix(rows))


def test_refreshes_and_refusals_become_counters(live, monkeypatch):
    handler, model, follower = live
    counted: list[dict] = []
    monkeypatch.setattr(metrics, "add", lambda amounts: counted.append(dict(amounts)))
    build_artifact(Path(handler.model), "2", seed=8)
    model.take(follower.look())
    (Path(handler.model) / MODEL_FILE).write_bytes(b"torn")
    (Path(handler.model) / "previous" / MODEL_FILE).unlink()
    edited = artifact.place(handler.model)
    manifest = Path(handler.model) / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert edited.stamp("manifest.json")
    model.take(follower.look())
    for _ in range(2):
        handler.run_inference(batch(1), model)
    events = {metrics.MODEL_REFRESHES: 1, metrics.MODEL_REFUSALS: 1}
    assert [counts for counts in counted if metrics.MODEL_REFRESHES in counts] == [events]


def test_thresholds_travel_through_the_coder_and_every_choice_of_rows():
    thresholds = {"medium": 0.1 + 0.2, "high": 1e300}
    rows = pa.RecordBatch.from_pydict({"x": [1.0, 2.0, 3.0]})
    rows = rows.cast(with_thresholds(rows.schema, thresholds))
    coder = RecordBatchCoder()
    for chosen in (
        rows.take(pa.array([2, 0])),
        rows.filter(pa.array([True, False, True])),
        rows.slice(1),
        coder.decode(coder.encode(rows)),
        coder.decode(coder.encode(rows.slice(2).take(pa.array([0])))),
        pa.concat_batches([rows, rows]),
    ):
        assert dict(thresholds_of(chosen)) == thresholds


def test_scores_without_thresholds_make_no_alerts(live):
    handler, model, _ = live
    (scored,) = handler.run_inference(batch(3), model)
    with pytest.raises(ValueError, match="expected a batch that carries its thresholds"):
        alerts(scored.scores.replace_schema_metadata())


def test_thresholds_of_the_options_hold_for_every_model(live):
    handler, _, _ = live
    handler = dataclasses.replace(handler, thresholds={"medium": 1e-3})
    loaded = handler._load(build_artifact(Path(handler.model), "2", seed=8))
    assert loaded.rules.thresholds["medium"] == 1e-3
    high = artifact.peek(handler.model).thresholds["high"]
    assert loaded.rules.thresholds["high"] == high
    handler = dataclasses.replace(handler, thresholds={"medium": high * 2})
    with pytest.raises(ForeignError, match=r"version 2: with those of the options, .*ascend"):
        handler._load(artifact.read(handler.model))


def test_a_model_of_other_features_is_refused_at_start_and_later(live):
    handler, _, _ = live
    other = FeatureSpec.from_json({"features": [{"name": "amount", "kind": "number"}]})
    handler = dataclasses.replace(handler, encoding=Encoding(other))
    with pytest.raises(ForeignError, match=r"another feature spec .* than the running job; launch it again"):
        handler.load_model()


@pytest.mark.parametrize("change", [{"half_life": "31d"}, {"statistic": "mean"}, {"by": "shop.name"}])
def test_a_model_of_another_history_does_not_take_over(tmp_path, caplog, change):
    """The values of the running job are those of its own plan: another model would read them wrongly."""
    build_own_artifact(tmp_path / "live", HISTORY_SPEC, NOTHING)
    handler = PytorchHandler(str(tmp_path / "live"), encoding=Encoding(HISTORY_SPEC, NOTHING))
    model = handler.load_model()
    before = model.current
    follower = Follower(handler.model, handler._load, artifact.peek(handler.model).digest)
    content = HISTORY_SPEC.to_json()
    (level,) = [one for one in content["features"] if one["name"] == "level"]
    level |= change
    build_own_artifact(tmp_path / "live", FeatureSpec.from_json(content), NOTHING)
    model.take(follower.look())
    assert model.current is before
    assert dict(model.take_events()) == {"refused": 1}
    assert "has another feature spec (feature level) than the running job; launch it again" in caplog.text
    build_own_artifact(tmp_path / "live", HISTORY_SPEC, NOTHING, seed=8)
    model.take(follower.look())
    assert model.current is not before


def test_old_modules_are_freed(live):
    handler, model, follower = live
    old = [weakref.ref(model.current.module)]
    for i in range(4):
        build_artifact(Path(handler.model), f"next-{i}", seed=i)
        model.take(follower.look())
        handler.run_inference(batch(10), model)
        old.append(weakref.ref(model.current.module))
    assert gc.get_freeze_count()  # the first one was frozen, and is free all the same
    assert [ref() is None for ref in old] == [True, True, True, True, False]


SPEC = FeatureSpec.from_json(
    {
        "features": [
            {"name": "amount", "kind": "number"},
            {"name": "shop", "kind": "category"},
            {"name": "age", "kind": "number", "missing": "median"},
            {"name": "hour", "kind": "time_of_day"},
        ]
    }
)


def payments(shops: list[str | None], ages: list[float | None]) -> pa.Table:
    n = len(shops)
    times = pa.array([1_700_000_000_000_000 + 3_600_000_000 * i for i in range(n)])
    return pa.table(
        {
            "amount": [float(i) for i in range(n)],
            "shop": shops,
            "age": ages,
            "event_time": times.cast(pa.timestamp("us", tz="UTC")),
        }
    )


def test_inputs_that_another_training_learnt_are_encoded_again():
    launch = learn(SPEC, payments(["grocer"] * 5, [30.0] * 5))
    later = learn(SPEC, payments(["fuel"] * 3 + ["grocer"], [70.0] * 4))
    table = payments(["grocer", "fuel", None, "toys"], [20.0, None, 40.0, None])
    columns = field_columns(table, SPEC.fields)
    form = Encoding(SPEC, launch).form
    assembled = form.encode({name: columns[name] for name in form.fields}, columns["event_time"])
    features, inputs = assembled.columns()
    rows = pa.RecordBatch.from_arrays([features, inputs], names=["features", "inputs"])
    expected = ColumnEncoder(SPEC, later).encode(columns).inputs
    assert not np.allclose(feature_matrix(rows), expected)
    np.testing.assert_array_equal(LearntInputs(SPEC, later)(rows), expected)
    np.testing.assert_array_equal(feature_matrix(rows), assembled.features)  # the batch keeps its own

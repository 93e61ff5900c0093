"""The model on the real transactions, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from features.ranges import WINDOW, FeatureWatch
from model import artifact, data, evaluation, fitting, package, train
from tests.model.test_network import reference

PATH = Path(__file__).parents[3] / "shared" / "data" / "ulb_transactions.parquet"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PATH.is_file(), reason=f"the real transactions are not at {PATH}"),
]


@pytest.fixture(scope="module")
def rows() -> data.Dataset:
    return data.load(str(PATH))


@pytest.fixture(scope="module")
def real(rows, tmp_path_factory) -> artifact.Artifact:
    directory = tmp_path_factory.mktemp("real")
    return train.train(rows, str(directory), fitting.TrainingOptions(seed=0), progress=False)


def test_the_score_finds_frauds_that_it_never_saw(real):
    """One seed, with slack: the means over seeds are in docs/model.md."""
    scores = real.manifest.figures["scores"]
    assert scores["anomaly_score"]["average_precision"] > 0.6
    assert scores["anomaly_score"]["auroc"] > 0.92
    assert scores["anomaly_score"]["recall_at"]["0.005"] > 0.7
    for other in set(scores) - {"anomaly_score"}:  # each tuned on rows of the validation part
        assert scores["anomaly_score"]["average_precision"] > 1.3 * scores[other]["average_precision"]


def test_thresholds_hold_on_test_normals(real):
    at = real.manifest.figures["at_thresholds"]
    assert at["medium"]["share_of_normals"] == pytest.approx(0.005, abs=0.004)
    assert at["high"]["share_of_normals"] == pytest.approx(0.001, abs=0.0015)


def test_fair_windows_of_any_hour_raise_no_warning(real, rows, caplog):
    parts = data.split(rows, seed=0)
    unseen = np.sort(np.concatenate([parts.validation, parts.test]))
    # The rows are in the order of their times: a window lies within an hour or two.
    for start in range(0, len(unseen) - WINDOW, WINDOW):
        watch = FeatureWatch(real.manifest.ranges)
        watch.look(rows.features[unseen[start : start + WINDOW]])
    assert not caplog.records


def test_the_score_is_sound_in_float32(real, rows, tmp_path):
    """Eager, traced, frozen, ONNX and float64 agree to 1e-4, and so does a row alone with it in a batch."""
    x = np.concatenate([rows.features[rows.labels == 1], rows.features[:: len(rows.features) // 2000]])
    module, network = real.load_model(), package.eager(real.load_model(freeze=False))
    frozen = evaluation.anomaly_scores(module, x)
    with torch.inference_mode():
        eager = network.score(torch.from_numpy(x))[0].double().numpy()
        alone = torch.cat([module.score(row[None])[0] for row in torch.from_numpy(x)]).double().numpy()
        traced = real.load_model(freeze=False).score(torch.from_numpy(x))[0].double().numpy()
    np.testing.assert_allclose(frozen, eager, rtol=1e-4)
    np.testing.assert_allclose(traced, eager, rtol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra: pip install .[export]")
    path = str(package.write_onnx(network, tmp_path / package.ONNX_FILE))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (onnx,) = session.run(["anomaly_score"], {package.ONNX_INPUT: x})
    np.testing.assert_allclose(onnx, eager, rtol=1e-4)
    np.testing.assert_allclose(alone, frozen, rtol=1e-4)
    np.testing.assert_allclose(frozen, reference(network, x)["anomaly_score"], rtol=1e-4)

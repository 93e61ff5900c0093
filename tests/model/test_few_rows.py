"""The graph of the model, run by numpy for few rows: the same numbers as torch, or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.declaration import Feature, FeatureSpec
from features.roles import Roles
from model import inference, torchscript
from model.few_rows import FEW, FewRows, UnknownGraphError, few_rows
from model.network import TransactionAutoencoder
from model.outputs import ANOMALY_SCORE, CONTRIBUTIONS, FIELDS, SCORE_FIELDS

LARGEST = float(np.finfo(np.float32).max)


def frozen(network: torch.nn.Module, tmp_path) -> torch.jit.ScriptModule:
    torchscript.save(torchscript.trace(network), tmp_path / "model.pt")
    return torchscript.load(tmp_path / "model.pt")


def assert_same(few: FewRows, module: torch.jit.ScriptModule, rows: np.ndarray) -> None:
    got, want = few.score(rows), inference.outputs(module, rows, SCORE_FIELDS)
    for values, (name, expected) in zip(got, want.items(), strict=True):
        assert (values.dtype, values.shape) == (np.float32, expected.shape)
        scale = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=2e-6 * scale, err_msg=name)
    np.testing.assert_allclose(got[0], want[ANOMALY_SCORE], rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 16, FEW])
def test_a_trained_model_gives_the_same_numbers_as_by_torch(module, normals, n):
    few = few_rows(module)
    for start in range(0, 10 * FEW, FEW):
        assert_same(few, module, normals[start : start + n])


@pytest.mark.parametrize("log", [(), ("f0",), ("f1", "f3")])
def test_inputs_on_a_log_scale_constants_and_the_ends_of_float32(tmp_path, log, recwarn):
    spec = FeatureSpec(
        tuple(
            Feature(f"f{i}", "number", f"f{i}", scale="log" if f"f{i}" in log else "linear") for i in range(8)
        ),
        Roles(amount=None, label=None),
    )
    torch.manual_seed(1)
    network = TransactionAutoencoder(spec).eval()
    network.set_normalisation(torch.linspace(-3, 9, 8), torch.linspace(0.1, 20, 8))
    network.set_whitening(torch.randn(8) / 10, torch.randn(8, 8) / 10, torch.rand(8))
    network.leave_out(torch.arange(8) == 5)
    module = frozen(network, tmp_path)
    few = FewRows(module)
    rows = np.random.default_rng(0).normal(2, 9, (FEW, 8)).astype(np.float32)
    assert_same(few, module, rows)
    for value in (0.0, -0.0, 1e-40, LARGEST, -LARGEST):
        rows[:, 3] = value
        assert_same(few, module, rows)
    assert not recwarn.list


def test_rows_above_the_gate_are_compared_with_the_memory(tmp_path):
    network = TransactionAutoencoder().eval()
    network.set_whitening(torch.zeros(30), torch.eye(30))
    module = frozen(network, tmp_path)
    rows = np.random.default_rng(0).normal(size=(FEW, 30)).astype(np.float32)
    rows[::3] *= 4
    plain = FewRows(module).score(rows)[0]
    network.set_memory(torch.from_numpy(rows[::6]) * 1.01, gate=90.0)
    module = frozen(network, tmp_path)
    few = FewRows(module)
    scores = few.score(rows)[0]
    is_high = plain > 90
    assert 5 < is_high.sum() < FEW - 5
    assert (scores[is_high] < plain[is_high]).all()
    assert_same(few, module, rows)
    assert_same(few, module, rows[~is_high])


def test_few_rows_run_by_numpy_and_all_else_by_torch(module, normals, monkeypatch):
    few, taken = few_rows(module), []
    score = few.score
    monkeypatch.setattr(few, "score", lambda rows: taken.append(len(rows)) or score(rows))
    for n, fields in ((1, [ANOMALY_SCORE]), (FEW, [CONTRIBUTIONS, ANOMALY_SCORE]), (FEW + 1, SCORE_FIELDS)):
        answer = inference.outputs(module, normals[:n], fields, few)
        assert [*answer] == [*fields]
        assert len(answer[ANOMALY_SCORE]) == n
    inference.outputs(module, normals[:1], FIELDS, few)
    assert taken == [1, FEW]


class Other(torch.nn.Module):
    """A graph of `score` with one operator that is not known, or in another way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.mean = kind, torch.zeros(30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def score(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "alpha":
            return (torch.sub(x, self.mean, alpha=2.0),)
        return (x.sum(1, keepdim=True),) if self.kind == "keepdim" else (x.tanh(),)


@pytest.mark.parametrize("kind", ["alpha", "keepdim", "tanh"])
def test_a_graph_that_is_not_known_is_left_to_torch(tmp_path, kind):
    module = torchscript.frozen(torchscript.trace(Other(kind)))
    with pytest.raises(UnknownGraphError):
        FewRows(module)
    assert few_rows(module) is None


def test_a_module_that_is_not_frozen_is_left_to_torch(trained):
    assert few_rows(trained.load_model(freeze=False)) is None

"""The graph of the model, run by numpy for few rows: the same numbers as torch, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
def test_a_trained_model_gives_the_same_numbers_as_by_torch(module, network, normals, n):
    few = few_rows(module)
    scores = inference.outputs(module, normals, SCORE_FIELDS)[ANOMALY_SCORE]
    low = normals[scores < float(network.gate) * 0.999]
    assert len(low) > 10 * FEW
    for start in range(0, 10 * FEW, FEW):
        assert_same(few, module, low[start : start + n])


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
    network.set_whitening(torch.randn(8) / 10, torch.randn(8, 8) / 10)
    network.set_ordinary(torch.randn(8) / 10, torch.randn(8, 8) / 10, limit=2.0)
    network.leave_out(torch.arange(8) == 5)
    module = frozen(network, tmp_path)
    few = FewRows(module)
    rows = np.random.default_rng(0).normal(2, 9, (FEW, 8)).astype(np.float32)
    assert_same(few, module, rows)
    for value in (0.0, -0.0, 1e-40, LARGEST, -LARGEST):
        rows[:, 3] = value
        assert_same(few, module, rows)
    assert not recwarn.list


def test_a_batch_with_a_row_above_the_gate_is_left_to_torch(tmp_path):
    network = TransactionAutoencoder().eval()
    network.set_whitening(torch.zeros(30), torch.eye(30))
    rows = np.random.default_rng(0).normal(size=(FEW, 30)).astype(np.float32)
    rows[3] *= 4
    plain = inference.outputs(frozen(network, tmp_path), rows, SCORE_FIELDS)[ANOMALY_SCORE]
    network.set_memory(torch.from_numpy(rows[3:4]) * 1.01, gate=90.0)
    module = frozen(network, tmp_path)
    few = FewRows(module)
    assert few.score(rows) is None
    assert_same(few, module, np.delete(rows, 3, axis=0))
    scores = inference.outputs(module, rows, SCORE_FIELDS, few)[ANOMALY_SCORE]
    assert scores[3] < plain[3]
    np.testing.assert_array_equal(np.delete(scores, 3), np.delete(plain, 3))


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


@pytest.mark.parametrize("n", [FEW + 1, 500, 2000])
def test_a_transaction_has_the_same_digits_in_any_batch_of_torch(module, network, normals, n):
    rows = np.concatenate([normals[:4000], normals[:90] * 3])
    whole = inference.outputs(module, rows, SCORE_FIELDS)
    assert (whole[ANOMALY_SCORE] > float(network.gate)).sum() > 20
    parts = [inference.outputs(module, rows[i : i + n], SCORE_FIELDS) for i in range(0, len(rows), n)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values, err_msg=name)


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
        return (x.sum(1, dtype=torch.float64),) if self.kind == "dtype" else (x.tanh(),)


@pytest.mark.parametrize("kind", ["alpha", "dtype", "tanh"])
def test_a_graph_that_is_not_known_is_left_to_torch(tmp_path, kind):
    module = torchscript.frozen(torchscript.trace(Other(kind)))
    with pytest.raises(UnknownGraphError):
        FewRows(module)
    assert few_rows(module) is None


class Function(torch.nn.Module):
    """A graph of `score` that is one expression."""

    def __init__(self, compute: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("mean", torch.linspace(-1, 1, 30))
        self.register_buffer("cubes", torch.linspace(-1, 1, 60).reshape(2, 30, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def score(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.compute(x, self),)


def _with_a_column_of_another(rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    rows.narrow(1, 2, 1).copy_(other.narrow(1, 5, 1))
    return rows


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, own: x.narrow(1, -3, 3),
        lambda x, own: x.narrow(-1, -3, 2),
        lambda x, own: x.select(-1, 2),
        lambda x, own: x.unsqueeze(-1),
        lambda x, own: x.unsqueeze(-2),
        lambda x, own: x.matmul(own.cubes),
        lambda x, own: torch.addcmul(x, own.mean, own.mean),
        lambda x, own: torch.addcmul(own.mean, x, own.mean, value=-2.0),
        lambda x, own: (x - own.mean).add_(own.mean).mul_(own.mean).square_(),
        lambda x, own: (x - own.mean).div_(own.mean).relu_(),
        lambda x, own: (x - own.mean).addcmul_(x, own.mean, value=-2.0),
        lambda x, own: own.cubes[0].t().mm(x.t()).addmm_(own.cubes[1].t(), x.t(), beta=0.5, alpha=-1.0),
        lambda x, own: _with_a_column_of_another(x.clamp(-1.0, 1.0), x),
        lambda x, own: x.t().contiguous(),
        lambda x, own: x.clone().sub_(own.mean),
    ],
)
def test_arguments_that_count_from_the_end_and_shapes_that_grow_are_read_as_torch_reads_them(compute):
    module = torchscript.frozen(torchscript.trace(Function(compute)))
    rows = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    before = rows.copy()
    few = FewRows(module)
    with torch.inference_mode():
        (expected,) = module.score(torch.from_numpy(rows))
    for _ in range(2):  # no constant is changed
        (values,) = few.score(rows)
        assert values.shape == tuple(expected.shape)
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x, own: x.clamp(min=0.5), "aten::clamp without one of its arguments"),
        (lambda x, own: x.clamp(max=0.5), "aten::clamp without one of its arguments"),
        (lambda x, own: own.mean, "an answer that is no tuple of outputs, or a constant"),
    ],
)
def test_a_known_operator_without_an_argument_and_a_constant_answer_are_left_to_torch(compute, reason):
    module = torchscript.frozen(torchscript.trace(Function(compute)))
    with pytest.raises(UnknownGraphError, match=reason):
        FewRows(module)


def test_a_module_that_is_not_frozen_is_left_to_torch(trained):
    assert few_rows(trained.load_model(freeze=False)) is None

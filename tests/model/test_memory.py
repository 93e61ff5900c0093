"""The memory and the mixtures: training rows by which later rows of high scores are put in order."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from features.declaration import Feature, FeatureSpec
from features.roles import Roles
from model import fitting, package, report, torchscript, whitening
from model.gate import LIKENESS, RARITY_WEIGHT
from model.network import TransactionAutoencoder

N = 6
SPEC = FeatureSpec(
    tuple(Feature(f"f{i}", "number", f"f{i}") for i in range(N)), Roles(amount=None, label=None)
)


@pytest.fixture
def network() -> TransactionAutoencoder:
    """A network whose whitened residual is the row: it reconstructs nothing, and knows a mean of 0."""
    network = TransactionAutoencoder(SPEC).eval()
    with torch.no_grad():
        for weights in network.decoder.parameters():
            weights.zero_()
    network.set_whitening(torch.zeros(N), torch.eye(N))
    return network


def scores(network, rows: list[list[float]]) -> list[float]:
    with torch.no_grad():
        return network.score(torch.tensor(rows))[0].tolist()


def row(*values: float) -> list[float]:
    return [*values, *[0.0] * (N - len(values))]


def grown(excess: float, gate: float = 1.0) -> float:
    """A score with so much above the gate."""
    return gate * (1 + math.log1p(excess / gate))


def test_a_row_like_a_remembered_one_falls_below_one_that_leaves_the_planes_in_its_own_way(network):
    network.set_memory(torch.tensor([row(4), row(0, 0, 0, 4)]), gate=1.0)
    same, near, own_way = scores(network, [row(4), row(4, 0.1), row(0, 4)])
    assert same == pytest.approx(1)
    assert near == pytest.approx(grown(15.01 * 0.01 / (0.01 + LIKENESS * 16.01)))
    assert own_way == pytest.approx(grown(15 * 32 / (32 + LIKENESS * 16)))


@pytest.mark.parametrize("gate", [0.0, 1e-45, 1e-30])
def test_a_gate_near_zero_gives_finite_scores(network, gate):
    network.set_memory(torch.tensor([row(3), row(0, 9)]), gate=gate)
    assert all(map(math.isfinite, scores(network, [row(), row(1), row(1e10, 1e10)])))


def test_up_to_the_gate_a_score_is_as_without_a_memory_and_past_it_never_below_the_gate(network):
    rows = [row(x) for x in (0.5, 1.0, 1.9999, 2.0001, 2.2, 3.0)]
    plain = scores(network, rows)
    network.set_memory(torch.tensor([row(3), row(0, 9)]), gate=4.0)
    compared = scores(network, rows)
    assert compared[:3] == plain[:3]
    assert compared[3] == pytest.approx(plain[3], rel=1e-4)
    assert min(compared[3:]) >= 4.0 * (1 - 1e-6)
    assert all(low <= high * (1 + 1e-6) for low, high in zip(compared, plain, strict=True))


def test_a_rare_row_rises_above_one_that_leaves_the_planes_as_far_and_no_score_jumps_at_the_gate(network):
    # One mixture of one component: the rarity is the squared length of the second input.
    second = torch.zeros(N, N)
    second[1, 1] = 1.0
    network.set_memory(torch.tensor([row(0, 0, 0, 9)]), gate=4.0)
    network.set_mixtures(second, torch.zeros(N), torch.zeros(1, 1), usual=4.0)
    common, rare = scores(network, [row(30), row(0, 30)])
    kept = 896 / 4 * (1 / (1 + LIKENESS * 900 / 981))
    assert common == pytest.approx(4 * (1 + math.log1p(kept)))
    assert rare == pytest.approx(4 * (1 + math.log1p(kept) + RARITY_WEIGHT * 896 * kept / (kept + 1)))
    at_the_gate = scores(network, [row(0, 2), row(0, 2.0001)])
    assert at_the_gate[1] == pytest.approx(at_the_gate[0], rel=1e-3)


@pytest.mark.parametrize("freeze", [False, True])
def test_the_graph_compares_the_high_rows_alone_and_answers_as_eager_does(network, tmp_path, freeze):
    network.set_memory(torch.tensor([row(4), row(0, 0, 0, 4)]), gate=1.0)
    torchscript.save(torchscript.trace(network), tmp_path / "model.pt")
    module = torchscript.load(tmp_path / "model.pt", freeze=freeze)
    assert "prim::If" in str(module.score.inlined_graph)
    for batch in ([row(0.1)], [row(5, 1)], [row(0.1), row(5, 1), row(0.2), row(0, 7)]):
        with torch.inference_mode():
            got, want = module.score(torch.tensor(batch)), network.score(torch.tensor(batch))
        for part, expected in zip(got, want, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-6, atol=0)


def test_an_exported_graph_compares_all_rows_with_the_same_result(network, tmp_path):
    network.set_memory(torch.tensor([row(4), row(0, 0, 0, 4)]), gate=1.0)
    package.write_exported(network, tmp_path / package.EXPORT_FILE)
    program = torch.export.load(tmp_path / package.EXPORT_FILE).module()
    batch = torch.tensor([row(0.1), row(5, 1), row(0.2), row(0, 7)])
    answers = dict(zip(package.ONNX_OUTPUTS, program(batch), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(answers["anomaly_score"], network.score(batch)[0])


def test_a_model_of_an_earlier_score_is_not_rebuilt_by_this_formula(network):
    class Stored:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {k: v for k, v in network.state_dict().items() if not k.startswith("ordinary")}

    with pytest.raises(
        package.PackagingError, match=r"expected a model of this version's score.*train it again"
    ):
        package.eager(Stored(), SPEC)


@pytest.mark.parametrize("labelled", [True, False])
def test_only_rows_that_labels_call_normal_are_remembered(labelled):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, N)).astype(np.float32)
    rows[:20] += 30  # a series of frauds
    options = fitting.TrainingOptions(epochs=2).suited_to(labelled, SPEC)
    train, validation = rows[20 * labelled : 2500], rows[2500:]
    network = fitting.fit(train, validation, options, progress=False, spec=SPEC).network
    assert bool(network.gate.isfinite()) is labelled
    fraud = rows[:1].tolist()
    with_memory = scores(network, fraud)
    network.set_memory(torch.full((1, N), 1e6), float(network.gate))  # which is like no row at all
    assert with_memory == pytest.approx(scores(network, fraud), rel=0.02)


def unusual_columns(n: int, seed: int) -> np.ndarray:
    """Ordinary columns, and one of each kind that could take over a score."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)
    ordinary = [common + rng.normal(size=n) for _ in range(9)]
    unusual = [
        rng.standard_cauchy(n) ** 3,  # tails without a variance
        np.full(n, 7.0),  # constant
        (rng.random(n) < 0.003).astype(float),  # a rare flag
        -np.log(rng.choice([0.6, 0.3, 0.098, 0.002], n, p=[0.6, 0.3, 0.098, 0.002])),  # rare category
        rng.integers(0, 7, n).astype(float),  # discrete
        2 * common,  # depends on others
        ordinary[0] * 1000,  # a copy in other units
    ]
    return np.column_stack([*ordinary, *unusual]).astype(np.float32)


def test_no_kind_of_column_takes_over_the_score_of_normals():
    train, held_out = unusual_columns(6000, 0), unusual_columns(3000, 1)
    names = [f"f{i}" for i in range(train.shape[1])]
    spec = dataclasses.replace(SPEC, features=tuple(Feature(name, "number", name) for name in names))
    options = fitting.TrainingOptions(epochs=3)
    network = fitting.fit(train[:5000], train[5000:], options, progress=False, spec=spec).network
    with torch.no_grad():
        contributions = network.score(torch.from_numpy(train[:5000]))[2].double()
    trained = (contributions.sum(0) / contributions.sum()).numpy()
    assert trained.max() <= whitening.MAX_SHARE + 1e-3
    shares = report.score_shares(spec, torchscript.trace(network), held_out)
    assert max(entry["share"] for entry in shares.values()) <= whitening.MAX_SHARE
    assert shares["f10"]["share"] == 0  # the constant one
    assert np.isfinite([entry["share"] for entry in shares.values()]).all()

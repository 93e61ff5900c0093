from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from features.declaration import Feature, FeatureSpec
from features.roles import Roles
from features.ulb import AMOUNT_INDEX, N_FEATURES, TIME_INDEX
from model import torchscript
from model.gate import LIKENESS, RARITY_WEIGHT
from model.network import INPUT_REACH, RESIDUAL_REACH, TransactionAutoencoder
from model.outputs import FIELDS

FLOAT32_MAX = float(np.finfo(np.float32).max)


def reference(network: TransactionAutoencoder, x: np.ndarray) -> dict[str, np.ndarray]:
    """The 14 fields and the contributions, written out in float64 numpy from the weights alone."""
    p = {name: value.double().numpy() for name, value in network.state_dict().items()}
    x = x.astype(np.float64)

    def layers(part: str, h: np.ndarray) -> np.ndarray:
        for i in (0, 2, 4):
            h = h @ p[f"{part}.{i}.weight"].T + p[f"{part}.{i}.bias"]
            h = np.maximum(h, 0) if i < 4 else h
        return h

    z = (x - p["mean"]) / p["std"]
    visible = np.clip(z, -INPUT_REACH, INPUT_REACH)
    visible[:, TIME_INDEX] = 0
    encoded = layers("encoder", visible)
    z_recon = layers("decoder", encoded)
    recon = z_recon * p["std"] + p["mean"]
    fields = {"encoded": encoded}
    for scale, value, rebuilt in (("normalized", z, z_recon), ("denormalized", x, recon)):
        errors = value - rebuilt
        logs = np.log1p(np.maximum(rebuilt, 0)) - np.log1p(np.maximum(value, 0))
        fields[f"{scale}_reconstruction"] = rebuilt
        fields[f"{scale}_reconstruction_errors"] = errors
        fields[f"{scale}_MAE"] = np.abs(errors).mean(axis=1)
        fields[f"{scale}_RMSE"] = np.sqrt((errors**2).mean(axis=1))
        fields[f"{scale}_MSE"] = (errors**2).mean(axis=1)
        fields[f"{scale}_MSLE"] = (logs**2).mean(axis=1)

    def in_units_of_the_score(standardised: np.ndarray, raw: np.ndarray) -> np.ndarray:
        values = np.clip(standardised, -RESIDUAL_REACH, RESIDUAL_REACH)
        values[:, TIME_INDEX] = 0
        values[:, AMOUNT_INDEX] = np.log1p(np.maximum(raw[:, AMOUNT_INDEX], 0))
        return values

    inputs = in_units_of_the_score(z, x)
    whitened = (inputs - in_units_of_the_score(z_recon, recon)) @ p["whitening"].T + p["offset"]
    ordinary = (inputs @ p["ordinary_whitening"].T + p["ordinary_offset"]) ** 2
    ordinary *= np.minimum(1, p["ordinary_limit"] / ordinary.sum(axis=1))[:, None]
    contributions = whitened**2 + ordinary
    distance = np.array([((p["memory"] - row) ** 2).sum(axis=1).min() for row in whitened])
    score, kept = contributions.sum(axis=1), distance / (distance + LIKENESS * (whitened**2).sum(axis=1))
    squares = (inputs @ p["mixture_whitening"].T + p["mixture_offset"]) ** 2
    densities = p["mixture_logs"] - squares.reshape(len(x), *p["mixture_logs"].shape, -1).sum(axis=3)
    rarity = -logsumexp(densities, axis=2).mean(axis=1)
    above = np.maximum(score - p["gate"], 0) * kept / p["gate"]
    rare = RARITY_WEIGHT * np.maximum(rarity - p["usual_rarity"], 0) * above / (above + 1)
    compared = np.where(score > p["gate"], p["gate"] * (1 + np.log1p(above) + rare), score)
    contributions *= (compared / score)[:, None]
    return {**fields, "anomaly_score": contributions.sum(axis=1), "contributions": contributions}


def answers(model, x: np.ndarray) -> dict[str, np.ndarray]:
    """All fields of `forward`, and the contributions of `score`, as numpy."""
    with torch.no_grad():
        named = dict(model(torch.from_numpy(x)))
        named["contributions"] = model.score(torch.from_numpy(x))[2]
    return {name: value.numpy() for name, value in named.items()}


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], widest: float) -> None:
    """1e-4 relative, beside float32's rounding at the scale of the widest feature.

    That is Time: its reconstruction is off by up to 0.1 s, much to the logarithm of one that is close to 0 s.
    """
    assert list(got) == list(want)
    scales = {"denormalized_MSLE": 100.0, "denormalized_MSE": widest**2}
    for name, value in want.items():
        scale = scales.get(name, widest if name.startswith("denormalized") else 1.0)
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@pytest.fixture(scope="module")
def rows(normals) -> np.ndarray:
    """Ordinary transactions, and some with values far out."""
    rows = normals[:200].copy()
    rows[::7, 5] += 40
    rows[::11, AMOUNT_INDEX] = 25_000
    rows[::13, AMOUNT_INDEX] = -3
    return rows


def test_forward_gives_the_14_fields_in_their_shapes(network, rows):
    with torch.no_grad():
        fields = network(torch.from_numpy(rows))
    assert tuple(fields) == FIELDS
    assert len(FIELDS) == 14
    for name, value in fields.items():
        width = (4,) if name == "encoded" else (30,) if "reconstruction" in name else ()
        assert value.shape == (len(rows), *width), name
        assert value.dtype == torch.float32, name


def test_every_field_follows_its_definition(network, rows):
    assert_close(answers(network, rows), reference(network, rows), float(network.std.max()))


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("n", [1, 3, 200])
def test_traced_and_frozen_modules_answer_as_eager_does(trained, network, rows, n, freeze):
    module = trained.load_model(freeze=freeze)
    got, want = answers(module, rows[:n]), answers(network, rows[:n])
    assert_close(got, want, float(network.std.max()))
    np.testing.assert_allclose(got["anomaly_score"], want["anomaly_score"], rtol=1e-4)


def test_the_plain_way_to_load_a_traced_file_gives_the_dict(trained, rows):
    with pytest.warns(DeprecationWarning, match="jit"):
        module = torch.jit.load(str(trained.model_path))
    with torch.no_grad():
        assert tuple(module(torch.from_numpy(rows[:2]))) == FIELDS


def test_contributions_add_up_to_the_score_of_forward(module, rows):
    with torch.no_grad():
        score, encoded, contributions = module.score(torch.from_numpy(rows))
        fields = module(torch.from_numpy(rows))
    np.testing.assert_allclose(contributions.double().sum(1), score, rtol=1e-5)
    np.testing.assert_allclose(score, fields["anomaly_score"], rtol=1e-5)
    np.testing.assert_allclose(encoded, fields["encoded"], rtol=1e-5, atol=1e-6)
    assert (contributions >= 0).all()


@pytest.mark.parametrize("log", [(), ("f3",), ("f0", "f1", "f3")])
def test_the_score_is_that_of_the_residual_which_it_does_not_compute(log):
    """Of several inputs on a log scale, some of them left out."""
    spec = FeatureSpec(
        tuple(
            Feature(name := f"f{i}", "number", name, scale="log" if name in log else "linear")
            for i in range(6)
        ),
        Roles(amount=None, label=None),
    )
    torch.manual_seed(4)
    network = TransactionAutoencoder(spec).eval()
    network.set_normalisation(torch.linspace(-3, 9, 6), torch.linspace(0.1, 20, 6))
    network.set_whitening(torch.randn(6), torch.randn(6, 6))
    network.leave_out(torch.tensor([False, True, False, False, False, True]))
    rows = torch.randn(50, 6) * 9
    with torch.no_grad():
        score, _, contributions = network.score(rows)
        expected = network.whiten(rows).square()
    torch.testing.assert_close(contributions, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score, expected.sum(1), rtol=1e-4, atol=1e-4)
    assert contributions.is_contiguous()


def test_large_amounts_on_a_log_scale_that_hardly_vary_keep_their_digits():
    spec = FeatureSpec(
        tuple(Feature(name := f"f{i}", "number", name, scale="log") for i in range(4)),
        Roles(amount=None, label=None),
    )
    torch.manual_seed(4)
    network = TransactionAutoencoder(spec).eval()
    network.set_normalisation(torch.full((4,), 1.7e9), torch.full((4,), 1.7e5))
    network.set_whitening(torch.zeros(4), torch.randn(4, 4) * 1e5)
    rows = 1.7e9 + 1.7e5 * torch.randn(50, 4)
    with torch.no_grad():
        score, expected = network.score(rows)[0], network.whiten(rows).square().sum(1)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)


def test_time_stays_out_of_the_score(module, rows):
    with torch.no_grad():
        assert (module.score(torch.from_numpy(rows))[2][:, TIME_INDEX] == 0).all()


def test_a_row_has_the_same_score_in_any_batch(module, rows):
    with torch.no_grad():
        together = module.score(torch.from_numpy(rows))[0]
        alone = torch.cat([module.score(row[None])[0] for row in torch.from_numpy(rows)])
        reordered = module.score(torch.from_numpy(rows[::-1].copy()))[0].flip(0)
    np.testing.assert_allclose(alone, together, rtol=1e-4)
    np.testing.assert_allclose(reordered, together, rtol=1e-4)


finite = st.floats(-FLOAT32_MAX, FLOAT32_MAX, width=32)
extreme = st.sampled_from([0.0, 1e38, -1e38, FLOAT32_MAX, -FLOAT32_MAX, 1e-45, -1.0, 1e19])


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (3, N_FEATURES), elements=finite | extreme))
def test_every_finite_input_has_finite_outputs(module, x):
    got = answers(module, x)
    for name, value in got.items():
        assert np.isfinite(value).all(), name
    np.testing.assert_allclose(
        got["contributions"].astype(np.float64).sum(1), got["anomaly_score"], rtol=1e-5
    )


@pytest.mark.parametrize("value", [1e38, -1e38, FLOAT32_MAX, -FLOAT32_MAX])
def test_rows_of_one_extreme_value_score_high(trained, module, value):
    x = torch.full((2, N_FEATURES), value)
    with torch.no_grad():
        score = module.score(x)[0]
    assert torch.isfinite(score).all()
    assert (score > trained.manifest.thresholds["high"]).all()


def test_nan_in_gives_nan_out_and_harms_no_other_row(module, rows):
    broken = rows[:4].copy()
    broken[2, 9] = np.nan
    with torch.no_grad():
        score, clean = module.score(torch.from_numpy(broken))[0], module.score(torch.from_numpy(rows[:4]))[0]
    assert score.isnan().tolist() == [False, False, True, False]
    np.testing.assert_allclose(score[[0, 1, 3]], clean[[0, 1, 3]], rtol=1e-5)


def test_an_untrained_network_can_be_traced_and_takes_no_rows_at_all():
    module = torchscript.trace(TransactionAutoencoder())
    with torch.no_grad():
        score, encoded, contributions = module.score(torch.zeros(0, N_FEATURES))
    assert (score.shape, encoded.shape, contributions.shape) == ((0,), (0, 4), (0, N_FEATURES))


def test_outputs_are_finite_for_features_whose_deviation_is_near_the_limit_of_float32():
    """One absurd amount in the training data is enough for such a deviation."""
    torch.manual_seed(0)
    network = TransactionAutoencoder().eval()
    network.set_normalisation(torch.full((N_FEATURES,), 1e38), torch.full((N_FEATURES,), 3e38))
    x = torch.tensor([[0.0], [FLOAT32_MAX], [-FLOAT32_MAX]]).expand(3, N_FEATURES)
    with torch.no_grad():
        for weight in network.decoder.parameters():
            weight.mul_(20)
        recon = network(x)["normalized_reconstruction"]
        assert (recon[:, AMOUNT_INDEX].abs() > 2).any(), "nothing left the range, so nothing was tested"
        for name, value in answers(network, x.numpy()).items():
            assert np.isfinite(value).all(), name

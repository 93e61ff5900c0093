"""The committed parameters: well-formed, no row of the data in them, and close to the data."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.generator_estimate import (
    NORMAL_PROBABILITIES,
    estimate,
    harrell_davis,
    hourly_share,
    marginal,
    pareto_tail,
    read_ulb,
    robust_planes,
    thin_first_hours,
)
from benchmarks.generator_fidelity import measure
from features.ulb import AMOUNT_INDEX, FEATURES, N_FEATURES, TIME_INDEX
from model import synthetic
from model.synthetic.parameters import COMPONENT_SLICE, load

DOCUMENT = json.loads((Path(synthetic.__file__).parent / "parameters.json").read_text())


def test_the_file_says_where_it_comes_from():
    provenance = DOCUMENT["provenance"]
    assert provenance["file"] == "ulb_transactions.parquet"
    assert provenance["rows"] == 43_390
    assert len(provenance["sha256"]) == 64
    assert provenance["script"] == "python -m benchmarks.generator_estimate"
    assert provenance["method"]
    assert provenance["estimated_on"]


@pytest.mark.parametrize("name", ["normal", "fraud"])
def test_distributions_are_well_formed(name):
    distribution = getattr(load(), name)
    k = len(distribution.weights)
    assert distribution.weights.sum() == pytest.approx(1)
    assert distribution.hourly_share.sum() == pytest.approx(1)
    assert distribution.means.shape == (k, N_FEATURES)
    assert distribution.cholesky.shape == (k, N_FEATURES, N_FEATURES)
    assert (np.diagonal(distribution.cholesky, axis1=1, axis2=2) > 0).all()
    for z, x in zip(distribution.knots_z, distribution.knots_x, strict=True):
        assert (np.diff(z) > 0).all()
        assert (np.diff(x) >= 0).all()


def test_the_basis_inverts():
    basis = load().basis
    features = np.random.default_rng(0).normal(size=(50, N_FEATURES))
    coordinates = basis.coordinates(features)
    back = coordinates[:, COMPONENT_SLICE] @ basis.to_components.T + basis.centre
    np.testing.assert_allclose(back, features[:, COMPONENT_SLICE], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(basis.planes, axis=1), 1, atol=1e-6)


def test_normals_lie_near_the_planes():
    rng = np.random.default_rng(0)
    normal = load().normal
    features = normal.draw(normal.draw_times(rng.random(20_000)), rng)
    distances = (features[:, COMPONENT_SLICE] - load().basis.centre) @ load().basis.planes.T
    assert (np.abs(distances[:, 0]) < 1e-3).mean() > 0.9
    assert (np.abs(distances) < 0.1).mean(axis=0).min() > 0.85


def test_features_depend_on_the_time_that_is_given():
    rng = np.random.default_rng(0)
    normal = load().normal
    early, late = (normal.draw(np.full(5_000, hour * 3600.0), rng) for hour in (10, 40))
    v3 = FEATURES.index("V3")
    # V3 falls over the two days of the data.
    assert np.median(early[:, v3]) - np.median(late[:, v3]) > 0.5
    assert set(early[:, TIME_INDEX]) == {36_000.0}


@pytest.mark.parametrize("share", [0.0, 0.00172, 0.3, 0.9])
def test_hourly_fraud_share_keeps_the_whole(share):
    hourly = load().hourly_fraud_share(share)
    assert hourly @ load().normal.hourly_share == pytest.approx(share, abs=1e-6)
    assert hourly.max() <= 0.95


def test_harrell_davis():
    from scipy.stats.mstats import hdquantiles

    values = np.random.default_rng(0).lognormal(size=500)
    probabilities = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    np.testing.assert_allclose(
        harrell_davis(values, probabilities), hdquantiles(values, probabilities), rtol=1e-9
    )


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3])
def test_pareto_tail_finds_the_quantiles_of_a_pareto_sample(shape):
    from scipy.stats import genpareto

    sample = genpareto(shape).rvs(200_000, random_state=0)
    tail, quantiles = pareto_tail(sample, outer=0.01, factors=(0.5, 0.1))
    np.testing.assert_allclose(tail, [0.005, 0.001])
    np.testing.assert_allclose(quantiles, genpareto(shape).isf(tail), rtol=0.05)


def test_pareto_tail_of_an_atom_is_flat():
    _, quantiles = pareto_tail(-np.zeros(1_000), outer=0.01, factors=(0.5, 0.1))
    assert quantiles.tolist() == [0.0, 0.0]


def test_hourly_share_folds_the_days():
    share = hourly_share(np.array([3_600.0 * 5] * 30), fold=True)
    assert share.sum() == pytest.approx(1)
    assert share.argmax() == 5
    assert share[5] == pytest.approx(share[29])
    assert hourly_share(np.array([3_600.0 * 5]), fold=False)[5] == 1.0


def test_thinning_takes_the_surplus_of_the_first_hours_alone():
    features = np.zeros((300, N_FEATURES))
    features[:100, TIME_INDEX] = 1_800  # hour 0
    features[100:110, TIME_INDEX] = 24 * 3600 + 1  # the same hour a day later
    features[110:, TIME_INDEX] = 10 * 3600
    hours = thin_first_hours(features, np.random.default_rng(0))[:, TIME_INDEX] // 3600
    assert np.unique(hours, return_counts=True)[1].tolist() == [10, 190, 10]


def test_a_file_in_another_layout_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"Time": [1.0]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: columns \['V1'.*'Class'\] are missing"):
        estimate(tmp_path / "x.parquet")


def test_no_row_can_be_read_off(ulb_file):
    features, labels = read_ulb(ulb_file)
    for name, label in (("normal", 0), ("fraud", 1)):
        rows = features[labels == label]
        knots = [x for _, x in DOCUMENT[name]["knots"]]
        for j in range(N_FEATURES):
            if j in (TIME_INDEX, AMOUNT_INDEX):
                continue  # whole hours; prices that thousands of rows share, and 0, the least there can be
            extremes = {float(f"{v:.4g}") for v in (rows[:, j].min(), rows[:, j].max())}
            assert not extremes & set(knots[j]), FEATURES[j]
        assert float(f"{rows[:, AMOUNT_INDEX].max():.4g}") not in knots[AMOUNT_INDEX]


@pytest.mark.integration
def test_the_planes_and_marginals_can_be_estimated_again(ulb_file):
    """All but the fit of the mixtures, which takes too long for a test."""
    assert hashlib.sha256(ulb_file.read_bytes()).hexdigest() == DOCUMENT["provenance"]["sha256"]
    features, labels = read_ulb(ulb_file)
    normals = thin_first_hours(features[labels == 0], np.random.default_rng(0))
    assert len(normals) == DOCUMENT["provenance"]["normals_used"]
    planes = robust_planes(normals)
    assert planes["pivots"] == DOCUMENT["basis"]["pivots"]
    np.testing.assert_allclose(planes["planes"], DOCUMENT["basis"]["planes"], atol=1e-3)
    coordinates = load().basis.coordinates(normals)
    for j in range(TIME_INDEX + 1, AMOUNT_INDEX, 4):
        _, x = marginal(coordinates[:, j], NORMAL_PROBABILITIES)
        np.testing.assert_allclose(x, DOCUMENT["normal"]["knots"][j][1], rtol=1e-3, atol=1e-4)


@pytest.mark.integration
def test_synthetic_transactions_are_like_real_ones(ulb_file):
    fidelity = measure(*read_ulb(ulb_file))
    assert fidelity.normal.mean_ks < 0.015
    assert fidelity.normal.largest_ks < 0.06
    assert max(fidelity.normal.quantiles[q] for q in ("25%", "50%", "75%")) < 0.2
    assert fidelity.normal.mean_rank_correlation < 0.02
    assert fidelity.normal.largest_rank_correlation < 0.15
    # 284 real frauds: two samples of this size from one distribution differ by 0.04 in the mean as well.
    assert fidelity.fraud.mean_ks < 0.06
    assert fidelity.fraud.mean_rank_correlation < 0.06
    real = fidelity.detection["real -> real"]
    for pair in ("synthetic -> real", "real -> synthetic", "synthetic -> synthetic"):
        result = fidelity.detection[pair]
        assert result.auroc == pytest.approx(real.auroc, abs=0.02), pair
        assert result.average_precision == pytest.approx(real.average_precision, abs=0.1), pair

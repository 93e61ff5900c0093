from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from model import whitening


@pytest.fixture(scope="module")
def covariance() -> np.ndarray:
    mixing = np.random.default_rng(1).normal(size=(6, 6)) * np.array([1, 2, 5, 0.1, 1, 3])[:, None]
    return mixing @ mixing.T


def test_corr_max_whitens(covariance):
    w = whitening.corr_max(covariance, floor=0.0)
    np.testing.assert_allclose(w @ covariance @ w.T, np.eye(6), atol=1e-8)


def test_squares_of_the_whitened_vector_add_up_to_the_mahalanobis_distance(covariance):
    rows = np.random.default_rng(2).normal(size=(50, 6))
    whitened = rows @ whitening.corr_max(covariance, floor=0.0).T
    distance = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(covariance), rows)
    np.testing.assert_allclose((whitened**2).sum(1), distance, rtol=1e-8)


def test_corr_max_keeps_components_closer_to_their_features_than_cholesky_does(covariance):
    deviation = np.sqrt(np.diag(covariance))

    def total_correlation(w: np.ndarray) -> float:
        return float(np.trace(w @ covariance / deviation))

    cholesky = np.linalg.inv(np.linalg.cholesky(covariance))
    assert total_correlation(whitening.corr_max(covariance, floor=0.0)) > total_correlation(cholesky)


def test_the_floor_bounds_the_amplification():
    plane = np.array([[1.0, 1.0], [1.0, 1.0]])
    w = whitening.corr_max(plane, floor=1e-4)
    assert np.abs(np.linalg.eigvalsh(w)).max() == pytest.approx(100.0)


def test_fit_gives_the_documented_score():
    from sklearn.covariance import MinCovDet

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2000, 5)) @ rng.normal(size=(5, 5)) + 7
    inputs = rng.normal(size=(2000, 5)) @ rng.normal(size=(5, 5)) - 3
    scale = whitening.fit(rows, inputs, seed=0)
    np.testing.assert_allclose(scale.center, rows.mean(axis=0), atol=0.2)
    # The definition, by inverses in place of whitenings.
    unit = rows / rows.std(axis=0)
    estimate = MinCovDet(support_fraction=whitening.SUPPORT, random_state=0).fit(unit)
    d = unit - estimate.raw_location_
    core = np.einsum("ij,jk,ik->i", d, np.linalg.inv(estimate.raw_covariance_), d)
    order = np.argsort(core)[-20:]
    radius = np.median(np.sqrt(core[order]))
    drawn_in = np.minimum(1, radius / np.sqrt(core[order]))
    far = d[order] * drawn_in[:, None]
    outer = np.einsum("ij,jk,ik->i", d, np.linalg.inv(far.T @ far / 20), d)
    core *= chi2.ppf(0.5, 5) / np.median(core)
    quadratic = np.square((rows - scale.center) @ scale.whitening.T).sum(1)
    np.testing.assert_allclose(quadratic, (whitening.QUADRATIC_SHARE * core + outer) / 5, rtol=1e-6)
    # The ordinary part: the reweighted estimate of the inputs, six times as large in the median.
    unit = inputs / inputs.std(axis=0)
    ordinary = MinCovDet(support_fraction=whitening.SUPPORT, random_state=0).fit(unit).mahalanobis(unit)
    ordinary *= whitening.ORDINARY_WEIGHT * np.median(quadratic) / np.median(ordinary)
    lengths = np.square((inputs - scale.ordinary_center) @ scale.ordinary_whitening.T).sum(1)
    np.testing.assert_allclose(lengths, ordinary, rtol=1e-6)
    assert scale.ordinary_limit == pytest.approx(np.quantile(ordinary, whitening.ORDINARY_QUANTILE))


def test_normals_that_leave_the_planes_together_score_below_rows_that_leave_them_another_way():
    rng = np.random.default_rng(6)
    core = rng.normal(size=(4000, 1)) * np.array([1.0, 1.0, 1.0]) + 0.01 * rng.normal(size=(4000, 3))
    core[:40] += rng.normal(size=(40, 1)) * np.array([2.0, -2.0, 0.0])  # normal, and off the plane
    scale = whitening.fit(core, core, seed=0)

    def quadratic(row: list[float]) -> float:
        return float(np.square((np.array(row) - scale.center) @ scale.whitening.T).sum())

    assert quadratic([0.0, 2.0, -2.0]) > 3 * quadratic([2.0, -2.0, 0.0])


def test_a_few_outliers_do_not_move_the_fit():
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(2000, 4))
    clean = whitening.fit(rows, rows, seed=0)
    spoiled = rows.copy()
    spoiled[:3] = 500.0
    dirty = whitening.fit(spoiled, spoiled, seed=0)
    for part in ("center", "ordinary_center"):
        np.testing.assert_allclose(getattr(dirty, part), getattr(clean, part), atol=0.15)
    for part in ("whitening", "ordinary_whitening"):
        want = getattr(clean, part)
        np.testing.assert_allclose(getattr(dirty, part), want, atol=0.15 * np.abs(want).max())


def test_outliers_that_are_half_of_the_rows_farthest_out_still_stand_out():
    rows = np.random.default_rng(4).normal(size=(2000, 4))
    rows[:10] = 500.0
    scale = whitening.fit(rows, rows, seed=0)
    np.testing.assert_allclose(scale.center, 0, atol=0.15)
    quadratic = np.square((rows - scale.center) @ scale.whitening.T).sum(1)
    assert quadratic[:10].min() > 1000 * quadratic[10:].max()


def test_a_constant_feature_does_not_break_the_fit():
    rows = np.random.default_rng(5).normal(size=(2000, 4))
    rows[:, 2] = 0.0
    scale = whitening.fit(rows, rows, seed=0)
    for part in vars(scale).values():
        assert np.isfinite(part).all()

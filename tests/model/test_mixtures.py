"""Mixtures of unusual normals, and what a network makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from model import mixtures
from model.gate import _rarity

K = 5


def rarity(fitted: mixtures.Mixtures, rows: np.ndarray) -> np.ndarray:
    """The rarity of rows as the network computes it, in float64."""
    parts = (torch.from_numpy(part) for part in (rows, fitted.whitening, fitted.offset, fitted.logs))
    return _rarity(*parts).numpy()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(4000, K)) * np.array([1.0, 5.0, 0.1, 1.0, 1.0]) + 3
    rows[:40, :2] += [20.0, -60.0]  # unusual normals, alike
    return rows


NONE = np.zeros(K, bool)


def test_rarity_is_the_mean_negative_log_density_of_the_rows_that_are_reconstructed_worst(rows, monkeypatch):
    monkeypatch.setattr(mixtures, "MIXTURES", 2)
    fitted = mixtures.fit(rows, rows, NONE, seed=7)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    worst = np.argsort((standard**2).sum(axis=1))[-800:]
    mean, spread = rows[worst].mean(axis=0), rows[worst].std(axis=0)
    want = np.zeros(len(rows))
    for seed in (7, 8):
        mixture = GaussianMixture(mixtures.COMPONENTS, reg_covar=mixtures.RIDGE, random_state=seed)
        mixture.fit((rows[worst] - mean) / spread)
        want -= mixture.score_samples((rows - mean) / spread) / 2
    np.testing.assert_allclose(rarity(fitted, rows), want, rtol=1e-6, atol=1e-6)
    assert fitted.usual == pytest.approx(np.median(want[worst]))


def test_a_row_like_unusual_normals_is_less_rare_than_one_as_unusual_in_its_own_way(rows):
    fitted = mixtures.fit(rows, rows, NONE, seed=0)
    like, own_way = rarity(fitted, rows.mean(axis=0) + np.array([[20.0, -60, 0, 0, 0], [-20.0, 60, 0, 0, 0]]))
    assert like < fitted.usual + 20
    assert own_way > like + 100


def test_discrete_and_constant_columns_do_not_make_a_row_rare(rows):
    discrete = rows.copy()
    discrete[:, 3], discrete[:, 4] = np.arange(len(rows)) % 997 == 0, 7.0
    fitted = mixtures.fit(discrete, discrete, np.arange(K) == 3, seed=0)
    other = discrete[:10].copy()
    other[:, 3], other[:, 4] = 1.0, 700.0
    np.testing.assert_allclose(rarity(fitted, other), rarity(fitted, discrete[:10]))


@pytest.mark.parametrize(("n", "components"), [(1, 1), (3, 1), (60, 1), (260, 5), (4000, 10)])
def test_few_rows_make_few_components(rows, n, components):
    fitted = mixtures.fit(rows[:n], rows[:n], NONE, seed=0)
    assert fitted.logs.shape == (mixtures.MIXTURES, components)
    assert np.isfinite(rarity(fitted, rows[:n])).all()


def test_columns_that_are_all_discrete_leave_every_row_usual(rows):
    fitted = mixtures.fit(rows, rows, ~NONE, seed=0)
    assert (rarity(fitted, rows * 100) <= fitted.usual).all()

"""Discrete, constant and heavy-tailed inputs, which must not take over the score."""

from __future__ import annotations

import numpy as np

from model import whitening


def contributions(scale: whitening.ScoreScale, rows: np.ndarray) -> np.ndarray:
    deviations = rows - scale.center
    return np.square(deviations @ scale.whitening.T) + np.abs(deviations) * scale.absolute_weight


def test_heavy_tails_have_a_bounded_share():
    rng = np.random.default_rng(0)
    rows = np.column_stack([*rng.normal(size=(9, 5000)), rng.standard_cauchy(5000) ** 3])
    shares = contributions(whitening.fit(rows), rows).mean(axis=0)
    assert shares[-1] / shares.sum() <= whitening.MAX_SHARE + 1e-6


def test_a_rare_flag_does_not_lead_all_high_scores():
    rng = np.random.default_rng(1)
    n = 10_000
    flag = (rng.random(n) < 0.004).astype(float)
    flag = (flag - flag.mean()) / flag.std()
    noise = rng.normal(size=n) / 100  # what the network makes of the others
    rows = np.column_stack([*rng.normal(size=(9, n)), flag + noise])
    inputs = np.column_stack([rows[:, :9], flag])
    is_discrete = whitening.discrete_columns(inputs)
    assert is_discrete.tolist() == [False] * 9 + [True]

    def leads(floors: np.ndarray | None) -> float:
        parts = contributions(whitening.fit(rows, 0, floors), rows)
        score = parts.sum(axis=1)
        return float((parts[score >= np.quantile(score, 0.995)].argmax(axis=1) == 9).mean())

    flagged = contributions(whitening.fit(rows, 0, np.where(is_discrete, 0.5, 0.0)), rows)
    plain = contributions(whitening.fit(rows, 0), rows)
    assert flagged[flag > 1, 9].mean() < plain[flag > 1, 9].mean()
    assert leads(np.where(is_discrete, 0.5, 0.0)) <= leads(None)


def test_copies_and_constants_give_finite_scores():
    rng = np.random.default_rng(2)
    first = rng.normal(size=3000)
    rows = np.column_stack([first, 100 * first, np.zeros(3000), rng.integers(0, 2, 3000)])
    scale = whitening.fit(rows, 0, np.array([0, 0, 0, 0.5]))
    assert np.isfinite(contributions(scale, rows)).all()


def test_a_discrete_input_whose_residual_vanishes_counts_by_its_own_deviation():
    rng = np.random.default_rng(3)
    rows = np.column_stack([*rng.normal(size=(9, 3000)), rng.normal(size=3000) / 1000])
    scale = whitening.fit(rows, 0, np.array([0.0] * 9 + [0.5]))
    assert scale.absolute_weight[9] * 10 <= 1 / 0.5 + 1e-9

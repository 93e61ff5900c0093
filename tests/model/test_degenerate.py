"""Discrete, constant and heavy-tailed inputs, which must not take over the score."""

from __future__ import annotations

import numpy as np

from model import whitening


def contributions(
    scale: whitening.ScoreScale, rows: np.ndarray, inputs: np.ndarray | None = None
) -> np.ndarray:
    """Of residuals and inputs, which are the same rows unless they are told."""
    ordinary = np.square(
        ((rows if inputs is None else inputs) - scale.ordinary_center) @ scale.ordinary_whitening.T
    )
    ordinary *= np.minimum(1, scale.ordinary_limit / ordinary.sum(axis=1))[:, None]
    return np.square((rows - scale.center) @ scale.whitening.T) + ordinary


def test_heavy_tails_have_a_bounded_share():
    rng = np.random.default_rng(0)
    rows = np.column_stack([*rng.normal(size=(9, 5000)), rng.standard_cauchy(5000) ** 3])
    shares = contributions(whitening.fit(rows, rows), rows).mean(axis=0)
    assert shares[-1] / shares.sum() <= whitening.MAX_SHARE + 1e-6


def test_columns_of_even_spread_have_a_bounded_share_in_the_scores_of_ordinary_rows():
    """Of all rows they have less: in the highest ones, whose scores become logarithms, the others lead."""
    rng = np.random.default_rng(4)
    angle = rng.uniform(0, 2 * np.pi, 5000)
    rows = np.column_stack([np.sin(angle), np.cos(angle), *(rng.standard_cauchy((5, 5000)))])
    parts = contributions(whitening.fit(rows, rows), rows)
    sums = parts.sum(axis=1)
    for kept in (parts, parts[sums <= np.quantile(sums, 0.99)]):
        assert kept.mean(axis=0).max() / kept.mean(axis=0).sum() <= 2 / 7 + 1e-3


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
        parts = contributions(whitening.fit(rows, inputs, 0, floors), rows, inputs)
        score = parts.sum(axis=1)
        return float((parts[score >= np.quantile(score, 0.995)].argmax(axis=1) == 9).mean())

    flagged = contributions(whitening.fit(rows, inputs, 0, np.where(is_discrete, 0.5, 0.0)), rows, inputs)
    plain = contributions(whitening.fit(rows, inputs, 0), rows, inputs)
    assert flagged[flag > 1, 9].mean() < plain[flag > 1, 9].mean()
    assert leads(np.where(is_discrete, 0.5, 0.0)) <= leads(None)


def test_copies_and_constants_give_finite_scores():
    rng = np.random.default_rng(2)
    first = rng.normal(size=3000)
    rows = np.column_stack([first, 100 * first, np.zeros(3000), rng.integers(0, 2, 3000)])
    scale = whitening.fit(rows, rows, 0, np.array([0, 0, 0, 0.5]))
    assert np.isfinite(contributions(scale, rows)).all()


def test_a_discrete_input_whose_residual_vanishes_counts_by_its_own_deviation():
    rng = np.random.default_rng(3)
    rows = np.column_stack([*rng.normal(size=(9, 3000)), rng.normal(size=3000) / 1000])
    scale = whitening.fit(rows, rows, 0, np.array([0.0] * 9 + [0.5]))
    assert np.abs(scale.whitening[9]).max() ** 2 * 10 <= 1.1 / 0.5**2

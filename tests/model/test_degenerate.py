"""Discrete, constant and heavy-tailed inputs, which must not take over the score."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from features.declaration import FeatureSpec
from model import fitting, whitening
from model.dataset import DataError
from model.network import FLOAT32_MAX


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


def numbers(k: int, scale: str = "linear") -> FeatureSpec:
    features = [{"name": f"x{i}", "kind": "number"} for i in range(k)]
    return FeatureSpec.from_json(
        {"features": [{**f, "scale": "log"} if scale == "log" else f for f in features]}
    )


def fitted(rows: np.ndarray, spec: FeatureSpec) -> fitting.Fitted:
    rows = rows.astype(np.float32)
    with warnings.catch_warnings(action="error"):
        return fitting.fit(rows, rows[:100], fitting.TrainingOptions(epochs=1), progress=False, spec=spec)


def extreme(k: int) -> np.ndarray:
    values = [0, 1, -1, 1e-45, 1e-20, 1e6, 1e30, -1e30, FLOAT32_MAX, -FLOAT32_MAX]
    return np.random.default_rng(1).choice(values, (300, k)).astype(np.float32)


def corrupt(rng: np.random.Generator, k: int, value: float) -> np.ndarray:
    """Normal rows, one of which has a value far outside."""
    rows = rng.normal(size=(1000, k))
    rows[7, 0] = value
    return rows


TABLES = {
    "heavy tails": lambda rng, k: np.clip(rng.standard_cauchy((1000, k)) ** 9, -3e38, 3e38),
    "one corrupt row": lambda rng, k: corrupt(rng, k, 1e30),
    "one corrupt row, milder": lambda rng, k: corrupt(rng, k, 1e7),
}


@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("table", TABLES)
def test_a_core_that_few_rows_hide_gives_finite_scores(table, k):
    rows = TABLES[table](np.random.default_rng(0), k)
    network = fitted(rows, numbers(k)).network
    with torch.no_grad():
        for part in (rows.astype(np.float32), extreme(k)):
            score, _, contributions = network.score(torch.from_numpy(part))
            assert torch.isfinite(score).all()
            torch.testing.assert_close(contributions.sum(1), score, rtol=1e-4, atol=0)


def test_a_corrupt_row_does_not_blind_the_score_to_its_feature():
    """All other rows lie within a ten-millionth of its deviation."""
    network = fitted(corrupt(np.random.default_rng(0), 1, 1e7), numbers(1)).network
    with torch.no_grad():
        low, high = network.score(torch.tensor([[1.0], [30.0]]))[0].tolist()
    assert high > 10 * low


@pytest.mark.parametrize("unit", [1e-20, 1e-30])
@pytest.mark.parametrize("k", [1, 3])
def test_amounts_in_a_unit_too_large_for_their_logarithm_give_finite_scores(unit, k):
    rows = np.random.default_rng(0).random((400, k)) * unit
    network = fitted(rows, numbers(k, "log")).network
    with torch.no_grad():
        assert torch.isfinite(network.score(torch.from_numpy(rows.astype(np.float32)))[0]).all()
        assert torch.isfinite(network.score(torch.from_numpy(extreme(k)))[0]).all()


def test_rows_that_all_score_zero_are_not_compared():
    """Nothing lies a multiple of 0 above the gate: the score of any other row would be 0 as well, or NaN."""
    network = fitted(-np.random.default_rng(0).lognormal(size=(400, 2)), numbers(2, "log")).network
    assert network.gate == float("inf")


def test_a_table_of_constants_is_refused():
    with pytest.raises(DataError, match="a feature in the score varies, got 400 in which all are constant"):
        fitted(np.full((400, 2), 0.1), numbers(2))

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.ulb import FEATURES, TIME_INDEX
from model.explain import top_features


def test_top_features_of_literal_contributions():
    indices, values = top_features(np.array([[1.0, 5.0, 3.0, 4.0], [0.0, 0.0, 2.0, 0.0]], np.float32), k=2)
    assert indices.tolist() == [[1, 3], [2, 0]]
    assert values.tolist() == [[5.0, 4.0], [2.0, 0.0]]
    assert values.dtype == np.float64


def test_no_rows_give_no_features():
    indices, values = top_features(np.empty((0, 30), np.float32))
    assert indices.shape == values.shape == (0, 3)


@pytest.mark.parametrize("n", [10, 500])  # few rows are sorted in another way
@pytest.mark.parametrize("k", [1, 3, 30])
def test_top_features_are_those_of_a_stable_sort(k, n):
    random = np.random.default_rng(5)
    rows = random.exponential(size=(500, 30)).astype(np.float32) ** 4
    rows[100:200] = rows[100:200].round()  # with ties, zeros among them
    rows[200] = np.finfo(np.float32).max
    rows[201] = np.finfo(np.float32).smallest_subnormal
    rows = rows[195:][:n] if n < 500 else rows
    assert len(rows) == n
    indices, values = top_features(rows, k)
    assert indices.tolist() == np.argsort(-rows, axis=1, kind="stable")[:, :k].tolist()
    assert values.tolist() == np.take_along_axis(rows, indices, axis=1).tolist()


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ([1.0, np.inf, 3.0, np.inf], [1, 3, 2, 0]),
        ([-0.0, 0.0, -0.0, 0.0], [0, 1, 2, 3]),
        ([-1.0, -2.0, -3.0, 0.5], [3, 0, 1, 2]),
        ([-np.inf, 2.0, -2.0, 2.0], [1, 3, 2, 0]),
    ],
)
def test_what_this_model_never_answers_is_sorted_all_the_same(row, first):
    """Infinite and negative contributions, beside rows of the ordinary kind."""
    for n in (1, 40):
        indices, values = top_features(np.array([row, *[[0.0, 1.0, 3.0, 2.0]] * n], np.float32), k=4)
        assert indices.tolist() == [first, *[[2, 3, 1, 0]] * n]
        assert values.tolist() == [[row[i] for i in first], *[[3.0, 2.0, 1.0, 0.0]] * n]


@pytest.mark.parametrize(
    ("shape", "k", "text"), [((4,), 1, "matrix"), ((2, 4), 0, "between"), ((2, 4), 5, "between")]
)
def test_wrong_arguments_are_named(shape, k, text):
    with pytest.raises(ValueError, match=text):
        top_features(np.zeros(shape), k)


@pytest.mark.parametrize("feature", [i for i in range(30) if i != TIME_INDEX])
def test_a_planted_outlier_is_the_first_explanation(module, network, normals, feature):
    """20 standard deviations in one feature; the amount, which scores on a log scale, is made 1000-fold."""
    with torch.no_grad():
        plain = module.score(torch.from_numpy(normals))[0].numpy()
    rows = normals[np.argsort(plain)[: len(plain) // 2]][:100].copy()
    sd = network.std.numpy()[feature]
    rows[:, feature] = (
        (rows[:, feature] + 1) * 1000 if FEATURES[feature] == "Amount" else rows[:, feature] + 20 * sd
    )
    with torch.no_grad():
        score, _, contributions = module.score(torch.from_numpy(rows))
    indices, values = top_features(contributions.numpy())
    assert (indices[:, 0] == feature).mean() >= 0.95
    assert (values[:, 0] <= score.numpy() * (1 + 1e-6)).all()

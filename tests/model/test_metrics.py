from __future__ import annotations

import numpy as np
import pytest

from model import metrics


def test_weights_bring_normals_to_the_prevalence():
    labels = np.array([1, 1, 0, 0, 0])
    weights = metrics.prevalence_weights(labels, 0.01)
    assert weights[labels == 1].tolist() == [1.0, 1.0]
    assert weights[labels == 1].sum() / weights.sum() == pytest.approx(0.01)


def test_the_true_prevalence_is_that_of_the_readme_of_the_data():
    labels = np.array([1] * 284 + [0] * 43_106)
    weight = metrics.prevalence_weights(labels)[-1]
    assert weight == pytest.approx((284_315 * 284 / 492) / 43_106)


def test_figures_equal_those_of_the_population_written_out():
    """Weights must do what repeating every normal would."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    labels = np.array([1] * 20 + [0] * 100)
    scores = rng.normal(size=120) + 2.0 * labels
    repeat = 7
    full = np.concatenate([np.arange(20), np.repeat(np.arange(20, 120), repeat)])
    prevalence = 20 / len(full)
    got = metrics.figures(scores, labels, prevalence, shares=(0.05,))
    assert got["average_precision"] == pytest.approx(average_precision_score(labels[full], scores[full]))
    assert got["auroc"] == pytest.approx(roc_auc_score(labels[full], scores[full]))
    alerts = full[np.argsort(-scores[full], kind="stable")[: round(0.05 * len(full))]]
    assert got["recall_at"]["0.05"] == pytest.approx(labels[alerts].sum() / 20)
    assert got["precision_at"]["0.05"] == pytest.approx(labels[alerts].mean())


def test_ties_at_the_limit_count_in_part():
    labels = np.array([1, 0, 1, 0])
    recall, precision = metrics.alerts_at(np.array([2.0, 1.0, 1.0, 0.0]), labels, 0.5, prevalence=0.5)
    assert recall == pytest.approx(0.75)
    assert precision == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("labels", "prevalence"), [([0, 0], 0.1), ([1, 1], 0.1), ([0, 1], 0.0), ([0, 1], 1.0)]
)
def test_impossible_figures_are_refused(labels, prevalence):
    with pytest.raises(ValueError, match=r"frauds and normals|prevalence"):
        metrics.prevalence_weights(labels, prevalence)

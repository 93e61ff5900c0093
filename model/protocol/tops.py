"""The normals with the highest scores of a split: what they cost, and by which features they stand there."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model import baselines, data, metrics
from model.explain import top_features

TOP_NORMALS: Final = 5
NEIGHBOURS: Final = 5
USUAL: Final = (0.05, 0.95)
"""Quantiles of the training normals between which a value is usual."""

Numbers = npt.NDArray[np.intp]


def top_normals(
    dataset: data.Dataset,
    judged: Numbers,
    train: Numbers,
    scores: npt.NDArray[np.float64],
    contributions: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    prevalence: float,
) -> list[dict[str, Any]]:
    """Describes the normals with the highest scores, as JSON values.

    Args:
      dataset: encoded as the network was trained.
      judged: rows of the dataset that were scored, [m].
      train: normals that the network was trained on.
      scores: of the judged rows, [m].
      contributions: to the scores, [m, k].
      labels: of the judged rows, [m].
      prevalence: share of frauds that the figures are weighted to.

    Returns:
      One dictionary a normal: its row number in the source, its place among the judged rows, the share of
      frauds below it, the average precision that it costs, its leading features, and the share of frauds
      among the rows that are nearest to it in the whole data.
    """
    # scikit-learn is needed to judge, not to score.
    from sklearn.metrics import average_precision_score

    order = np.argsort(-scores, kind="stable")
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(1, len(order) + 1)
    highest = order[labels[order] == 0][:TOP_NORMALS]
    # Without a normal, the others keep their weights: the difference is what this one costs.
    weights = metrics.prevalence_weights(labels, prevalence)
    precision = average_precision_score(labels, scores, sample_weight=weights)
    usual = np.quantile(dataset.features[train], USUAL, axis=0)
    prepared = baselines.standardiser(dataset.features[train], dataset.spec)(dataset.features)
    leading, values = top_features(contributions[highest], min(3, contributions.shape[1]))
    frauds = scores[labels == 1]
    described = []
    for i, features, shares in zip(highest, leading, values, strict=True):
        row, others = judged[i], np.arange(len(scores)) != i
        without = average_precision_score(labels[others], scores[others], sample_weight=weights[others])
        distances = np.square(prepared - prepared[row]).sum(axis=1)
        distances[row] = np.inf
        nearest = np.argsort(distances, kind="stable")[:NEIGHBOURS]
        described.append(
            {
                "row": int(row if dataset.numbers is None else dataset.numbers[row]),
                "place": int(place[i]),
                "score": float(scores[i]),
                "frauds_below": float((frauds < scores[i]).mean()),
                "costs": float(without - precision),
                "features": [
                    {
                        "name": dataset.spec.inputs[j],
                        "value": _value(dataset, int(row), int(j)),
                        "share": float(share / scores[i]) if scores[i] > 0 else 0.0,
                        "usual": [float(bound) for bound in usual[:, j]],
                    }
                    for j, share in zip(features, shares, strict=True)
                ],
                "frauds_nearest": float((~dataset.is_normal[nearest]).mean()),
            }
        )
    return described


def _value(dataset: data.Dataset, row: int, j: int) -> float | str:
    """Returns the value of an input: the text of a category, otherwise the number that the network sees."""
    feature = dataset.spec.features[dataset.spec.groups[j]]
    column = dataset.columns.get(feature.source) if feature.kind == "category" else None
    return float(dataset.features[row, j]) if column is None else str(column[row].as_py())

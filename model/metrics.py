"""Figures of a score on labelled transactions, at a stated prevalence of fraud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.declaration import FeatureSpec
from features.default import ULB

Floats = npt.NDArray[np.float64]

TRUE_PREVALENCE: Final = 492 / 284_807
"""Share of frauds in the full ULB data, 0.173 %."""
ALERT_SHARES: Final = (0.001, 0.005, 0.01)
"""Alert budgets, as shares of all transactions."""


def usual_prevalence(spec: FeatureSpec, labels: npt.ArrayLike) -> float:
    """Returns the share of frauds for which figures are given: that of the labels, for ULB TRUE_PREVALENCE.

    Samples of the ULB data that people have keep more frauds than normals. Other data is taken as it is.
    """
    return TRUE_PREVALENCE if spec == ULB else float(np.mean(np.asarray(labels)))


def prevalence_weights(labels: npt.ArrayLike, prevalence: float = TRUE_PREVALENCE) -> Floats:
    """Computes weights [n] under which frauds are `prevalence` of all: 1 for a fraud, one weight for normals.

    >>> prevalence_weights([1, 0, 0], prevalence=0.1).round(3).tolist()
    [1.0, 4.5, 4.5]

    Raises:
      ValueError: there is no fraud or no normal, or the prevalence is not between 0 and 1.
    """
    is_fraud = np.asarray(labels) == 1
    n_fraud, n_normal = int(is_fraud.sum()), int((~is_fraud).sum())
    if not n_fraud or not n_normal:
        raise ValueError(f"figures need frauds and normals, got {n_fraud} frauds and {n_normal} normals")
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence must lie between 0 and 1, got {prevalence}")
    return np.where(is_fraud, 1.0, n_fraud * (1 - prevalence) / prevalence / n_normal)


def alerts_at(
    scores: npt.ArrayLike, labels: npt.ArrayLike, share: float, prevalence: float = TRUE_PREVALENCE
) -> tuple[float, float]:
    """Computes recall and precision when the `share` highest of all transactions are alerts.

    >>> alerts_at([0.9, 0.8, 0.2, 0.1], [1, 0, 1, 0], share=0.25, prevalence=0.5)
    (0.5, 1.0)

    Transactions count by their weights at `prevalence`. Those that tie at the limit, and the one that crosses
    it, count in part, so that the budget is met exactly.
    """
    weights = prevalence_weights(labels, prevalence)
    is_fraud = np.asarray(labels) == 1
    values, group = np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)
    total = np.bincount(group, weights, len(values))
    frauds = np.bincount(group, weights * is_fraud, len(values))
    budget = share * total.sum()
    before = np.cumsum(total) - total
    taken = np.clip((budget - before) / total, 0.0, 1.0)
    caught = float((taken * frauds).sum())
    return caught / float(frauds.sum()), caught / float(budget)


def figures(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    prevalence: float = TRUE_PREVALENCE,
    shares: Sequence[float] = ALERT_SHARES,
) -> dict[str, Any]:
    """Computes AUROC, average precision, and recall and precision at alert budgets, as JSON values.

    Args:
      scores: [n], higher is more anomalous.
      labels: [n], 1 for a fraud.
      prevalence: normals are weighted so that frauds have this share.
      shares: alert budgets as shares of all transactions.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    weights = prevalence_weights(labels, prevalence)
    at = {f"{share:g}": alerts_at(scores, labels, share, prevalence) for share in shares}
    return {
        "average_precision": float(average_precision_score(labels, scores, sample_weight=weights)),
        "auroc": float(roc_auc_score(labels, scores)),
        "recall_at": {share: recall for share, (recall, _) in at.items()},
        "precision_at": {share: precision for share, (_, precision) in at.items()},
    }

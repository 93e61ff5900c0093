"""The picture of an evaluation: score histogram, precision and recall, recall by alert budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.writing import writing
from model.metrics import alerts_at, prevalence_weights
from model.outputs import ANOMALY_SCORE

Scores = npt.NDArray[np.float64]


def evaluation_picture(
    path: Path,
    scores: Mapping[str, Scores],
    labels: npt.NDArray[np.int8],
    thresholds: Mapping[str, float],
    prevalence: float,
    title: str,
) -> None:
    """Writes a PNG with three panels.

    Args:
      path: where to.
      scores: per score its values [n]; the model's own is drawn first and thickest.
      labels: [n], 1 for a fraud.
      thresholds: severity -> threshold of the model's score, drawn into the histogram.
      prevalence: share of frauds that precision and alert budgets refer to.
      title: says which rows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    _histogram(left, scores[ANOMALY_SCORE], labels, thresholds)
    for i, (name, values) in enumerate(scores.items()):
        style = {
            "color": f"C{i % 10}",  # ten there are
            "linestyle": ("-", "--")[i // 10 % 2],
            "linewidth": 2.5 if name == ANOMALY_SCORE else 1.0,
            "label": name,
        }
        _precision_recall(middle, values, labels, prevalence, style)
        _recall_by_budget(right, values, labels, prevalence, style)
    middle.set(xlabel="recall", ylabel="precision", title="Precision and recall", ylim=(0, 1.02))
    right.set(
        xlabel="alerts, share of all transactions",
        ylabel="recall",
        title="Recall by alert budget",
        xscale="log",
        ylim=(0, 1.02),
    )
    right.legend(fontsize="small")
    figure.suptitle(title)
    with writing(path, "--png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    plt.close(figure)


def _histogram(
    axes: Any, scores: Scores, labels: npt.NDArray[np.int8], thresholds: Mapping[str, float]
) -> None:
    positive = np.maximum(scores, 1e-6)
    bins = np.geomspace(positive.min(), positive.max() * 1.001, 80)
    for label, name in ((0, "normal"), (1, "fraud")):
        values = positive[labels == label]
        axes.hist(values, bins, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=name)
    for i, (severity, threshold) in enumerate(thresholds.items()):
        axes.axvline(threshold, color="black", linestyle=("--", ":")[i % 2], label=f"threshold {severity}")
    axes.set(
        xscale="log", yscale="log", xlabel=ANOMALY_SCORE, ylabel="share of the class", title="Score by class"
    )
    axes.legend(fontsize="small")


def _precision_recall(
    axes: Any, scores: Scores, labels: npt.NDArray[np.int8], prevalence: float, style: dict[str, Any]
) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(
        labels, scores, sample_weight=prevalence_weights(labels, prevalence)
    )
    axes.step(recall, precision, where="post", **style)


def _recall_by_budget(
    axes: Any, scores: Scores, labels: npt.NDArray[np.int8], prevalence: float, style: dict[str, Any]
) -> None:
    shares = np.geomspace(1e-4, 0.1, 60)
    axes.plot(shares, [alerts_at(scores, labels, share, prevalence)[0] for share in shares], **style)

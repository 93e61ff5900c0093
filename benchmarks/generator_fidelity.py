"""Compares the synthetic transactions with the real ones: the figures of docs/publisher.md.

    python -m benchmarks.generator_fidelity --data ulb_transactions.parquet

It needs the `train` extra (SciPy, scikit-learn).

Marginals and correlations of both classes are compared. A detector (a robust covariance on V1..V28 and the
logarithm of the amount) is trained on one kind of normals and judged on the other: what can be learnt from
the real data should be there in the synthetic data, and as hard to learn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.generator_estimate import read_ulb, thin_first_hours
from common.command import command
from features.ulb import AMOUNT_INDEX, FEATURES, TIME_INDEX
from model.synthetic.parameters import load

Floats = npt.NDArray[np.float64]

_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_PREVALENCE: Final = 492 / 284_807
_TRAINING_ROWS: Final = 5_000


@dataclass(frozen=True)
class Distance:
    """Between real and synthetic rows of one class.

    Attributes:
      largest_ks: the largest Kolmogorov-Smirnov distance of a feature, and `ks_feature`, which that is.
      mean_ks: the mean over the 30 features.
      quantiles: for each of the probabilities 5 %, 25 %, 50 %, 75 % and 95 %, the largest difference of a
        feature's quantiles, in interquartile ranges.
      largest_rank_correlation: the largest difference of two Spearman correlations.
      mean_rank_correlation: the mean difference over all pairs.
    """

    largest_ks: float
    ks_feature: str
    mean_ks: float
    quantiles: dict[str, float]
    largest_rank_correlation: float
    mean_rank_correlation: float


@dataclass(frozen=True)
class Detection:
    """Measures the ranking of frauds above normals by a detector, at the real prevalence of 0.173 %."""

    auroc: float
    average_precision: float


def distance(real: Floats, synthetic: Floats) -> Distance:
    """The distance between rows [n, 30] and [m, 30] of the same class."""
    from scipy.stats import ks_2samp, spearmanr

    ks = np.array([ks_2samp(a, b).statistic for a, b in zip(real.T, synthetic.T, strict=True)])
    spread = np.quantile(real, 0.75, axis=0) - np.quantile(real, 0.25, axis=0)
    quantiles = {
        f"{q:.0%}": float(
            (np.abs(np.quantile(real, q, axis=0) - np.quantile(synthetic, q, axis=0)) / spread).max()
        )
        for q in _QUANTILES
    }
    ranks = np.abs(spearmanr(real).statistic - spearmanr(synthetic).statistic)
    pairs = ranks[np.triu_indices(len(FEATURES), 1)]
    return Distance(
        float(ks.max()),
        FEATURES[int(ks.argmax())],
        float(ks.mean()),
        quantiles,
        float(pairs.max()),
        float(pairs.mean()),
    )


class RobustDetector:
    """Mahalanobis distance by the minimum covariance determinant of normals [n, 30]."""

    def __init__(self, normals: Floats) -> None:
        from sklearn.covariance import MinCovDet

        training = self._prepare(normals[:_TRAINING_ROWS])
        self._covariance = MinCovDet(support_fraction=0.9, random_state=0).fit(training)

    def judge(self, normals: Floats, frauds: Floats) -> Detection:
        """AUROC and average precision on normals [n, 30] and frauds [m, 30] that were not trained on."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        scores = self._covariance.mahalanobis(self._prepare(np.vstack([normals, frauds])))
        labels = np.repeat([0, 1], [len(normals), len(frauds)])
        odds = len(frauds) * (1 - _PREVALENCE) / _PREVALENCE / len(normals)
        weights = np.where(labels == 1, 1.0, odds)
        return Detection(
            float(roc_auc_score(labels, scores)),
            float(average_precision_score(labels, scores, sample_weight=weights)),
        )

    @staticmethod
    def _prepare(features: Floats) -> Floats:
        prepared = np.delete(features, TIME_INDEX, axis=1)
        prepared[:, AMOUNT_INDEX - 1] = np.log1p(prepared[:, AMOUNT_INDEX - 1])
        return prepared


@dataclass(frozen=True)
class Fidelity:
    """All figures. `detection` is keyed "trained on -> judged on"."""

    normal: Distance
    fraud: Distance
    detection: dict[str, Detection]


def measure(features: Floats, labels: npt.NDArray[np.integer[Any]], seed: int = 0) -> Fidelity:
    """Compare real `features` [n, 30] with `labels` [n] (1: fraud) to synthetic ones drawn with `seed`."""
    rng = np.random.default_rng(seed)
    normals = rng.permutation(thin_first_hours(features[labels == 0], np.random.default_rng(0)))
    frauds = features[labels == 1]
    parameters = load()
    synthetic = parameters.normal.draw(parameters.normal.draw_times(rng.random(len(normals))), rng)
    synthetic_frauds = parameters.draw_frauds(parameters.fraud.draw_times(rng.random(20 * len(frauds))), rng)
    half = len(normals) // 2
    sets = {
        "real": (normals[:half], normals[half:], frauds),
        "synthetic": (synthetic[:half], synthetic[half:], synthetic_frauds),
    }
    detection = {}
    for trained_on, (training, _, _) in sets.items():
        detector = RobustDetector(training)
        for judged_on, (_, held_out, positives) in sets.items():
            detection[f"{trained_on} -> {judged_on}"] = detector.judge(held_out, positives)
    return Fidelity(distance(normals, synthetic), distance(frauds, synthetic_frauds), detection)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generator_fidelity",
        description="Compare the synthetic transactions with the real ones.",
        epilog="Example: python -m benchmarks.generator_fidelity --data ulb_transactions.parquet",
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file: the 30 features and Class")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    fidelity = measure(*read_ulb(options.data))
    if options.format == "json":
        print(json.dumps(asdict(fidelity)))
        return 0
    for name, gap in (("normal", fidelity.normal), ("fraud", fidelity.fraud)):
        quantiles = ", ".join(f"{q} {value:.3f}" for q, value in gap.quantiles.items())
        largest_ks = f"largest {gap.largest_ks:.3f} ({gap.ks_feature})"
        print(f"{name:7} Kolmogorov-Smirnov distance: mean {gap.mean_ks:.3f}, {largest_ks}")
        print(f"{name:7} largest difference of quantiles, in interquartile ranges: {quantiles}")
        mean, largest = gap.mean_rank_correlation, gap.largest_rank_correlation
        print(f"{name:7} difference of rank correlations: mean {mean:.3f}, largest {largest:.3f}")
    for name, result in fidelity.detection.items():
        print(f"{name:24} AUROC {result.auroc:.3f}, average precision {result.average_precision:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

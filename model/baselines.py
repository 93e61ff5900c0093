"""Scores to compare with: classical detectors, fitted to the same normal transactions.

All take the inputs of the score, on a log scale where the feature spec says so, standardised.
The score of this project was chosen with labels, and so is the setting that matters most in a baseline: by
labelled rows that are neither fitted nor judged.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.declaration import FeatureSpec
from features.default import ULB
from model import metrics
from model.threads import one_thread

Rows = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Detector = Callable[[Scores, Scores, int], Scores]
"""Fits to prepared training rows [n, k] and scores prepared rows [m, k], with a seed; [m]."""


class Labelled(NamedTuple):
    """Labelled rows that choose the settings of the baselines: raw inputs, labels."""

    rows: Rows
    labels: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Tuned:
    """A detector with a setting to choose.

    Attributes:
      setting: its name.
      values: the first is taken where nothing can choose.
      fit_and_score: a Detector that also takes a value of the setting.
    """

    setting: str
    values: tuple[Any, ...]
    fit_and_score: Callable[[Scores, Scores, int, Any], Scores]

    def __call__(self, train: Scores, rows: Scores, seed: int) -> Scores:
        """Scores with the first value, as a Detector."""
        return self.fit_and_score(train, rows, seed, self.values[0])

    def choose(
        self, train: Scores, rows: Scores, seed: int, chooser: Scores, labels: npt.NDArray[np.int8]
    ) -> tuple[Scores, Any]:
        """Scores with the value of the highest average precision on other rows; scores and value."""
        tried = []
        for value in self.values:
            scores = self.fit_and_score(train, np.concatenate([chooser, rows]), seed, value)
            precision = metrics.figures(scores[: len(chooser)], labels)["average_precision"]
            tried.append((precision, scores[len(chooser) :], value))
        _, scores, value = max(tried, key=lambda entry: entry[0])
        return scores, value


def _isolation_forest(train: Scores, rows: Scores, seed: int, max_samples: int) -> Scores:
    from sklearn.ensemble import IsolationForest

    size = min(max_samples, len(train))
    forest = IsolationForest(n_estimators=200, max_samples=size, random_state=seed)
    return -forest.fit(train).score_samples(rows)


def _pca(train: Scores, rows: Scores, seed: int, n_components: int) -> Scores:
    """Squared reconstruction error."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(n_components, train.shape[1] - 1), random_state=seed).fit(train)
    return np.square(rows - pca.inverse_transform(pca.transform(rows))).sum(axis=1)


def _mahalanobis(train: Scores, rows: Scores, seed: int) -> Scores:
    from sklearn.covariance import EmpiricalCovariance

    return EmpiricalCovariance().fit(train).mahalanobis(rows)


def _mcd(train: Scores, rows: Scores, seed: int, support_fraction: float) -> Scores:
    from sklearn.covariance import MinCovDet

    return MinCovDet(support_fraction=support_fraction, random_state=seed).fit(train).mahalanobis(rows)


def gaussian_mixture(train: Scores, rows: Scores, seed: int, n_components: int) -> Scores:
    """Scores by the negative log-likelihood under a mixture that is fitted to `train`."""
    from sklearn.mixture import GaussianMixture

    return -GaussianMixture(n_components, reg_covar=1e-4, random_state=seed).fit(train).score_samples(rows)


def _hbos(train: Scores, rows: Scores, seed: int, n_bins: int) -> Scores:
    from pyod.models.hbos import HBOS

    return np.asarray(HBOS(n_bins).fit(train).decision_function(rows))


def _ecod(train: Scores, rows: Scores, seed: int) -> Scores:
    from pyod.models.ecod import ECOD

    return np.asarray(ECOD().fit(train).decision_function(rows))


QUICK: tuple[tuple[str, Detector], ...] = (
    ("isolation forest", Tuned("max_samples", (256, 4096), _isolation_forest)),
    ("PCA", Tuned("n_components", (10, 5, 15, 20, 25), _pca)),
)
"""The baselines of a training."""
SLOW: tuple[tuple[str, Detector], ...] = (
    ("Mahalanobis", _mahalanobis),
    ("Gaussian mixture", Tuned("n_components", (20, 10, 40), gaussian_mixture)),
    ("MCD", Tuned("support_fraction", (0.99, 0.9, 0.95, 0.98, 0.995), _mcd)),
)
PYOD: tuple[tuple[str, Detector], ...] = (("HBOS", Tuned("n_bins", (10, 50), _hbos)), ("ECOD", _ecod))


def available(quick: bool = False) -> tuple[tuple[str, Detector], ...]:
    """Lists the detectors that can run here; those of PyOD need the extra `evaluate`."""
    if quick:
        return QUICK
    return QUICK + SLOW + (PYOD if importlib.util.find_spec("pyod") else ())


class Baselines(NamedTuple):
    """Results of the baselines.

    Attributes:
      scores: [m] by name.
      left_out: the reason of each detector that cannot run on this data. It must not cost the model.
      chosen: the settings that the labelled rows chose, by name.
    """

    scores: dict[str, Scores]
    left_out: dict[str, str]
    chosen: dict[str, dict[str, Any]]


@one_thread()
def scores(
    train: Rows,
    rows: Rows,
    detectors: Iterable[tuple[str, Detector]],
    seed: int = 0,
    chooser: Labelled | None = None,
    spec: FeatureSpec = ULB,
) -> Baselines:
    """Scores raw inputs `rows` [m, k] by each detector, fitted to the normals `train` [n, k].

    Args:
      train: normal transactions.
      rows: transactions to score.
      detectors: the baselines, from `available`.
      seed: of the detectors.
      chooser: chooses the settings; without it, or where it has one class only, the first value is taken.
      spec: of the inputs.
    """
    standardised = standardiser(train, spec)
    fitted, prepared = standardised(train), standardised(rows)
    can_choose = chooser is not None and 0 < chooser.labels.sum() < len(chooser.labels)
    results = Baselines({}, {}, {})
    for name, detector in detectors:
        try:
            if can_choose and chooser is not None and isinstance(detector, Tuned):
                choosing = standardised(chooser.rows)
                values, value = detector.choose(fitted, prepared, seed, choosing, chooser.labels)
                results.chosen[name] = {detector.setting: value}
            else:
                values = detector(fitted, prepared, seed)
            if not np.isfinite(values).all():
                raise ValueError("its scores are not finite")
            results.scores[name] = values
        except Exception as error:
            results.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return results


def standardiser(train: Rows, spec: FeatureSpec) -> Callable[[Rows], Scores]:
    """Makes the function that prepares raw inputs [m, k]: those of the score, standardised as in `train`."""
    raw = _prepare(train, spec)
    mean, std = raw.mean(axis=0), raw.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return lambda part: (_prepare(part, spec) - mean) / std


def _prepare(rows: Rows, spec: FeatureSpec) -> Scores:
    wide, is_log = rows.astype(np.float64), np.array(spec.is_log)
    wide[:, is_log] = np.log1p(np.maximum(wide[:, is_log], 0.0))
    return wide[:, np.array(spec.is_scored)]

"""Scores to compare with: classical detectors, fitted to the same normal transactions.

All take the features of a common preparation: Time left out, the amount on a log scale, standardised.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from model.features import AMOUNT_INDEX, TIME_INDEX
from model.threads import one_thread

Rows = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Detector = Callable[[Scores, Scores, int], Scores]
"""Fits to prepared training rows [n, 29] and scores prepared rows [m, 29], with a seed; [m]."""


def _isolation_forest(train: Scores, rows: Scores, seed: int) -> Scores:
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(n_estimators=200, random_state=seed).fit(train).score_samples(rows)


def _pca(train: Scores, rows: Scores, seed: int) -> Scores:
    """Squared reconstruction error with 10 components."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=10, random_state=seed).fit(train)
    return np.square(rows - pca.inverse_transform(pca.transform(rows))).sum(axis=1)


def _mahalanobis(train: Scores, rows: Scores, seed: int) -> Scores:
    from sklearn.covariance import EmpiricalCovariance

    return EmpiricalCovariance().fit(train).mahalanobis(rows)


def _mcd(train: Scores, rows: Scores, seed: int) -> Scores:
    from sklearn.covariance import MinCovDet

    return MinCovDet(support_fraction=0.9, random_state=seed).fit(train).mahalanobis(rows)


def _gaussian_mixture(train: Scores, rows: Scores, seed: int) -> Scores:
    from sklearn.mixture import GaussianMixture

    return -GaussianMixture(20, reg_covar=1e-4, random_state=seed).fit(train).score_samples(rows)


def _hbos(train: Scores, rows: Scores, seed: int) -> Scores:
    from pyod.models.hbos import HBOS

    return np.asarray(HBOS().fit(train).decision_function(rows))


def _ecod(train: Scores, rows: Scores, seed: int) -> Scores:
    from pyod.models.ecod import ECOD

    return np.asarray(ECOD().fit(train).decision_function(rows))


QUICK: tuple[tuple[str, Detector], ...] = (("isolation forest", _isolation_forest), ("PCA", _pca))
"""The baselines of a training."""
SLOW: tuple[tuple[str, Detector], ...] = (
    ("Mahalanobis", _mahalanobis),
    ("Gaussian mixture", _gaussian_mixture),
    ("MCD", _mcd),
)
PYOD: tuple[tuple[str, Detector], ...] = (("HBOS", _hbos), ("ECOD", _ecod))


def available(quick: bool = False) -> tuple[tuple[str, Detector], ...]:
    """Lists the detectors that can run here; those of PyOD need the extra `evaluate`."""
    if quick:
        return QUICK
    return QUICK + SLOW + (PYOD if importlib.util.find_spec("pyod") else ())


@one_thread()
def scores(
    train: Rows, rows: Rows, detectors: Iterable[tuple[str, Detector]], seed: int = 0
) -> tuple[dict[str, Scores], dict[str, str]]:
    """Scores raw features `rows` [m, 30] by each detector, fitted to the normals `train` [n, 30].

    Returns:
      scores: [m] by name.
      left_out: the reason of each detector that cannot run on this data. It must not cost the model.
    """
    fitted, prepared = _prepare(train), _prepare(rows)
    mean, std = fitted.mean(axis=0), fitted.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    fitted, prepared = (fitted - mean) / std, (prepared - mean) / std
    done: dict[str, Scores] = {}
    left_out: dict[str, str] = {}
    for name, detector in detectors:
        try:
            values = detector(fitted, prepared, seed)
            if not np.isfinite(values).all():
                raise ValueError("its scores are not finite")
            done[name] = values
        except Exception as error:
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return done, left_out


def _prepare(rows: Rows) -> Scores:
    wide = rows.astype(np.float64)
    wide[:, AMOUNT_INDEX] = np.log1p(np.maximum(wide[:, AMOUNT_INDEX], 0.0))
    return np.delete(wide, TIME_INDEX, axis=1)

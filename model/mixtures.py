"""Gaussian mixtures of unusual normals: how rare a row is among them.

Fitted in training with scikit-learn; the network applies them as buffers, to rows above its gate.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.whitening import RESOLUTION

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SHARE: Final = 0.2
"""Share of the training rows, those that the network reconstructs worst, that the mixtures are fitted to. In
those of all rows most components describe ordinary ones, and few are left for rows far out."""
FIT_ROWS: Final = 10_000
"""At most this many of these rows, drawn at random: the time of the fits grows with them."""
MIXTURES: Final = 8
"""Their mean varies less than one, whose components depend on where its fit began."""
COMPONENTS: Final = 10
ROWS_A_COMPONENT: Final = 2
"""At least this many rows for each column and component; of fewer rows, there are fewer components."""
RIDGE: Final = 1e-4
"""Added to the variances of columns of variance 1: a component of few rows has no width of its own."""


@dataclass(frozen=True)
class Mixtures:
    """m mixtures of c components of k columns.

    The log density of a row u under a component is its entry in logs, minus the squared length of its k rows
    of whitening @ u + offset.

    Attributes:
      whitening: [m * c * k, k].
      offset: [m * c * k].
      logs: [m, c].
      usual: the median rarity of the rows that they were fitted to: their mean negative log density.
    """

    whitening: Matrix
    offset: Matrix
    logs: Matrix
    usual: float


def fit(inputs: Matrix, residuals: Matrix, is_discrete: Mask, seed: int) -> Mixtures:
    """Fits mixtures to the inputs of the rows with the largest squared residuals, in their deviations.

    Constant columns do not count, nor discrete ones: within a component, their variance would be that of the
    ridge alone, and any other value would be as rare as can be.

    Args:
      inputs: [n, k].
      residuals: [n, k], of the same rows.
      is_discrete: bool [k].
      seed: of the places where the fits begin.
    """
    # scikit-learn is needed to train, not to score.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    k = inputs.shape[1]
    scale = residuals.std(axis=0)
    lengths = np.square((residuals - residuals.mean(axis=0)) / np.where(scale > 0, scale, 1.0)).sum(axis=1)
    rows = inputs[np.argsort(lengths)[-math.ceil(SHARE * len(inputs)) :]]
    if len(rows) > FIT_ROWS:
        rows = rows[np.random.default_rng(seed).choice(len(rows), FIT_ROWS, replace=False)]
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    columns = np.flatnonzero((spread > RESOLUTION) & ~is_discrete)
    mean, spread = mean[columns], spread[columns]
    values = (rows[:, columns] - mean) / spread
    count = max(1, min(COMPONENTS, len(rows) // max(1, ROWS_A_COMPONENT * len(columns))))
    whitening, offset = np.zeros((MIXTURES, count, k, k)), np.zeros((MIXTURES, count, k))
    logs, rarity = np.zeros((MIXTURES, count)), np.zeros(len(rows))
    for i in range(MIXTURES if len(columns) and len(rows) > 1 else 0):
        mixture = GaussianMixture(count, reg_covar=RIDGE, random_state=seed + i)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            mixture.fit(values)
        rarity -= mixture.score_samples(values) / MIXTURES
        # The half is that of the density's exponent.
        factors = np.swapaxes(mixture.precisions_cholesky_, 1, 2) * math.sqrt(0.5)
        scaled = factors / spread
        whitening[i][np.ix_(np.arange(count), columns, columns)] = scaled
        offset[i][:, columns] = -scaled @ mean - (factors @ mixture.means_[:, :, None])[:, :, 0]
        widths = np.log(np.diagonal(mixture.precisions_cholesky_, axis1=1, axis2=2)).sum(axis=1)
        logs[i] = np.log(mixture.weights_) + widths - len(columns) / 2 * math.log(2 * math.pi)
    return Mixtures(whitening.reshape(-1, k), offset.reshape(-1), logs, float(np.median(rarity)))

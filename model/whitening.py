"""Parameters that turn a residual into a score: a robust centre, a whitening and weights of the features.

Fitted in training with numpy and scikit-learn; the network applies it as buffers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

RESOLUTION: Final = 1e-7
"""Least deviation of a column in the units of the score: below it, float32 holds rounding errors alone. It
keeps the squares of the largest values that a score measures finite."""
LEAST_MEDIAN: Final = 1e-4
"""Least median square that a form is scaled by, so that rows which hardly vary are not made to."""
HEAVY: Final = 1e-3
"""Share of a column's deviation below which that of its middle 98 % is the unit of the covariance: a few rows
far out would hide it."""
SUPPORT: Final = 0.99
"""Share of the training rows that the covariance is made of; the most outlying 1 % are left out. The normals
keep close to a few planes which 1 to 2 % of them leave, and most frauds; see docs/model.md."""
QUADRATIC_SHARE: Final = 0.01
"""Weight of the squared distance from the core of the normals beside that from the rows farthest out; the
figures hardly change between 0.003 and 0.03."""
ORDINARY_WEIGHT: Final = 3.0
"""Median of the ordinary part among normals, beside that of the part that grows. The figures hardly change
between 1 and 6."""
ORDINARY_QUANTILE: Final = 0.9
"""Share of the normals below the limit of the ordinary part. Where it grows on, the order of strong anomalies
becomes that of the inputs."""
FIT_ROWS: Final = 100_000
"""At most this many rows, drawn at random, make the covariances: the time of the fit grows with them, the
precision of 29 x 29 numbers hardly."""
OUTER_SHARE: Final = 0.01
"""Share of the training rows that make the second covariance: those farthest from the core, which leave the
planes and are normal all the same."""
OUTER_ROWS: Final = 4
"""At least this many rows for each residual, whatever the share gives."""
OUTER_FLOOR: Final = 1e-4
"""Smallest eigenvalue of the second correlation matrix, which few rows estimate. Also the least variance of a
column in it, as a share of that in the core."""
FLOOR_SHARE: Final = 0.5
"""Least deviation of a discrete input's residual, as a share of that of the input."""
FEW_VALUES: Final = 32
DISCRETE_SHARE: Final = 0.9
"""An input is discrete where its FEW_VALUES most frequent values make this share of the rows."""
MAX_SHARE: Final = 0.25
"""Largest share of a residual in the mean score of the training rows where these are eight or more, otherwise
twice an equal share. Those of the ULB data have up to 0.15."""
EIGENVALUE_FLOOR: Final = 1e-5
"""Smallest eigenvalue of the residual's correlation matrix. It bounds what the whitening multiplies the
rounding errors of float32 with; those of real data lie above it."""


@dataclass(frozen=True)
class ScoreScale:
    """The fitted parameters of the score of a residual r [k].

    Attributes:
      center: [k], robust centre of r.
      whitening: [k, k]; the squares of whitening @ (r - center) are one part of the contributions.
      ordinary_center: [k], robust centre of the inputs u.
      ordinary_whitening: [k, k]; the squares of ordinary_whitening @ (u - ordinary_center) are the
        other part.
      ordinary_limit: their sum saturates here.
    """

    center: Matrix
    whitening: Matrix
    ordinary_center: Matrix
    ordinary_whitening: Matrix
    ordinary_limit: float


def corr_max(covariance: Matrix, floor: float = EIGENVALUE_FLOOR) -> Matrix:
    """Computes the correlation-maximal whitening matrix R^(-1/2) D^(-1) of a covariance matrix D R D.

    Of all matrices W with W S W' = I, its components correlate most with the variables that they stand for.
    So their squares are the variables' contributions to the Mahalanobis distance (P. H. Garthwaite, I. Koch,
    "Evaluating the contributions of individual variables to a quadratic form", 2016; as ZCA-cor in A. Kessy,
    A. Lewin, K. Strimmer, "Optimal whitening and decorrelation", 2018).

    >>> corr_max(np.diag([4.0, 0.25])).tolist()
    [[0.5, 0.0], [0.0, 2.0]]

    Args:
      covariance: [k, k], positive semi-definite with a positive diagonal.
      floor: smaller eigenvalues of R are raised to this.
    """
    scale = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    return (vectors * np.maximum(values, floor) ** -0.5) @ vectors.T / scale


def fit(residuals: Matrix, inputs: Matrix, seed: int = 0, floors: Matrix | None = None) -> ScoreScale:
    """Fits the scale of the score to normal transactions: to their inputs and residuals in its units.

    Let d = r - center, in standard deviations. Q is the squared Mahalanobis distance of d under the minimum
    covariance determinant (Rousseeuw 1984; scikit-learn's FastMCD, before its reweighting step, which would
    cut the rows off the planes again). P is that distance under the second moments of the rows that lie
    farthest out by Q. The part that grows is

        (QUADRATIC_SHARE * Q  +  P) / k

    Q is scaled so that its median is that of a chi-squared variable with k degrees of freedom. Q alone would
    rank the few normals that leave the planes among the frauds; P tells them apart by the way they leave.
    Both are one quadratic form, and so one whitening.

    The ordinary part is the squared Mahalanobis distance of the inputs, after the reweighting step: of
    ordinary rows, the network reconstructs too much to order them by the residual. It is scaled to
    ORDINARY_WEIGHT times the median of the part that grows, and saturates at what ORDINARY_QUANTILE of the
    rows are below.

    Two bounds keep a single input from ruling the score, and change nothing where none would. The residual of
    a discrete input, such as a rare flag, has a deviation of at least its floor: the network reconstructs the
    usual values nearly exactly, and any other would be many deviations off. In all forms it has the variance
    of all rows, since the core may hold one value alone. An input whose share of the mean score is over
    MAX_SHARE, such as a number with very heavy tails, is scaled down.

    Args:
      residuals: [n, k].
      inputs: [n, k], of the same rows.
      seed: of FastMCD.
      floors: [k], the least deviation of the residual of a discrete input; 0 for others. None for no
        discrete ones.
    """
    # scikit-learn is needed to train, not to score.
    from scipy.stats import chi2

    k = residuals.shape[1]
    is_discrete = np.zeros(k, bool) if floors is None else floors > 0
    rows = _Standard(residuals, is_discrete, floors)
    location, covariance = _core_moments(rows, seed, reweighted=False)
    deviations = rows.values - location
    core = corr_max(covariance)
    squared = np.square(deviations @ core.T).sum(axis=1)
    consistency = chi2.ppf(0.5, max(1, deviations.shape[1])) / max(float(np.median(squared)), LEAST_MEDIAN)
    moments = _outer_moments(deviations, squared)
    moments = _raised(moments, OUTER_FLOOR * np.diag(covariance))
    moments += np.diag(np.where(rows.is_discrete, np.maximum(1.0 - np.diag(moments), 0.0), 0.0))
    outer = corr_max(moments, OUTER_FLOOR)
    # The squares of the two whitened vectors add up to one quadratic form, whose own correlation-maximal
    # whitening keeps its components to the features.
    form = QUADRATIC_SHARE * consistency * core.T @ core + outer.T @ outer
    scale = np.sqrt(np.diag(form))  # without it, columns of very different cores make the form singular
    inverse = np.linalg.inv(form / np.outer(scale, scale)) / np.outer(scale, scale)
    center, whitening = rows.raw(location, corr_max(inverse, floor=0.0) / np.sqrt(k))
    growing = np.square((residuals - center) @ whitening.T)

    own = _Standard(inputs, is_discrete)
    location, covariance = _core_moments(own, seed, reweighted=True)
    ordinary_center, ordinary = own.raw(location, corr_max(covariance))
    parts = np.square((inputs - ordinary_center) @ ordinary.T)
    weight = ORDINARY_WEIGHT * _typical(growing) / max(_typical(parts), LEAST_MEDIAN)
    parts *= weight
    limit = max(float(np.quantile(parts.sum(axis=1), ORDINARY_QUANTILE)), RESOLUTION**2)
    factors = np.sqrt(_bounding(growing, parts, limit))[:, None]
    return ScoreScale(
        center, whitening * factors, ordinary_center, ordinary * np.sqrt(weight) * factors, limit
    )


class _Standard:
    """Columns in units of their deviations, without the constant ones: these have no scale of their own, and
    would make a covariance singular."""

    def __init__(self, rows: Matrix, is_discrete: Mask, floors: Matrix | None = None) -> None:
        spread = rows.std(axis=0)
        self._varies = spread > 0
        self._spread = np.maximum(spread, RESOLUTION if floors is None else np.maximum(floors, RESOLUTION))
        self._spread = self._spread[self._varies]
        self._mean = rows.mean(axis=0)
        self.values = rows[:, self._varies] / self._spread
        self.is_discrete = is_discrete[self._varies]
        self.least = np.square(RESOLUTION / self._spread)

    def raw(self, location: Matrix, whitening: Matrix) -> tuple[Matrix, Matrix]:
        """Turns a location and a whitening of `values` into those of all columns, in their own units."""
        center, full = self._mean.copy(), np.zeros((len(self._mean), len(self._mean)))
        center[self._varies] = location * self._spread
        full[np.ix_(self._varies, self._varies)] = whitening / self._spread
        return center, full


def _typical(parts: Matrix) -> float:
    """Takes the median sum of a row, or the mean one where most rows have none."""
    sums = parts.sum(axis=1)
    return float(np.median(sums)) or float(sums.mean()) or 1.0


def discrete_columns(matrix: npt.NDArray[np.floating]) -> Mask:
    """Tells which columns have few values, or one that most rows have: flags, categories, days of the week.

    >>> discrete_columns(np.column_stack([np.arange(1000.0), np.arange(1000) % 7]))
    array([False,  True])
    """
    rows = matrix[:FIT_ROWS]

    def frequent(column: npt.NDArray[np.floating]) -> float:
        counts = np.sort(np.unique(column, return_counts=True)[1])
        return float(counts[-FEW_VALUES:].sum()) / len(rows)

    return np.array([frequent(column) >= DISCRETE_SHARE for column in rows.T], bool)


def _core_moments(standard: _Standard, seed: int, reweighted: bool) -> tuple[Matrix, Matrix]:
    """Computes the centre and the covariance of the core of the rows, whose columns have variance 1.

    The core is what scikit-learn's reweighting step leaves of the rows, or what it begins with. A discrete
    column would make the determinant zero where the core holds one value; each stands by itself, and so does
    any other whose middle 98 % of the rows hold one value.
    """
    from sklearn.covariance import MinCovDet

    rows = standard.values
    location, covariance = rows.mean(axis=0), np.eye(rows.shape[1])
    middle = np.clip(rows, *np.quantile(rows, [0.01, 0.99], axis=0)).std(axis=0)
    varies = ~standard.is_discrete & (middle > np.sqrt(standard.least))
    if varies.any():
        # The estimate takes a core of very small deviations for one without any.
        unit = np.where(middle < HEAVY, middle, 1.0)[varies]
        with warnings.catch_warnings():
            # Of columns that depend on each other: the smallest eigenvalues are raised below.
            warnings.filterwarnings("ignore", message="The covariance matrix .* not full rank")
            warnings.filterwarnings("ignore", message="Determinant has increased")
            warnings.filterwarnings("ignore", message="Only one sample available")
            scaled = rows[:, varies] / unit
            estimate = MinCovDet(support_fraction=SUPPORT, random_state=seed).fit(scaled)
        center = estimate.location_ if reweighted else estimate.raw_location_
        moments = estimate.covariance_ if reweighted else estimate.raw_covariance_
        location[varies] = center * unit
        covariance[np.ix_(varies, varies)] = moments * np.outer(unit, unit)
    return location, _raised(covariance, standard.least)


def _raised(moments: Matrix, least: Matrix) -> Matrix:
    """Raises the variances [k] of second moments to the least ones."""
    return moments + np.diag(np.maximum(least - np.diag(moments), 0.0))


def _bounding(growing: Matrix, ordinary: Matrix, saturation: float) -> Matrix:
    """Finds factors [k], at most 1, under which no column is over the limit in the mean contributions.

    Nor in those of the lower 99 % of the rows: of the others, a score keeps the logarithm.
    """
    k = growing.shape[1]
    limit, factors = max(MAX_SHARE, 2.0 / k), np.ones(k)
    # A column that is scaled down raises the shares of the others; few steps settle it.
    for _ in range(100 if k > 2 else 0):
        scaled = ordinary * factors
        sums = np.maximum(scaled.sum(axis=1), np.finfo(float).tiny)
        parts = growing * factors + scaled * np.minimum(1.0, saturation / sums)[:, None]
        sums = parts.sum(axis=1)
        means = np.stack([parts.mean(axis=0), parts[sums <= np.quantile(sums, 0.99)].mean(axis=0)])
        shares = (means / np.maximum(means.sum(axis=1), np.finfo(float).tiny)[:, None]).max(axis=0)
        if shares.max() <= limit * (1 + 1e-6):
            break
        factors[shares > limit] *= limit / shares[shares > limit]
    return factors


def _outer_moments(deviations: Matrix, squared: Matrix) -> Matrix:
    """Computes second moments about the robust centre, of the rows that lie farthest out.

    Those beyond their median distance are drawn in to it, so that a few frauds among unlabelled rows do not
    make the whole form.
    """
    n, k = deviations.shape
    rows = np.argsort(squared)[-max(int(OUTER_SHARE * n), OUTER_ROWS * k) :]
    distance = np.sqrt(squared[rows])
    drawn = np.minimum(distance, np.median(distance)) / np.where(distance > 0, distance, 1.0)
    far = deviations[rows] * drawn[:, None]
    return far.T @ far / len(far)

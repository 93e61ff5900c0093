"""Estimate the generator's parameters from the ULB card transactions; run once, the result is committed.

    python -m benchmarks.generator_estimate --data ulb_transactions.parquet \
        --output model/synthetic/parameters.json

It needs the `train` extra (SciPy, scikit-learn).

Method (a Gaussian mixture copula for each class):

1. Normals: nine in ten lie within 3e-4 of one hyperplane in V1..V28, and most of them close to two more; five
   in six frauds lie several units off. That is the strongest sign of fraud in the data, and a copula of the
   single features would blur it. So the distances from the three planes (found by the minimum covariance
   determinant) take the place of the three components that they determine best. Frauds off the first plane
   are taken as they are. The few on it are camouflaged: they are drawn as normals, and moved within the
   planes by the difference of the medians.
2. The 30 coordinates (Time, V1..V28 with or without that change, Amount) are turned into normal scores by
   their ranks, z = Phi^-1((rank - 1/2) / n).
3. A Gaussian mixture with full covariances is fitted to the scores. It carries the dependence between the
   coordinates, and their dependence on the time of day.
4. Every coordinate gets a table of knots (z, x): z is the quantile of the mixture's own marginal, x the
   quantile of the data, so that the marginals of what is generated are those of the data.

No row of the data can be read off the result. Quantiles are Harrell-Davis quantiles, weighted means over the
order statistics of a neighbourhood. Beyond the outermost of them a generalised Pareto tail is fitted to the
excesses and evaluated at fixed probabilities, so minima and maxima do not occur. Everything is rounded.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from common.command import command
from features.ulb import AMOUNT_INDEX, FEATURES, LABEL, N_FEATURES, TIME_INDEX
from model.synthetic.parameters import COMPONENT_SLICE, Basis

Floats = npt.NDArray[np.float64]

PLANES: Final = 3
"""Directions in V1..V28 along which nine in ten normals vary by less than a few hundredths."""
_PLANE_WIDTH: Final = 0.05
CYCLE_HOURS: Final = 48
OVER_REPRESENTED_HOURS: Final = 4
"""The sample holds too many normals of these first hours; they are thinned to the level of the next day."""

_BODY: Final = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.075, *np.arange(0.1, 0.5, 0.025)])
NORMAL_PROBABILITIES: Final = np.array([0.0005, 0.001, 0.002, 0.005, *_BODY])
FRAUD_PROBABILITIES: Final = np.array([0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
_TAIL_FACTORS: Final = (0.3, 0.1, 0.04)
"""Tail knots lie at these fractions of the outermost empirical probability."""
_END_PROBABILITY: Final = 5e-4
"""Stands for the ends of the cycle, whose probabilities, 0 and 1, have infinite scores."""


def harrell_davis(values: Floats, probabilities: Floats) -> Floats:
    """Quantiles of `values` [n] at `probabilities` [p].

    After Harrell and Davis (1982), Biometrika 69, 635-640: each is a mean over all order statistics with
    Beta((n+1)p, (n+1)(1-p)) weights.
    """
    from scipy.special import betainc

    n = len(values)
    edges = np.arange(n + 1) / n
    a = (n + 1) * probabilities[:, None]
    weights = np.diff(betainc(a, (n + 1) - a, edges[None, :]), axis=1)
    return weights @ np.sort(values)


def pareto_tail(values: Floats, outer: float, factors: Sequence[float]) -> tuple[Floats, Floats]:
    """Upper tail beyond probability 1 - `outer`: upper-tail probabilities and smoothed quantiles.

    The generalised Pareto distribution is fitted to the excesses over the quantile at five times `outer` by
    probability-weighted moments (Hosking and Wallis 1987, Technometrics 29, 339-349); its shape is held
    within [-0.4, 0.35], for a few dozen excesses do not determine it better.
    """
    threshold_tail = min(5 * outer, 0.25)
    threshold = float(np.quantile(values, 1 - threshold_tail))
    excess = np.sort(values[values > threshold] - threshold)
    n = len(excess)
    if n < 10:  # an atom at the end of the range (amounts of 0): there is no tail
        return outer * np.asarray(factors), np.full(len(factors), threshold)
    mean = float(excess.mean())
    moment = float((excess * (1 - (np.arange(1, n + 1) - 0.35) / n)).mean())
    shape = float(np.clip(2 - mean / (mean - 2 * moment), -0.4, 0.35))
    scale = mean * (1 - shape)
    tail = outer * np.asarray(factors)
    ratio = tail / threshold_tail
    steps = -np.log(ratio) if abs(shape) < 1e-6 else (ratio**-shape - 1) / shape
    return tail, threshold + scale * steps


def marginal(values: Floats, probabilities: Floats) -> tuple[Floats, Floats]:
    """Probabilities and quantiles of one feature, tails included; both ascending."""
    body = np.concatenate([probabilities, [0.5], 1 - probabilities[::-1]])
    middle = harrell_davis(values, body)
    upper_p, upper = pareto_tail(values, float(probabilities[0]), _TAIL_FACTORS)
    lower_p, lower = pareto_tail(-values, float(probabilities[0]), _TAIL_FACTORS)
    p = np.concatenate([lower_p[::-1], body, 1 - upper_p])
    x = np.concatenate([-lower[::-1], middle, upper])
    return p, np.maximum.accumulate(x)


def hourly_share(seconds: Floats, fold: bool) -> Floats:
    """Share of the transactions in each of the 48 hours, [48]. `fold` lays both days over one another.

    Folding goes with circular smoothing (a Gaussian kernel of 1.5 hours): it is for few rows.
    """
    counts = np.bincount((seconds // 3600).astype(int), minlength=CYCLE_HOURS)[:CYCLE_HOURS].astype(float)
    if fold:
        day = counts.reshape(2, 24).sum(axis=0)
        distance = np.minimum(np.arange(24), 24 - np.arange(24))
        kernel = np.exp(-0.5 * (distance / 1.5) ** 2)
        smooth = np.real(np.fft.ifft(np.fft.fft(day) * np.fft.fft(kernel / kernel.sum())))
        counts = np.tile(smooth, 2)
    share: Floats = counts / counts.sum()
    return share


def thin_first_hours(features: Floats, rng: np.random.Generator) -> Floats:
    """Normals with the over-represented first hours thinned at random to the counts of the next day."""
    hour = (features[:, TIME_INDEX] // 3600).astype(int)
    keep = np.ones(len(features), bool)
    for h in range(OVER_REPRESENTED_HOURS):
        rows = np.flatnonzero(hour == h)
        surplus = len(rows) - int((hour == h + 24).sum())
        if surplus > 0:
            keep[rng.choice(rows, surplus, replace=False)] = False
    return features[keep]


def robust_planes(features: Floats) -> dict[str, Any]:
    """The hyperplanes near which normals lie, from V1..V28 in `features` [n, 30] of normals.

    `planes` are unit vectors, the directions in which their robust covariance is least. Each takes the place
    of the component that it determines best (`pivots`); the other components stay coordinates themselves.
    """
    from sklearn.covariance import MinCovDet

    components = features[:, COMPONENT_SLICE]
    robust = MinCovDet(support_fraction=0.9, random_state=0).fit(components)
    planes = np.linalg.eigh(robust.covariance_)[1].T[:PLANES]
    pivots: list[int] = []
    for k, plane in enumerate(planes):
        free = [j for j in range(len(plane)) if j not in pivots]
        pivots.append(max(free, key=lambda j: abs(planes[k, j])))
        # An eigenvector has no sign of its own; this one is reproducible.
        planes[k] *= np.sign(plane[pivots[-1]])
    low, high = np.quantile(components, [0.25, 0.75], axis=0)
    return {
        "centre": [_round(v, 4) for v in robust.location_],
        "scale": [_round(v, 4) for v in (high - low) / 1.349],
        "planes": [[_round(v, 8) for v in plane] for plane in planes],
        "pivots": pivots,
    }


def fit_class(
    coordinates: Floats, components: int, regularisation: float, probabilities: Floats, fold: bool
) -> dict[str, Any]:
    """The parameters of one class from its coordinates [n, 30]; the module's docstring has the method."""
    from scipy.special import ndtri
    from scipy.stats import rankdata
    from sklearn.mixture import GaussianMixture

    n = len(coordinates)
    scores = ndtri((rankdata(coordinates, axis=0) - 0.5) / n)
    mixture = GaussianMixture(
        components, covariance_type="full", reg_covar=regularisation, random_state=0, max_iter=300
    ).fit(scores)
    order = np.argsort(-mixture.weights_)
    weights, means, covariances = (
        mixture.weights_[order],
        mixture.means_[order],
        mixture.covariances_[order],
    )
    share = hourly_share(coordinates[:, TIME_INDEX], fold)
    knots: list[list[list[float]]] = []
    for j in range(N_FEATURES):
        if j == TIME_INDEX:
            p = np.clip(np.concatenate([[0.0], np.cumsum(share)]), _END_PROBABILITY, 1 - _END_PROBABILITY)
            x = 3600.0 * np.arange(CYCLE_HOURS + 1)
        else:
            p, x = marginal(coordinates[:, j], probabilities)
        if j == AMOUNT_INDEX:
            x = np.maximum(x, 0.0)
        z = _mixture_quantiles(p, weights, means[:, j], np.sqrt(covariances[:, j, j]))
        knots.append([[_round(v, 4) for v in z], [_significant(v) for v in x]])
    lower = np.tril_indices(N_FEATURES)
    return {
        "rows": n,
        "hourly_share": [_round(v, 6) for v in share],
        "weights": [_round(v, 5) for v in weights],
        "means": [[_round(v, 3) for v in row] for row in means],
        "cholesky": [[_round(v, 3) for v in np.linalg.cholesky(c)[lower]] for c in covariances],
        "knots": knots,
    }


def _mixture_quantiles(p: Floats, weights: Floats, means: Floats, deviations: Floats) -> Floats:
    """Quantiles of a one-dimensional Gaussian mixture at `p`, by bisection."""
    from scipy.special import ndtr

    low, high = np.full(len(p), -20.0), np.full(len(p), 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = (weights * ndtr((middle[:, None] - means) / deviations)).sum(axis=1) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _round(value: float, digits: int) -> float:
    return round(float(value), digits) + 0.0


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


def read_ulb(data: Path) -> tuple[Floats, npt.NDArray[np.integer[Any]]]:
    """Features [n, 30] and labels [n] (1: fraud) from a Parquet file in the ULB layout.

    Raises:
      ValueError: the file lacks a column of the layout.
    """
    table = pq.read_table(data)
    missing = [name for name in (*FEATURES, LABEL) if name not in table.column_names]
    if missing:
        raise ValueError(f"{data}: columns {missing} are missing; give a file in the ULB layout")
    features = np.column_stack([table[name].to_numpy().astype(np.float64) for name in FEATURES])
    return features, table[LABEL].to_numpy()


def estimate(data: Path) -> dict[str, Any]:
    """The whole parameter document from a Parquet file in the ULB layout (30 features and Class).

    Raises:
      ValueError: the file lacks a column of the layout.
    """
    features, labels = read_ulb(data)
    normals = thin_first_hours(features[labels == 0], np.random.default_rng(0))
    frauds = features[labels == 1]
    planes = robust_planes(normals)
    basis = Basis.from_json(planes)
    normal_coordinates, fraud_coordinates = basis.coordinates(normals), basis.coordinates(frauds)
    on_planes = [COMPONENT_SLICE.start + pivot for pivot in planes["pivots"]]
    camouflaged = np.abs(fraud_coordinates[:, on_planes[0]]) < _PLANE_WIDTH
    shift = np.median(fraud_coordinates[camouflaged], axis=0) - np.median(normal_coordinates, axis=0)
    shift[on_planes] = 0.0
    return {
        "provenance": {
            "data": "ULB Credit Card Fraud Detection, a sample (Machine Learning Group, Universite Libre de "
            "Bruxelles / Worldline; contents under DbCL 1.0)",
            "file": data.name,
            "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "rows": len(labels),
            "normals": int((labels == 0).sum()),
            "normals_used": len(normals),
            "frauds": len(frauds),
            "estimated_on": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "method": "Gaussian mixture copula per class, normals with their planes; "
            "Harrell-Davis quantile marginals with generalised Pareto tails; the over-represented first "
            "hours thinned; all values smoothed and rounded, no rows",
            "script": "python -m benchmarks.generator_estimate",
        },
        "basis": planes,
        "camouflage": {
            "share": _round(camouflaged.mean(), 3),
            "shift": [_round(v, 2) for v in shift[COMPONENT_SLICE]],
        },
        "normal": fit_class(normal_coordinates, 12, 1e-3, NORMAL_PROBABILITIES, fold=False),
        "fraud": fit_class(frauds[~camouflaged], 3, 2e-2, FRAUD_PROBABILITIES, fold=True),
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generator_estimate",
        description="Estimate the parameters of the synthetic transactions from real ones.",
        epilog="Example: python -m benchmarks.generator_estimate --data ulb_transactions.parquet",
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file: the 30 features and Class")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("parameters.json"))
    options = parser.parse_args(argv)
    document = estimate(options.data)
    # One line a list keeps the file short and its differences readable.
    options.output.write_text(_dump(document) + "\n", encoding="utf-8")
    used = document["provenance"]
    print(f"{options.output}: {used['normals_used']} normals, {used['frauds']} frauds", file=sys.stderr)
    return 0


def _dump(value: Any, indent: str = "") -> str:
    if isinstance(value, dict):
        inner = indent + " "
        body = ",\n".join(f"{inner}{json.dumps(k)}: {_dump(v, inner)}" for k, v in value.items())
        return f"{{\n{body}\n{indent}}}"
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main())

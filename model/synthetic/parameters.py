"""The estimated distribution of each class (parameters.json), and drawing from it.

The model is a Gaussian mixture copula: `benchmarks.generator_estimate` describes and fits it. A draw is a
vector of 30 normal scores from a Gaussian mixture. The knots of its coordinate turn every score into a value.
Among normals, the 28 middle coordinates are turned back into V1..V28.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.ulb import AMOUNT_INDEX, COMPONENTS, FEATURES, N_FEATURES, TIME_INDEX

Floats = npt.NDArray[np.float64]

COMPONENT_SLICE: Final = slice(FEATURES.index(COMPONENTS[0]), FEATURES.index(COMPONENTS[-1]) + 1)
"""Position of V1..V28 among the features."""

CYCLE_SECONDS: Final = 172_800
"""Time runs over two days and starts again."""

DECIMALS: Final = 6
"""Of the components; amounts are in cents and times in whole seconds."""


@dataclass(frozen=True)
class Basis:
    """Coordinates of V1..V28 that show the hyperplanes near which normals lie.

    Attributes:
      centre: [28], on all planes.
      scale: [28], robust standard deviations (interquartile range / 1.349) of V1..V28.
      planes: [3, 28], their unit normal vectors. Most frauds lie off the first.
      to_components: [28, 28], V - centre = to_components @ coordinates. The coordinates are V - centre, but
        for three, which are the distances from the planes.
    """

    centre: Floats
    scale: Floats
    planes: Floats
    to_components: Floats

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Basis:
        """Reads the basis of the parameter document; distances replace the components `pivots`."""
        planes = np.array(document["planes"])
        from_components = np.eye(planes.shape[1])
        from_components[document["pivots"]] = planes
        return cls(
            centre=np.array(document["centre"]),
            scale=np.array(document["scale"]),
            planes=planes,
            to_components=np.linalg.inv(from_components).astype(np.float64),
        )

    def coordinates(self, features: Floats) -> Floats:
        """Replaces V1..V28 in `features` [n, 30] by their coordinates."""
        out = features.copy()
        centred = features[:, COMPONENT_SLICE] - self.centre
        out[:, COMPONENT_SLICE] = np.linalg.solve(self.to_components, centred.T).T
        return out


@dataclass(frozen=True)
class ClassDistribution:
    """The joint distribution of the 30 features within one class.

    Attributes:
      hourly_share: [48], share of the transactions in each hour of the two days; sums to 1.
      weights: [k], weights of the mixture's components.
      means: [k, 30], in normal scores.
      cholesky: [k, 30, 30], lower triangular factors of the covariances, in normal scores.
      knots_z: 30 arrays, ascending normal scores.
      knots_x: 30 arrays, the values of the coordinates that belong to them.
      basis: of the coordinates; None where the coordinates are V1..V28 themselves.
    """

    hourly_share: Floats
    weights: Floats
    means: Floats
    cholesky: Floats
    knots_z: tuple[Floats, ...]
    knots_x: tuple[Floats, ...]
    basis: Basis | None

    @classmethod
    def from_json(cls, document: dict[str, Any], basis: Basis | None) -> ClassDistribution:
        """Reads one class of the parameter document."""
        weights = np.array(document["weights"])
        share = np.array(document["hourly_share"])
        lower = np.tril_indices(N_FEATURES)
        cholesky = np.zeros((len(weights), N_FEATURES, N_FEATURES))
        cholesky[:, *lower] = np.array(document["cholesky"])
        knots = document["knots"]
        return cls(
            hourly_share=share / share.sum(),
            weights=weights / weights.sum(),
            means=np.array(document["means"]),
            cholesky=cholesky,
            knots_z=tuple(np.array(z) for z, _ in knots),
            knots_x=tuple(np.array(x) for _, x in knots),
            basis=basis,
        )

    def draw_times(self, uniform: Floats) -> Floats:
        """Turns cumulative probabilities `uniform` [n] into times in seconds, in the rhythm of two days."""
        cumulative = np.concatenate([[0.0], np.cumsum(self.hourly_share)])
        hours = np.arange(len(cumulative))
        return 3600.0 * np.interp(uniform, cumulative, hours)

    def draw_scores(self, times: Floats, rng: np.random.Generator) -> Floats:
        """Draws normal scores [n, 30] given the times in seconds [n].

        Time is the first feature, so the first Gaussian of a component is fixed by the time and the other 29
        follow through the Cholesky factor: that is the exact conditional distribution.
        """
        n = len(times)
        z_time = np.interp(times, self.knots_x[TIME_INDEX], self.knots_z[TIME_INDEX])
        deviations = self.cholesky[:, 0, 0]
        first = (z_time[:, None] - self.means[:, TIME_INDEX]) / deviations
        likelihood = self.weights / deviations * np.exp(-0.5 * first**2)
        cumulative = np.cumsum(likelihood, axis=1)
        component = (rng.random(n)[:, None] * cumulative[:, -1:] > cumulative).sum(axis=1)
        noise = rng.standard_normal((n, N_FEATURES))
        noise[:, 0] = first[np.arange(n), component]
        scores = np.empty((n, N_FEATURES))
        for k in range(len(self.weights)):
            rows = component == k
            scores[rows] = self.means[k] + noise[rows] @ self.cholesky[k].T
        return scores

    def values(self, scores: Floats, times: Floats) -> Floats:
        """Turns normal scores [n, 30] and `times` into feature values [n, 30], rounded as in messages."""
        features = np.empty_like(scores)
        for j in range(N_FEATURES):
            features[:, j] = np.interp(scores[:, j], self.knots_z[j], self.knots_x[j])
        if self.basis is not None:
            coordinates = features[:, COMPONENT_SLICE]
            features[:, COMPONENT_SLICE] = coordinates @ self.basis.to_components.T + self.basis.centre
        features[:, TIME_INDEX] = times
        return rounded(features)

    def draw(self, times: Floats, rng: np.random.Generator) -> Floats:
        """Draws feature values [n, 30] given the times in seconds [n]."""
        return self.values(self.draw_scores(times, rng), times)


def rounded(features: Floats) -> Floats:
    """Rounds `features` [n, 30] to whole seconds, components of 6 decimals, and cents, at least 0."""
    out = np.round(features, DECIMALS)
    out[:, TIME_INDEX] = np.floor(features[:, TIME_INDEX])
    out[:, AMOUNT_INDEX] = np.maximum(np.round(features[:, AMOUNT_INDEX], 2), 0.0)
    return out


@dataclass(frozen=True)
class Parameters:
    """Both classes, and the provenance of the parameters.

    A share of the frauds is camouflaged: normals, but for a move by `camouflage` [28] in V1..V28.
    """

    basis: Basis
    normal: ClassDistribution
    fraud: ClassDistribution
    camouflaged_share: float
    camouflage: Floats
    provenance: dict[str, Any]

    def draw_frauds(self, times: Floats, rng: np.random.Generator) -> Floats:
        """Draws features [n, 30] of frauds, also camouflaged ones, given the times in seconds [n]."""
        frauds = self.fraud.draw(times, rng)
        hidden = np.flatnonzero(rng.random(len(times)) < self.camouflaged_share)
        if len(hidden):
            moved = self.normal.draw(times[hidden], rng)
            moved[:, COMPONENT_SLICE] += self.camouflage
            frauds[hidden] = rounded(moved)
        return frauds

    def hourly_fraud_share(self, share: float) -> Floats:
        """Computes the share of frauds in each hour [48], for a `share` over the two days.

        Frauds keep less of the day's rhythm than normals, so at night their share is several times as high.
        It is at most 0.95 in any hour.
        """
        normal, ratio = self.normal.hourly_share, self.fraud.hourly_share / self.normal.hourly_share
        low, high = 0.0, 100.0
        for _ in range(60):
            factor = (low + high) / 2
            below = float(normal @ np.minimum(share * factor * ratio, 0.95)) < share
            low, high = (factor, high) if below else (low, factor)
        hourly: Floats = np.minimum(share * low * ratio, 0.95)
        return hourly


@cache
def load() -> Parameters:
    """Loads the parameters that come with the package."""
    text = resources.files("model.synthetic").joinpath("parameters.json").read_text(encoding="utf-8")
    document = json.loads(text)
    basis = Basis.from_json(document["basis"])
    camouflage = document["camouflage"]
    return Parameters(
        basis=basis,
        camouflaged_share=camouflage["share"],
        camouflage=basis.to_components @ np.array(camouflage["shift"]),
        normal=ClassDistribution.from_json(document["normal"], basis),
        fraud=ClassDistribution.from_json(document["fraud"], None),
        provenance=document["provenance"],
    )

"""Baselines of the protocol: families of classical detectors, each with several settings and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from model import baselines
from model.baselines import Scores

MIXTURE_SEEDS: Final = 4
"""Mixtures of 20 components, each with its own seed: their spread, and their mean as a baseline."""
NEIGHBOURS: Final = (5, 1, 20, 50)


class Scored(NamedTuple):
    """Scores of one detector.

    Attributes:
      name: of the detector.
      setting: that distinguishes it from others of the name; "" for none.
      seed: of several with the same name and setting, from 0 on.
      scores: [m].
    """

    name: str
    setting: str
    seed: int
    scores: Scores


Family = Callable[[Scores, Scores, int], Iterator[Scored]]
"""Fits to prepared normals [n, k], and scores prepared rows [m, k], with a seed."""


def _tuned(name: str) -> Family:
    """Makes a family of one of the baselines of `anomaly evaluate`, with all values of its setting."""
    tuned = dict((*baselines.QUICK, *baselines.SLOW))[name]
    assert isinstance(tuned, baselines.Tuned)

    def family(train: Scores, rows: Scores, seed: int) -> Iterator[Scored]:
        for value in tuned.values:
            yield Scored(name, f"{tuned.setting} {value}", 0, tuned.fit_and_score(train, rows, seed, value))

    return family


def _mixtures(train: Scores, rows: Scores, seed: int) -> Iterator[Scored]:
    name, setting = "Gaussian mixture", "n_components {}"
    several = []
    for i in range(MIXTURE_SEEDS):
        several.append(baselines.gaussian_mixture(train, rows, MIXTURE_SEEDS * seed + i, 20))
        yield Scored(name, setting.format(20), i, several[-1])
    yield Scored(f"mean of {MIXTURE_SEEDS} mixtures of 20", "", 0, np.mean(several, axis=0))
    for n in (10, 40):
        yield Scored(
            name, setting.format(n), 0, baselines.gaussian_mixture(train, rows, MIXTURE_SEEDS * seed, n)
        )


def _nearest(train: Scores, rows: Scores, seed: int) -> Iterator[Scored]:
    """Yields the distance to the k-th nearest normal."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(algorithm="brute").fit(train).kneighbors(rows, max(NEIGHBOURS))
    for k in NEIGHBOURS:
        yield Scored("kNN", f"k {k}", 0, distances[:, k - 1])


def _local_outlier_factor(train: Scores, rows: Scores, seed: int) -> Iterator[Scored]:
    from sklearn.neighbors import LocalOutlierFactor

    for k in (20, 50, 200):
        factor = LocalOutlierFactor(k, algorithm="brute", novelty=True).fit(train)
        yield Scored("LOF", f"k {k}", 0, -factor.score_samples(rows))


FAMILIES: Final[dict[str, Family]] = {
    "PCA": _tuned("PCA"),
    "isolation_forest": _tuned("isolation forest"),
    "kNN": _nearest,
    "LOF": _local_outlier_factor,
    "MCD": _tuned("MCD"),
    "mixtures": _mixtures,
}
"""By the name of the task: the quickest first."""

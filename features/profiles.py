"""Profiles: how many values of each feature, and of the score, fall between the quantiles of the training.

Profiles add up, whoever counted them. They are compared with the shares that the training had in the bins.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from features.ranges import PROBABILITIES, Floats, Quantiles

N_BINS: Final = len(PROBABILITIES) + 1
"""Below the range of the training, between its quantiles, and above the range."""

Counts = npt.NDArray[np.int64]
_DIGEST_BYTES: Final = 16
_DIGESTS: Final = 1 << 8 * _DIGEST_BYTES
_AT_ONCE: Final = 1024
_TOLERANCE: Final = 1e-6


def edges_of(quantiles: Sequence[Sequence[float]]) -> Floats:
    """Makes the lower ends of the bins but the first, float32 [k, 21], of quantiles at PROBABILITIES."""
    edges = np.array(quantiles, np.float32).reshape(-1, len(PROBABILITIES))
    # The largest value of the training is inside: the last bin begins behind it.
    edges[:, -1] = np.nextafter(edges[:, -1], np.float32(np.inf))
    return edges


def count(rows: Floats, edges: Floats) -> Counts:
    """Counts the values of each column by bin.

    >>> count(np.array([[-1.0], [0.0], [20.0], [20.5]], np.float32), edges_of([range(21)]))[0, [0, 1, -2, -1]]
    array([1, 1, 1, 1])

    Args:
      rows: [n, k].
      edges: [k, 21], see `edges_of`.

    Returns:
      int64 [k, N_BINS].
    """
    # Sorting a column costs less than comparing its values with each edge.
    columns = np.sort(rows.T, axis=1)
    lower = [np.searchsorted(column, ends) for column, ends in zip(columns, edges, strict=True)]
    return np.diff(np.array(lower, np.int64).reshape(edges.shape), axis=1, prepend=0, append=len(rows))


def training_shares(names: Sequence[str], rows: Floats, quantiles: Quantiles) -> dict[str, tuple[float, ...]]:
    """Computes the share of each bin among the rows of the training, by name of the column."""
    shares = count(rows, edges_of([quantiles[name] for name in names])) / len(rows)
    return {name: tuple(each) for name, each in zip(names, shares.tolist(), strict=True)}


def nominal_shares(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Returns the shares of the bins as the probabilities of the quantiles have them.

    A value that many rows share is several quantiles: the bins between these are empty, and the next has all.
    """
    shares = np.zeros(N_BINS)
    waiting = 0.0
    edges = edges_of([quantiles])[0]
    for i, share in enumerate(np.diff(PROBABILITIES), start=1):
        waiting += share
        if edges[i] > edges[i - 1]:
            shares[i], waiting = waiting, 0.0
    return tuple(shares.tolist())


def check_shares(quantiles: Quantiles, shares: Quantiles) -> None:
    """Checks the shares of bins as a manifest has them.

    Raises:
      ValueError: an input is unknown, or its shares are not those of N_BINS bins that hold all rows.
    """
    for name, values in shares.items():
        if name not in quantiles:
            raise ValueError(f"feature_shares: {name!r} has no feature_quantiles")
        if len(values) != N_BINS or not min(values) >= 0 or not abs(sum(values) - 1) < _TOLERANCE:
            raise ValueError(f"feature_shares: {name}: expected {N_BINS} shares that add up to 1")


@dataclass(frozen=True, eq=False)
class Bins:
    """The bins of a model.

    Attributes:
      names: of the features that are counted, and last of the score.
      columns: positions of the features among the inputs of the model.
      edges: float32 [names, 21], see `edges_of`.
      shares: of the training, [names, N_BINS].
      missing: share of the training's rows without a value, by name; unknown for others.
      every: each so-manieth row is counted.
    """

    names: tuple[str, ...]
    columns: npt.NDArray[np.intp]
    edges: Floats
    shares: npt.NDArray[np.float64]
    missing: Mapping[str, float]
    every: int

    @cached_property
    def key(self) -> str:
        """Equal for bins whose counts can be added up."""
        digest = hashlib.blake2b(self.edges.tobytes() + self.shares.tobytes(), digest_size=_DIGEST_BYTES)
        digest.update("\0".join(self.names).encode())
        return digest.hexdigest()

    def first_row(self, first_id: str) -> int:
        """Returns the first row of a batch that is counted.

        It depends on the batch alone, so that one which comes again is counted alike. Small batches have a
        row that is counted as rarely as large ones.
        """
        return zlib.crc32(first_id.encode()) % self.every

    def sample(
        self, version: str, ids: Sequence[str], rows: Floats, scores: Floats, missing: Mapping[str, int]
    ) -> Sample:
        """Takes rows that were chosen, to be counted later.

        Args:
          version: of the model that scored.
          ids: of the transactions, which name the sample.
          rows: inputs [n, inputs].
          scores: [n].
          missing: rows without a value, by name of the feature; of some features.
        """
        values = np.concatenate([rows.take(self.columns, 1), scores.astype(np.float32)[:, None]], axis=1)
        digest = hashlib.blake2b("\0".join(ids).encode(), digest_size=_DIGEST_BYTES).digest()
        without = np.zeros(len(self.names), np.int64)
        if missing:
            without[:] = [missing.get(name, 0) for name in self.names]
        return Sample(version, self, values, without, int.from_bytes(digest, "big"))


class Sample(NamedTuple):
    """Some rows of a batch, as small as it is: to count them costs most by the call.

    Attributes:
      version: of the model that scored them.
      bins: by which they are to be counted.
      values: float32 [n, names].
      missing: rows without a value, [names]; another value stands in their place.
      digest: the same for the same rows.
    """

    version: str
    bins: Bins
    values: Floats
    missing: Counts
    digest: int


class Profile(NamedTuple):
    """The counts of some rows.

    Attributes:
      version: of the model that scored them.
      bins: the bins.
      rows: how many were counted.
      counts: values by bin, [names, N_BINS].
      missing: rows without a value, [names]; what stood in their place is counted as well.
      digest: the same for the same rows, in whatever order their batches came.
    """

    version: str
    bins: Bins
    rows: int
    counts: Counts
    missing: Counts
    digest: int

    @classmethod
    def merged(cls, profiles: Sequence[Profile]) -> Profile:
        """Adds up profiles of one key, of which there is at least one."""
        first = profiles[0]
        return cls(
            first.version,
            first.bins,
            sum(each.rows for each in profiles),
            np.sum([each.counts for each in profiles], axis=0),
            np.sum([each.missing for each in profiles], axis=0),
            sum(each.digest for each in profiles) % _DIGESTS,
        )

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Profile:
        """Counts samples of one version and its bins, of which there is at least one."""
        version, bins = samples[0].version, samples[0].bins
        values = np.concatenate([each.values for each in samples])
        missing: Counts = np.sum([each.missing for each in samples], axis=0)
        digest = sum(each.digest for each in samples) % _DIGESTS
        return cls(version, bins, len(values), count(values, bins.edges), missing, digest)


class Counter:
    """Adds samples up to profiles, a profile for each version of the model and its bins."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Sample]] = {}
        self._rows = 0
        self._counted: dict[str, Profile] = {}

    def add(self, sample: Sample) -> None:
        """Adds a sample; it is counted when there are enough rows to make the call worth it."""
        key = _key(sample)
        self._waiting.setdefault(key, []).append(sample)
        self._rows += len(sample.values)
        if self._rows >= _AT_ONCE:
            self._count()

    def merge(self, profiles: Iterable[Profile]) -> None:
        """Adds profiles."""
        for profile in profiles:
            key = _key(profile)
            known = self._counted.get(key)
            self._counted[key] = Profile.merged([known, profile]) if known else profile

    def take(self) -> dict[str, Profile]:
        """Returns the profiles by a key that is equal for those that can be added up, and begins anew."""
        self._count()
        taken, self._counted = self._counted, {}
        return taken

    def _count(self) -> None:
        self.merge([Profile.of(samples) for samples in self._waiting.values()])
        self._waiting, self._rows = {}, 0


def _key(counted: Sample | Profile) -> str:
    return f"{counted.version} {counted.bins.key}"

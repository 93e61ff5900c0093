"""Splits of the protocol: by row, and by time where the first part trains and the rest is judged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from model import data

SplitKind = Literal["row", "time"]
SPLIT_KINDS: Final[tuple[SplitKind, ...]] = get_args(SplitKind)
FIRST_PART: Final = (0.4, 0.6)
"""Shares of the rows between which the cut of a split by time lies."""
_GOLDEN: Final = (5**0.5 - 1) / 2
_MOST_FRAUDS: Final = 0.1
"""Share of a sample that frauds may have, unless the data has more."""

Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class JudgedSplit:
    """Row numbers of one split.

    Attributes:
      kind: how rows come into the parts.
      number: of the split, from 0 on. It is also the seed of training and baselines.
      train: rows of which the normals train.
      validation: rows that stop the training, and choose the settings of the baselines.
      judged: rows that neither has seen.
      cut: share of the rows before the cut of a split by time, otherwise None.
    """

    kind: SplitKind
    number: int
    train: Numbers
    validation: Numbers
    judged: Numbers
    cut: float | None = None

    @property
    def name(self) -> str:
        """Names the split, also in files."""
        return f"{self.kind}-{self.number:02}"

    @property
    def digest(self) -> str:
        """Identifies its rows."""
        parts = (self.train, self.validation, self.judged)
        return hashlib.sha256(b"|".join(part.astype(np.int64).tobytes() for part in parts)).hexdigest()


def usual_kinds(dataset: data.Dataset) -> tuple[SplitKind, ...]:
    """Returns the kinds of split that suit the data.

    A row's history continues that of earlier rows, so that a split by row would train on what it judges.
    """
    if dataset.times is None:
        return ("row",)
    return ("time",) if dataset.spec.history else SPLIT_KINDS


def split(dataset: data.Dataset, kind: SplitKind, number: int) -> JudgedSplit:
    """Makes a split; the same data, kind and number give the same one.

    Equal rows stay together by row. By time, a judged row that equals an earlier one is left out.

    Raises:
      DataError: too few rows, none with times for a split by time, or judged rows of one class only.
    """
    judged_split = _by_row(dataset, number) if kind == "row" else _by_time(dataset, number)
    is_normal = dataset.is_normal[judged_split.judged]
    if is_normal.all() or not is_normal.any():
        raise data.DataError(
            f"--protocol: expected frauds and normals among the judged rows of split {judged_split.name}, "
            f"got {int((~is_normal).sum())} frauds of {len(is_normal)} rows: use more data, or --by=row"
        )
    return judged_split


def _by_row(dataset: data.Dataset, number: int) -> JudgedSplit:
    parts = data.split(dataset, number)
    return JudgedSplit("row", number, parts.train, parts.validation, parts.test)


def _by_time(dataset: data.Dataset, number: int) -> JudgedSplit:
    if dataset.times is None:
        raise data.DataError("--by=time: expected rows with an event time, got none: pass --by=row")
    low, high = FIRST_PART
    # The fractional parts of multiples of the golden ratio spread evenly, however many there are.
    cut = low + (high - low) * ((0.5 + number * _GOLDEN) % 1)
    order = np.argsort(dataset.times, kind="stable")
    early, late = np.split(order, [int(cut * len(order))])
    _, group = np.unique(dataset.keys, axis=0, return_inverse=True)
    late = late[~np.isin(group[late], group[early])]
    parts = data.split(dataset.taken(early), number)
    train = early[np.concatenate([parts.train, parts.test])]
    return JudgedSplit("time", number, np.sort(train), np.sort(early[parts.validation]), np.sort(late), cut)


def sample(dataset: data.Dataset, rows: int, seed: int) -> data.Dataset:
    """Draws at most so many rows: all frauds, where they are at most a tenth of them, and normals.

    The figures weight the normals to the share of frauds in the whole data, so that the sample does not
    change what they mean.
    """
    if len(dataset.features) <= rows:
        return dataset
    rng = np.random.default_rng(seed)
    frauds, normals = (np.flatnonzero(mask) for mask in (~dataset.is_normal, dataset.is_normal))
    share = max(_MOST_FRAUDS, len(frauds) / len(dataset.features))
    frauds = rng.permutation(frauds)[: int(share * rows)]
    normals = rng.permutation(normals)[: rows - len(frauds)]
    return dataset.taken(np.sort(np.concatenate([frauds, normals])))

"""The plan of a history: which numbers are kept for a key, and which features are made of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Final

from features.checks import HALF_LIFE
from features.declaration import Feature, FeatureSpec

FORMAT: Final = 1
"""Of the state: a change of the layout or of the hashes needs another one."""
FORGET_HALF_LIVES: Final = 10
"""A key that was not seen for so many of its longest half-lives begins anew: 0.1 % would be left."""
SINCE_LAST_MOST: Final = 90 * 86_400
"""Seconds: a longer time since the last transaction, or none, counts as this."""
SKETCH_ROWS: Final = 2
SKETCH_CELLS: Final = 8
"""A share is estimated from so many rows of so many decayed counts."""
DEVIATION_SUMS: Final = 3
"""Robust sums that a deviation needs beside the plain ones."""
NOVELTY_WORDS: Final = 4
"""Words of 64 bits in each of the two generations of the set of a novelty."""
NOVELTY_HASHES: Final = 3
"""Bits that a value sets."""

_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}
_MICROS: Final = 1_000_000
_DECAYED: Final = {
    "count": ("count",),
    "sum": ("sum",),
    "mean": ("present", "sum"),
    "deviation": ("present", "sum"),
    "novelty": ("count",),
    "share": ("present",),
}
"""By statistic: the decayed sums that it is made of. All but count are of a field, without missing values."""


@dataclass(frozen=True, order=True)
class Decayed:
    """A decayed sum in the state.

    Attributes:
      half_life: in microseconds.
      what: "count" adds 1 a transaction, "present" 1 a value, "sum" the value.
      of: the field, "" for a count.
    """

    half_life: int
    what: str
    of: str = ""


@dataclass(frozen=True)
class Sketch:
    """The counts of values, the set of values, or the robust sums, of a field in the state.

    Attributes:
      of: the field.
      half_life: of the counts and sums, or the length of a generation of the set; in microseconds.
      start: its first column or word.
    """

    of: str
    half_life: int
    start: int


@dataclass(frozen=True)
class Plan:
    """The features of one kind of key, and the state that they need. It is hashable, and goes through pickle.

    Attributes:
      key: the field whose values are the keys; None for the account.
      features: the history features, in the order of the spec.
      columns: their positions among the inputs of the model.
    """

    key: str | None
    features: tuple[Feature, ...]
    columns: tuple[int, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in the order of the columns of values."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Fields with numbers."""
        return self._fields(("sum", "mean", "deviation"))

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Fields with categories."""
        return self._fields(("novelty", "share"))

    def _fields(self, statistics: tuple[str, ...]) -> tuple[str, ...]:
        fields = (feature.of for feature in self.features if feature.statistic in statistics)
        return tuple(dict.fromkeys(field for field in fields if field is not None))

    @cached_property
    def decayed(self) -> tuple[Decayed, ...]:
        """The decayed sums of a key, the first columns of its state; those of a half-life are together."""
        return tuple(
            sorted(
                {
                    Decayed(half_life(feature), what, "" if what == "count" else feature.of or "")
                    for feature in self.features
                    for what in _DECAYED.get(feature.statistic or "", ())
                }
            )
        )

    @cached_property
    def deviations(self) -> tuple[Sketch, ...]:
        """The robust sums, after the plain: deviations; then bounded values, and their deviations."""
        return self._sketches("deviation", len(self.decayed), DEVIATION_SUMS)

    @cached_property
    def shares(self) -> tuple[Sketch, ...]:
        """The counts of values, after the sums."""
        start = len(self.decayed) + len(self.deviations) * DEVIATION_SUMS
        return self._sketches("share", start, SKETCH_ROWS * SKETCH_CELLS)

    @cached_property
    def novelties(self) -> tuple[Sketch, ...]:
        """The sets of values, in words of bits: those of the present generation, then of the one before."""
        return self._sketches("novelty", 0, 2 * NOVELTY_WORDS)

    def _sketches(self, statistic: str, start: int, size: int) -> tuple[Sketch, ...]:
        kinds = dict.fromkeys(
            (feature.of or "", half_life(feature))
            for feature in self.features
            if feature.statistic == statistic
        )
        return tuple(Sketch(of, half, start + i * size) for i, (of, half) in enumerate(kinds))

    @cached_property
    def width(self) -> int:
        """Numbers in the state of a key."""
        sums = len(self.decayed) + len(self.deviations) * DEVIATION_SUMS
        return sums + len(self.shares) * SKETCH_ROWS * SKETCH_CELLS

    @cached_property
    def words(self) -> int:
        """Words of 64 bits in the state of a key."""
        return len(self.novelties) * 2 * NOVELTY_WORDS

    @cached_property
    def half_lives(self) -> tuple[int, ...]:
        """The half-lives, in microseconds, in order."""
        return tuple(sorted({half_life(f) for f in self.features if f.half_life is not None}))

    @cached_property
    def horizon(self) -> int:
        """Microseconds: a key that was not seen for longer is a new one."""
        least = SINCE_LAST_MOST * _MICROS if any(f.statistic == "since_last" for f in self.features) else 0
        return max(least, FORGET_HALF_LIVES * max(self.half_lives, default=0))

    @cached_property
    def version(self) -> str:
        """16 hexadecimal digits that are equal where the layout of the state is."""
        layout = {
            "format": FORMAT,
            "key": self.key,
            "decayed": [asdict(sum_) for sum_ in self.decayed],
            "deviations": [asdict(sketch) for sketch in self.deviations],
            "shares": [asdict(sketch) for sketch in self.shares],
            "novelties": [asdict(sketch) for sketch in self.novelties],
            "sizes": [DEVIATION_SUMS, SKETCH_ROWS, SKETCH_CELLS, NOVELTY_WORDS, NOVELTY_HASHES],
        }
        return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()[:16]


def half_life(feature: Feature) -> int:
    """Returns the half-life of a history feature in microseconds; 0 where it has none."""
    return _micros(feature.half_life or "")


@cache
def _micros(half_life: str) -> int:
    match = HALF_LIFE.fullmatch(half_life)
    return int(match[1]) * _SECONDS[match[2]] * _MICROS if match else 0


def plans(spec: FeatureSpec) -> tuple[Plan, ...]:
    """Makes the plans of a spec, one for each kind of key, in the order of the spec.

    >>> spec = FeatureSpec.from_json({"features": [
    ...     {"name": "amount", "kind": "number"},
    ...     {"name": "level", "kind": "history", "statistic": "deviation", "of": "amount", "by": "account",
    ...      "half_life": "30d"}]})
    >>> [(plan.key, plan.names, plan.columns, plan.numbers, plan.width) for plan in plans(spec)]
    [(None, ('level',), (1,), ('amount',), 5)]
    """
    positions = {name: position for position, name in enumerate(spec.inputs)}
    made = []
    for key in dict.fromkeys(feature.by for feature in spec.history):
        features = tuple(feature for feature in spec.history if feature.by == key)
        made.append(Plan(key, features, tuple(positions[feature.name] for feature in features)))
    return tuple(made)

"""The learnt part of a feature spec: rarities of categories and medians, as the manifest carries them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from features.declaration import FeatureSpec, SpecError
from features.kinds import MEDIAN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Encoded(NamedTuple):
    """Transactions as inputs of the network.

    Attributes:
      inputs: float32 [n, inputs]; NaN in the rows that are refused.
      reasons: position of a refused row -> the reason, which names the field.
    """

    inputs: npt.NDArray[np.float32]
    reasons: dict[int, str]


@dataclass(frozen=True)
class Rarity:
    """The rarities of a category's values: the negative logarithms of their smoothed frequencies.

    Attributes:
      values: those that are kept, the most frequent first.
      rarities: one for each of them.
      other: rarity of every other value, seen in training or not; it is the largest.
      missing: rarity of a missing value.
    """

    values: tuple[str, ...]
    rarities: tuple[float, ...]
    other: float
    missing: float

    @classmethod
    def of_counts(cls, counts: Mapping[str, int], n_missing: int, keep: int) -> Rarity:
        """Makes the rarities of counted values. Equally frequent ones are kept in the order of their text.

        >>> rarity = Rarity.of_counts({"grocery": 6, "fuel": 1, "jewels": 1}, n_missing=0, keep=1)
        >>> rarity.values, round(rarity.rarities[0], 3), round(rarity.other, 3)
        (('grocery',), 0.619, 2.565)
        """
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept, rest = ranked[:keep], ranked[keep:]
        # One for each value, for a missing one, and for those that nobody has seen.
        total = sum(counts.values()) + n_missing + len(counts) + 2
        n_rest = sum(count for _, count in rest)
        return cls(
            tuple(value for value, _ in kept),
            tuple(math.log(total / (count + 1)) for _, count in kept),
            # The mean frequency of what is not kept, an unseen value among it.
            math.log(total * (len(rest) + 1) / (n_rest + 1)),
            math.log(total / (n_missing + 1)),
        )


@dataclass(frozen=True)
class Learnt:
    """The parameters of the encoding that training learns.

    Attributes:
      categories: name of a feature of kind category -> its rarities.
      medians: name of a feature with `missing: median` -> the median of the training rows.
    """

    categories: Mapping[str, Rarity] = field(default_factory=dict)
    medians: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "categories": {
                name: {
                    "values": list(rarity.values),
                    "rarities": list(rarity.rarities),
                    "other": rarity.other,
                    "missing": rarity.missing,
                }
                for name, rarity in self.categories.items()
            },
            "medians": dict(self.medians),
        }

    @classmethod
    def from_json(cls, content: Any) -> Learnt:
        """Reads what `to_json` made.

        Raises:
          SpecError: a part is missing or of another kind.
        """
        try:
            categories = {
                str(name): Rarity(
                    tuple(map(str, entry["values"])),
                    tuple(map(_finite, entry["rarities"])),
                    _finite(entry["other"]),
                    _finite(entry["missing"]),
                )
                for name, entry in content["categories"].items()
            }
            medians = {str(name): _finite(value) for name, value in content["medians"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(("learnt",), f"expected categories and medians, got {error!r}") from error
        for name, rarity in categories.items():
            if len(rarity.values) != len(rarity.rarities):
                raise SpecError(("learnt", "categories", name), "expected a rarity for each of the values")
        return cls(categories, medians)

    def check(self, spec: FeatureSpec) -> None:
        """Checks that everything is there that `spec` needs.

        Raises:
          SpecError: the rarities or the median of a feature are missing.
        """
        for feature in spec.features:
            if feature.kind == "category" and feature.name not in self.categories:
                raise SpecError(("learnt", "categories"), f"expected the rarities of {feature.name!r}")
            if feature.missing == MEDIAN and feature.name not in self.medians:
                raise SpecError(("learnt", "medians"), f"expected the median of {feature.name!r}")


NOTHING = Learnt()
"""For a spec that has nothing to learn, such as the default."""


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number

"""The kinds of features, one entry each: what a spec may say of them, and how many inputs they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REJECT = "reject"
"""A transaction without a value is refused, and becomes a dead letter."""
MEDIAN = "median"
"""The median of the training rows takes the place of a value that is missing."""
OWN = "own"
"""A missing value is a category of its own, with a rarity as others have."""


@dataclass(frozen=True)
class Kind:
    """A kind of features.

    Attributes:
      value: the type of its field: "number", "boolean", "category" or "time".
      suffixes: what follows the name of the feature in the names of its inputs, one an input.
      options: keys that a feature of this kind may have, beside name, kind and use.
      missing: words that `missing` may have.
      takes_number: `missing` may also be a number.
    """

    value: str
    suffixes: tuple[str, ...] = ("",)
    options: tuple[str, ...] = ("from", "missing")
    missing: tuple[str, ...] = (REJECT,)
    takes_number: bool = False

    def missing_problem(self, value: Any) -> str:
        """Returns the values that `missing` may have, or "" where `value` is one of them."""
        is_number = isinstance(value, float) and abs(value) <= MOST
        if value in self.missing or (self.takes_number and is_number):
            return ""
        return ", ".join(self.missing) + (" or a number" if self.takes_number else "")


MOST = 3.4028234663852886e38
"""The largest number of float32."""

_AROUND = ("_sin", "_cos")

KINDS: dict[str, Kind] = {
    "number": Kind(
        "number", options=("from", "missing", "scale"), missing=(REJECT, MEDIAN), takes_number=True
    ),
    "boolean": Kind("boolean", missing=(REJECT, MEDIAN), takes_number=True),
    "category": Kind("category", options=("from", "missing", "keep"), missing=(REJECT, OWN)),
    "time_of_day": Kind("time", _AROUND, options=("timezone",)),
    "day_of_week": Kind("time", _AROUND, options=("timezone",)),
}
"""By the word that a spec has for it."""

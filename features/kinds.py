"""The kinds of features, one entry each: what a spec may say of them, and how many inputs they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HISTORY = "history"
"""The kind of the statistics of earlier transactions."""
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
    HISTORY: Kind("number", options=("statistic", "of", "by", "half_life", "scale")),
}
"""By the word that a spec has for it."""


@dataclass(frozen=True)
class Statistic:
    """A statistic of the earlier transactions of a key, for features of kind history.

    Attributes:
      of: the type of the field that it is made of, "number" or "category"; None where it is made of none.
      half_life: the usual one, such as "90d"; "" where the spec has to say it, None where there is none.
      text: its meaning, with {of} and {by} for fields.
    """

    of: str | None
    half_life: str | None
    text: str


STATISTICS: dict[str, Statistic] = {
    "count": Statistic(None, "", "how many transactions this {by} makes"),
    "sum": Statistic("number", "", "the sum of {of} of this {by}"),
    "mean": Statistic("number", "", "the mean {of} of this {by}"),
    "since_last": Statistic(None, None, "seconds since the last transaction of this {by}"),
    "deviation": Statistic("number", "", "deviations of {of} from the level of this {by}"),
    "novelty": Statistic("category", "90d", "{of} is new for this {by}"),
    "share": Statistic("category", "", "share of {of} among the transactions of this {by}"),
}
"""By the word that a spec has for it."""

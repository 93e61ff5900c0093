"""The reasons of an alert as one line of text, for tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def reasons(top_features: Iterable[Mapping[str, Any]]) -> str:
    """Writes the features that contribute most, each with the value that the transaction had.

    Values are text of strangers: whoever shows the line escapes it.

    >>> reasons([{"feature": "country", "contribution": 7.5, "value": "NZ"}])
    'country: NZ (+7.50)'
    >>> level = "amount is 6.1 deviations over this account's 30-day level"
    >>> reasons([{"feature": "amount_level", "contribution": 6.0, "value": level}])
    "amount_level: amount is 6.1 deviations over this account's 30-day level (+6.00)"

    Args:
      top_features: of a row of scores or alerts; `value` is null below severity medium, and in old rows. Of
        a history feature it is a clause, made where the row was scored: a table does not know the spec.
    """
    return "; ".join(_reason(each) for each in top_features)


def _reason(each: Mapping[str, Any]) -> str:
    name, value, share = str(each["feature"]), value_text(each.get("value")), _share(each["contribution"])
    return " ".join(part for part in (f"{name}: {value}" if value else name, share) if part)


def value_text(value: Any) -> str:
    """Writes the value of a feature; "" where it is not known."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _share(contribution: float | None) -> str:
    return "" if contribution is None or not math.isfinite(contribution) else f"({contribution:+.2f})"

"""Says in words what a feature is, and what its value in a transaction means: for alerts and reports."""

from __future__ import annotations

import math
from typing import Any, Final

from features.declaration import ACCOUNT, Feature
from features.kinds import HISTORY, STATISTICS

_UNITS: Final = {"m": "minute", "h": "hour", "d": "day"}


def meaning(feature: Feature) -> str:
    """Says what a feature is.

    >>> meaning(Feature("level", "history", "level", statistic="deviation", of="amount", half_life="30d"))
    'deviations of amount from the level of this account, half-life 30 days'
    """
    if feature.kind != HISTORY:
        return f"{feature.kind} {feature.source}" if feature.source != feature.name else feature.kind
    text = STATISTICS[feature.statistic or ""].text.format(of=feature.of, by=feature.by or ACCOUNT)
    return f"{text}, half-life {_period(feature)}" if feature.half_life else text


def explain(feature: Feature, value: Any) -> str:
    """Says what the value of a feature means, in a clause that stands alone.

    >>> level = Feature("level", "history", "level", statistic="deviation", of="amount", half_life="30d")
    >>> explain(level, 6.14)
    "amount is 6.1 deviations over this account's 30-day level"
    >>> explain(Feature("shop", "history", "shop", statistic="novelty", of="merchant.name"), 0.97)
    'first time this account has this merchant.name'

    Args:
      feature: its declaration.
      value: of the field, as a message has it; of a history feature, the number.
    """
    if feature.kind != HISTORY or not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"{feature.name} is {'missing' if value is None else _plain(value)}"
    by, of = feature.by or ACCOUNT, feature.of
    statistic = feature.statistic
    if statistic == "deviation":
        side = "over" if value >= 0 else "under"
        return f"{of} is {abs(value):.1f} deviations {side} this {by}'s {_period(feature, '-')} level"
    if statistic == "novelty":
        if value > 0:
            return f"first time this {by} has this {of}"
        return f"this {by} is new or has had this {of}"
    if statistic == "since_last":
        return f"{_duration(value)} since this {by}'s last transaction"
    if statistic == "share":
        return f"this {of} is {_percent(value)} of this {by}'s transactions"
    window = f"at a half-life of {_period(feature)}"
    if statistic == "count":
        return f"this {by} has {value:.3g} earlier transactions, {window}"
    word = "the sum of" if statistic == "sum" else "the mean"
    return f"{word} {of} of this {by} is {_plain(value)}, {window}"


def _period(feature: Feature, joint: str = " ") -> str:
    """The half-life in words: "30 days", or "30-day" with a hyphen for the joint."""
    text = feature.half_life or ""
    unit = _UNITS.get(text[-1:], "")
    plural = "" if joint == "-" or text[:-1] == "1" else "s"
    return f"{text[:-1]}{joint}{unit}{plural}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """A duration in its largest unit.

    >>> _duration(45), _duration(5400), _duration(7776000)
    ('45 s', '1.5 hours', '90 days')
    """
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

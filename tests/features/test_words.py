"""A feature and its value as words."""

from __future__ import annotations

from typing import Any

import pytest

from features.declaration import Feature, FeatureSpec
from features.words import explain, meaning


def _feature(statistic: str, **more: Any) -> Feature:
    entry = {"name": "x", "kind": "history", "statistic": statistic, "by": "account", **more}
    return FeatureSpec.from_json({"features": [entry]}).features[0]


@pytest.mark.parametrize(
    ("feature", "value", "text"),
    [
        (
            _feature("deviation", of="amount", half_life="30d"),
            6.13,
            "amount is 6.1 deviations over this account's 30-day level",
        ),
        (
            _feature("deviation", of="amount", half_life="12h"),
            -2.0,
            "amount is 2.0 deviations under this account's 12-hour level",
        ),
        (_feature("novelty", of="shop.country"), 0.9, "first time this account has this shop.country"),
        (_feature("novelty", of="shop.country"), 0.0, "this account is new or has had this shop.country"),
        (
            _feature("share", of="mcc", half_life="90d"),
            0.0213,
            "this mcc is 2.13 % of this account's transactions",
        ),
        (_feature("since_last", by="terminal"), 5400.0, "1.5 hours since this terminal's last transaction"),
        (
            _feature("count", half_life="1d"),
            12.34,
            "this account has 12.3 earlier transactions, at a half-life of 1 day",
        ),
        (
            _feature("sum", of="amount", half_life="7d"),
            1234.5,
            "the sum of amount of this account is 1234.5, at a half-life of 7 days",
        ),
        (
            _feature("mean", of="amount", half_life="90m"),
            20.0,
            "the mean amount of this account is 20, at a half-life of 90 minutes",
        ),
        (_feature("count", half_life="1d"), None, "x is missing"),
        (Feature("risk", "number", "risk"), 3, "risk is 3"),
        (Feature("present", "boolean", "present"), False, "present is false"),
    ],
)
def test_a_value_is_explained(feature: Feature, value: Any, text: str) -> None:
    assert explain(feature, value) == text


def test_each_statistic_has_a_meaning() -> None:
    assert meaning(_feature("share", of="mcc", half_life="90d")) == (
        "share of mcc among the transactions of this account, half-life 90 days"
    )
    assert meaning(_feature("since_last")) == "seconds since the last transaction of this account"

"""The kinds of fraud that the generator plants: one entry in KINDS each.

A kind never shows in a payload. It travels as the message attribute `planted_kind`, for checking afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from features.ulb import AMOUNT_INDEX
from model.synthetic.parameters import COMPONENT_SLICE, Floats, Parameters, rounded

Draw = Callable[[Parameters, Floats, np.random.Generator], Floats]
"""From times in seconds [n] to features [n, 30]."""

BURST_SIZES: Final = (5, 12)
"""Least and greatest number of transactions of a burst."""
BURST_GAP_SECONDS: Final = 5.0
COMPROMISED_MERCHANTS: Final = 3


@dataclass(frozen=True)
class FraudKind:
    """One kind of planted fraud.

    Attributes:
      name: as in the attribute `planted_kind`.
      description: one line.
      draw: makes the features.
      burst: several in a row on one account, at most BURST_GAP_SECONDS apart.
      at_compromised_merchant: takes place at one of the first COMPROMISED_MERCHANTS merchants of the pool.
    """

    name: str
    description: str
    draw: Draw
    burst: bool = False
    at_compromised_merchant: bool = False


def _stolen_card(parameters: Parameters, times: Floats, rng: np.random.Generator) -> Floats:
    return parameters.draw_frauds(times, rng)


def _card_testing(parameters: Parameters, times: Floats, rng: np.random.Generator) -> Floats:
    features = parameters.draw_frauds(times, rng)
    features[:, AMOUNT_INDEX] = np.round(rng.uniform(0.0, 2.0, len(times)), 2)
    return features


def _amount_spike(parameters: Parameters, times: Floats, rng: np.random.Generator) -> Floats:
    features = parameters.normal.draw(times, rng)
    spiked = features[:, AMOUNT_INDEX] * rng.uniform(50.0, 300.0, len(times))
    features[:, AMOUNT_INDEX] = np.clip(spiked, rng.uniform(5_000.0, 10_000.0, len(times)), 30_000.0)
    return rounded(features)


_SHIFTED_COMPONENTS: Final = {"V3": -1.0, "V4": 1.0, "V11": 1.0, "V13": -1.0, "V19": 1.0, "V24": -1.0}


def _merchant_compromise(parameters: Parameters, times: Floats, rng: np.random.Generator) -> Floats:
    features = parameters.normal.draw(times, rng)
    sizes = rng.uniform(4.0, 7.0, len(times))
    for name, sign in _SHIFTED_COMPONENTS.items():
        component = int(name[1:]) - 1
        features[:, COMPONENT_SLICE.start + component] += sign * sizes * parameters.basis.scale[component]
    return rounded(features)


def _hidden_combination(parameters: Parameters, times: Floats, rng: np.random.Generator) -> Floats:
    features = parameters.normal.draw(times, rng)
    # The sign is that of real frauds: they lie on one side of the first plane only.
    distance = rng.uniform(1.5, 3.0, (len(times), 1))
    features[:, COMPONENT_SLICE] -= distance * parameters.basis.planes[0]
    return rounded(features)


KINDS: Final[dict[str, FraudKind]] = {
    kind.name: kind
    for kind in (
        FraudKind(
            "stolen_card",
            "drawn from the distribution of real frauds",
            _stolen_card,
        ),
        FraudKind(
            "card_testing",
            "a burst of 5 to 12 on one account, seconds apart, amounts up to 2.00; otherwise as stolen_card",
            _card_testing,
            burst=True,
        ),
        FraudKind(
            "amount_spike",
            "a normal, but its amount is 50 to 300 times as large, 5,000 to 30,000",
            _amount_spike,
        ),
        FraudKind(
            "merchant_compromise",
            "at one of three merchants; six components are 4 to 7 robust standard deviations off",
            _merchant_compromise,
            at_compromised_merchant=True,
        ),
        FraudKind(
            "hidden_combination",
            "every value is usual on its own; only the combination, which normals all but never show, is not",
            _hidden_combination,
        ),
    )
}

"""The spec of the ULB table, the default: 30 numbers."""

from __future__ import annotations

from features.declaration import Feature, FeatureSpec
from features.roles import Roles
from features.ulb import AMOUNT, FEATURES, LABEL, TIME


def _feature(name: str) -> Feature:
    return Feature(
        name,
        "number",
        name,
        scale="log" if name == AMOUNT else "linear",
        use="reconstruction" if name == TIME else "score",
    )


ULB = FeatureSpec(tuple(map(_feature, FEATURES)), Roles(amount=AMOUNT, label=LABEL))
"""Time, V1..V28 and Amount. Time is reconstructed and not scored, the amount is scored on a log scale."""

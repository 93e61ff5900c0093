"""What a deployment costs an hour.

List prices of online prediction on Vertex AI in us-central1, in US dollars an hour, on demand, without
discounts, as published in 2025 at https://cloud.google.com/vertex-ai/pricing. Other regions differ.
"""

from __future__ import annotations

import re
from typing import Final

PRICE_PAGE: Final = "https://cloud.google.com/vertex-ai/pricing"
_PER_VCPU: Final = {
    "e2-standard": 0.0770564 / 2,
    "n1-standard": 0.1095 / 2,
    "n2-standard": 0.1117 / 2,
}
_ACCELERATORS: Final = {
    "NVIDIA_TESLA_T4": 0.4025,
    "NVIDIA_TESLA_P4": 0.69,
    "NVIDIA_TESLA_P100": 1.679,
    "NVIDIA_TESLA_V100": 2.852,
}


def hourly_price(
    machine_type: str, accelerator_type: str | None = None, accelerators: int = 0
) -> float | None:
    """US dollars an hour for one replica; None where the list here does not have it."""
    match = re.fullmatch(r"([a-z0-9]+-[a-z]+)-(\d+)", machine_type)
    if not match or match[1] not in _PER_VCPU:
        return None
    price = _PER_VCPU[match[1]] * int(match[2])
    if accelerator_type:
        if accelerator_type not in _ACCELERATORS:
            return None
        price += _ACCELERATORS[accelerator_type] * accelerators
    return price


def describe(
    machine_type: str,
    least: int,
    most: int,
    accelerator_type: str | None = None,
    accelerators: int = 0,
) -> str:
    """One sentence on what replicas of this kind cost, with the reminder that idle ones cost the same."""
    price = hourly_price(machine_type, accelerator_type, accelerators)
    kind = machine_type + (f" with {accelerators} {accelerator_type}" if accelerator_type else "")
    reminder = "A deployed model bills by the hour, idle or not, until it is undeployed"
    if price is None:
        return f"{least} to {most} replica(s) of {kind}: price not known here, see {PRICE_PAGE}. {reminder}."
    span = f"${price * least:.2f} an hour, ${price * least * 730:,.0f} a month"
    if most > least:
        span += f" (up to ${price * most:.2f} an hour at {most} replicas)"
    about = f"{least} replica(s) of {kind}: about {span}; list price of us-central1, see {PRICE_PAGE}"
    return f"{about}. {reminder}."

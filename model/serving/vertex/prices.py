"""The cost of a deployment, by the list prices of online prediction on Vertex AI."""

from __future__ import annotations

import re

from common.prices import HOURS_A_MONTH, load_prices


def hourly_price(
    machine_type: str, accelerator_type: str | None = None, accelerators: int = 0
) -> float | None:
    """Computes US dollars an hour for one replica; None where a price is not known.

    >>> hourly_price("n1-standard-2")
    0.1095
    """
    prices = load_prices()["vertex_ai"]
    match = re.fullmatch(r"([a-z0-9]+-[a-z]+)-(\d+)", machine_type)
    if not match or match[1] not in prices["vcpu_hour"]:
        return None
    price = prices["vcpu_hour"][match[1]] * int(match[2])
    if accelerator_type:
        if accelerator_type not in prices["accelerator_hour"]:
            return None
        price += prices["accelerator_hour"][accelerator_type] * accelerators
    return float(price)


def describe(
    machine_type: str,
    least: int,
    most: int,
    accelerator_type: str | None = None,
    accelerators: int = 0,
) -> str:
    """Writes what replicas of this kind cost, with the reminder that idle ones cost the same.

    >>> describe("n1-standard-2", 0, 1).split(";")[0]
    '0 to 1 replica(s) of n1-standard-2: nothing while none runs, about $0.11 an hour a replica'
    """
    price = hourly_price(machine_type, accelerator_type, accelerators)
    kind = machine_type + (f" with {accelerators} {accelerator_type}" if accelerator_type else "")
    reminder = "A deployed model bills by the hour, idle or not, until it is undeployed"
    page = load_prices()["sources"]["vertex_ai"]
    if price is None:
        return f"{least} to {most} replica(s) of {kind}: price not known here, see {page}. {reminder}."
    note = f"list price of {load_prices()['region']}, {load_prices()['date']}, see {page}"
    if least == 0:
        span = f"nothing while none runs, about ${price:.2f} an hour a replica"
        return f"0 to {most} replica(s) of {kind}: {span}; {note}."
    span = f"${price * least:.2f} an hour, ${price * least * HOURS_A_MONTH:,.0f} a month"
    if most > least:
        span += f" (up to ${price * most:.2f} an hour at {most} replicas)"
    return f"{least} replica(s) of {kind}: about {span}; {note}. {reminder}."

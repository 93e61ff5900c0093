"""List prices of Google Cloud, from one dated file: prices.json."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, Final

HOURS_A_MONTH: Final = 730


@cache
def load_prices() -> dict[str, Any]:
    """Reads the prices, with their date, region and sources."""
    return dict(json.loads(resources.files("common").joinpath("prices.json").read_text(encoding="utf-8")))


def price_note() -> str:
    """Names region, unit and date of the prices, for people."""
    prices = load_prices()
    return f"{prices['region']}, {prices['unit']}, as of {prices['date']}; look up today's"

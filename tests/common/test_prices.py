from __future__ import annotations

import re

from common.prices import load_prices, price_note


def test_the_prices_have_a_date_and_a_source():
    prices = load_prices()
    assert re.fullmatch(r"20\d\d-[01]\d", prices["date"])
    assert all(url.startswith("https://cloud.google.com/") for url in prices["sources"].values())
    assert f"as of {prices['date']}" in price_note()


def test_every_price_is_a_positive_number():
    prices = load_prices()
    groups = (*prices["vertex_ai"].values(), prices["pipelines"])
    assert all(price > 0 for group in groups for price in group.values())

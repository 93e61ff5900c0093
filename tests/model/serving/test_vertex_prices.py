from __future__ import annotations

import pytest

from model.serving.vertex import prices


@pytest.mark.parametrize(
    ("machine", "accelerator", "n", "price"),
    [
        ("n1-standard-2", None, 0, 0.1095),
        ("n1-standard-8", None, 0, 0.438),
        ("e2-standard-4", None, 0, 0.1541128),
        ("n1-standard-4", "NVIDIA_TESLA_T4", 2, 1.024),
        ("a3-highgpu-8g", None, 0, None),
        ("n1-standard-4", "NVIDIA_L4", 1, None),
        ("nonsense", None, 0, None),
    ],
)
def test_prices(machine, accelerator, n, price):
    actual = prices.hourly_price(machine, accelerator, n)
    assert actual == (None if price is None else pytest.approx(price))


def test_an_unknown_price_still_reminds():
    text = prices.describe("a3-highgpu-8g", 1, 2)
    assert "price not known here" in text
    assert "idle or not" in text

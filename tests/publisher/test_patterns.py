"""Load patterns: literal rates, and that what is due is the integral of the rate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher import patterns


@pytest.mark.parametrize(
    ("pattern", "time", "rate", "due"),
    [
        (patterns.make("constant", 50, None, 60, None), 3.0, 50, 150),
        (patterns.make("ramp", 0, 100, 10, None), 0.0, 0, 0),
        (patterns.make("ramp", 0, 100, 10, None), 5.0, 50, 125),
        (patterns.make("ramp", 0, 100, 10, None), 20.0, 100, 1500),
        (patterns.make("ramp", 100, 20, 10, None), 10.0, 20, 600),
        (patterns.make("spike", 10, 110, 20, 4), 7.9, 10, 79),
        (patterns.make("spike", 10, 110, 20, 4), 8.0, 110, 80),
        (patterns.make("spike", 10, 110, 20, 4), 12.0, 10, 520),
        (patterns.make("spike", 10, 110, 20, None), 20.0, 10, 400),
        (patterns.make("burst", 10, 100, 20, 5), 2.0, 100, 200),
        (patterns.make("burst", 10, 100, 20, 5), 19.0, 0, 500),
        (patterns.make("burst", 10, 100, 20, 5), 20.0, 100, 500),
        (patterns.make("burst", 10, 100, 20, 5), 47.0, 0, 1500),
    ],
)
def test_rate_and_due(pattern, time, rate, due):
    assert pattern.rate(time) == rate
    assert pattern.due(time) == pytest.approx(due)


def test_rate_zero_is_as_fast_as_possible():
    pattern = patterns.make("constant", 0, None, 60, None)
    assert pattern.rate(1.0) == math.inf
    assert pattern.due(0.0) == 0.0
    assert pattern.due(1e-9) == math.inf


@given(
    name=st.sampled_from(patterns.PATTERNS),
    rate=st.floats(0.1, 1e4),
    peak=st.floats(0.1, 1e4),
    period=st.floats(0.5, 100),
    width=st.floats(0.1, 0.9),
    end=st.floats(0.0, 300, allow_subnormal=False),  # a step of a subnormal end would be rounded to 0
)
def test_due_is_the_integral_of_the_rate(name, rate, peak, period, width, end):
    pattern = patterns.make(name, rate, peak, period, width * period)
    steps = np.linspace(0, end, 20_001)
    middles = (steps[:-1] + steps[1:]) / 2
    integral = sum(map(pattern.rate, middles)) * (steps[1] - steps[0])
    # One step of the sum can straddle a jump of the rate; there are two jumps a period.
    jumps = (2 * end / period + 2) * max(rate, peak) * (steps[1] - steps[0])
    assert pattern.due(end) == pytest.approx(integral, rel=1e-6, abs=jumps)
    assert pattern.due(end) >= pattern.due(end * 0.9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ramp", 1, None, 60, None), "peak_rate: the pattern ramp needs one"),
        (("spike", -1, 5, 60, None), "rate: -1 is less than 0"),
        (("burst", 1, 0, 60, None), "peak_rate: 0 is not"),
        (("burst", 1, 5, 0, 1), "period: 0 is not"),
        (("burst", 1, 5, 10, 11), "width: 11 s do not fit"),
        (("constant", float("nan"), None, 60, None), "rate: nan"),
        (("wave", 1, 2, 60, None), "'wave' is none of constant, ramp, spike, burst"),
    ],
)
def test_wrong_parameters_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        patterns.make(*arguments)

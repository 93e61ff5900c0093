"""Quantiles by bins: their error, in whatever order summaries are merged."""

import numpy as np
import pytest

from transforms.sketch import RELATIVE_ERROR, Sketch, centres, codes

RNG = np.random.default_rng(7)
SPREADS = {
    "uniform": RNG.uniform(0, 50, 10_000),
    "lognormal": RNG.lognormal(0, 4, 10_000),
    "tiny": RNG.uniform(1e-8, 1e-6, 1_000),
    "both signs": RNG.normal(0, 10, 10_001),
    "equal": np.full(100, 3.25),
    "one": np.array([17.0]),
    "huge": np.array([1e17, 1e12, 1.0, -1e17]),
}


@pytest.mark.parametrize("name", SPREADS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_off_by_at_most_the_stated_error(name, share):
    values = SPREADS[name]
    exact = np.quantile(values, share, method="inverted_cdf")
    assert Sketch.of(values).quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.0001, abs=1e-9)


@pytest.mark.parametrize("name", SPREADS)
def test_parts_merged_in_any_order_are_the_whole(name):
    values = RNG.permutation(SPREADS[name])
    parts = [Sketch.of(part) for part in np.array_split(values, 7)]
    whole, merged = Sketch.of(values), Sketch.merged([Sketch.merged(parts[3:]), *parts[:3]])
    assert merged.bins.tolist() == whole.bins.tolist()
    assert merged.counts.tolist() == whole.counts.tolist()
    assert (merged.rows, merged.greatest) == (len(values), values.max())
    assert merged.mean == pytest.approx(values.mean())


def test_numbers_of_bins_keep_the_order_of_the_values():
    values = np.sort(SPREADS["both signs"])
    assert (np.diff(codes(values)) >= 0).all()
    assert (np.diff(centres(np.unique(codes(values)))) > 0).all()


def test_beyond_the_bins_a_value_counts_as_the_last_one_or_as_zero():
    assert codes(np.array([0.0, 1e-12, -1e-12])).tolist() == [0, 0, 0]
    assert len(set(codes(np.array([1e18, 1e30, 1e300])).tolist())) == 1
    assert Sketch.of(np.array([1e300])).greatest == 1e300


def test_no_numbers_have_no_mean_and_no_quantile():
    nothing = Sketch.merged([Sketch.of(np.array([])), Sketch.of(np.array([]))])
    assert (nothing.rows, nothing.mean, nothing.quantile(0.5)) == (0, None, None)

"""Bins, counts and shares of profiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.profiles import (
    N_BINS,
    Bins,
    Counter,
    Profile,
    check_shares,
    count,
    edges_of,
    nominal_shares,
    training_shares,
)
from features.ranges import feature_quantiles


def bins_of(rows, every=1):
    names = [f"f{i}" for i in range(rows.shape[1])]
    quantiles = feature_quantiles(names, rows)
    shares = training_shares(names, rows, quantiles)
    scores = np.arange(21.0)
    return Bins(
        (*names, "score"),
        np.arange(len(names)),
        edges_of([*quantiles.values(), scores]),
        np.array([*shares.values(), nominal_shares(scores)]),
        {},
        every,
    )


def sample(bins, rows, ids=None, version="v1"):
    ids = [str(i) for i in range(len(rows))] if ids is None else ids
    return bins.sample(version, ids, rows, np.full(len(rows), 3.5, np.float32), {"f0": len(rows)})


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.lists(st.integers(-5, 5), max_size=40))
def test_each_value_is_in_the_one_bin_between_whose_ends_it_lies(training, feed):
    """With values that many rows share, so that quantiles are equal."""
    rows, fed = (np.array(values, np.float32).reshape(-1, 1) for values in (training, feed))
    edges = edges_of(feature_quantiles(["x"], rows)["x"])
    counts = count(fed, edges)[0]
    ends = [-np.inf, *edges[0].tolist(), np.inf]
    assert counts.tolist() == [
        sum(low <= value < high for value in feed) for low, high in itertools.pairwise(ends)
    ]
    assert counts[0] == sum(value < min(training) for value in feed)
    assert counts[-1] == sum(value > max(training) for value in feed)
    assert counts.sum() == len(feed)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60))
def test_no_row_of_the_training_is_outside(values):
    rows = np.array(values, np.float32).reshape(-1, 1)
    (shares,) = training_shares(["x"], rows, feature_quantiles(["x"], rows)).values()
    assert shares[0] == shares[-1] == 0
    assert sum(shares) == pytest.approx(1)
    check_shares({"x": ()}, {"x": shares})


def test_the_shares_of_the_training_are_exact_where_the_quantiles_are_not():
    """A flag that 3 % of the rows have: no quantile shows it."""
    rows = (np.arange(1000) < 30).astype(np.float32)[:, None]
    quantiles = feature_quantiles(["flag"], rows)
    feed = (np.arange(1000) < 300).astype(np.float32)[:, None]
    edges = edges_of([quantiles["flag"]])
    exact = training_shares(["flag"], rows, quantiles)["flag"]
    assert exact == tuple((count(rows, edges)[0] / 1000).tolist())
    assert count(feed, edges).sum() == 1000


def test_of_equal_quantiles_the_last_bin_has_the_share():
    quantiles = [0.0] * 11 + list(range(1, 11))
    shares = nominal_shares(quantiles)
    assert len(shares) == N_BINS
    assert shares[:11] == (0.0,) * 11
    assert shares[11] == pytest.approx(0.55)
    assert sum(shares) == pytest.approx(1)
    assert nominal_shares([7.0] * 21)[20] == pytest.approx(1)


def test_profiles_are_the_same_in_whatever_parts_the_rows_come():
    rows = np.random.default_rng(1).normal(size=(3_000, 3)).astype(np.float32)
    bins = bins_of(rows[:500])
    whole = Profile.of([sample(bins, rows)])
    parts, counter = [rows[:7], rows[7:2_000], rows[2_000:2_001], rows[2_001:]], Counter()
    for part in reversed(parts):
        counter.add(sample(bins, part))
    other = Counter()
    other.add(sample(bins, rows[:10]))
    counter.merge(other.take().values())
    (counted,) = counter.take().values()
    assert counted.rows == 3_010
    assert counted.missing.tolist() == [3_010, 0, 0, 0]
    np.testing.assert_array_equal(counted.counts, whole.counts + Profile.of([sample(bins, rows[:10])]).counts)
    assert counted.counts.sum(axis=1).tolist() == [3_010] * 4
    assert counter.take() == {}


def test_the_id_is_that_of_the_rows_and_not_of_their_order():
    rows = np.zeros((4, 2), np.float32)
    bins = bins_of(rows)
    a, b = sample(bins, rows, list("abcd")), sample(bins, rows, list("efgh"))
    assert Profile.of([a, b]).digest == Profile.of([b, a]).digest
    assert Profile.of([a]).digest != Profile.of([b]).digest


def test_versions_and_other_bins_are_counted_apart():
    rows = np.random.default_rng(1).normal(size=(30, 2)).astype(np.float32)
    counter = Counter()
    for bins, version in ((bins_of(rows), "v1"), (bins_of(rows), "v2"), (bins_of(rows * 2), "v1")):
        counter.add(sample(bins, rows, version=version))
    assert [(each.version, each.rows) for each in counter.take().values()] == [
        ("v1", 30),
        ("v2", 30),
        ("v1", 30),
    ]


def test_small_batches_are_counted_as_rarely_as_large_ones():
    bins = bins_of(np.zeros((1, 1), np.float32), every=10)
    counted = sum(bins.first_row(f"transaction-{i}") == 0 for i in range(20_000))
    assert 1_800 < counted < 2_200
    assert {bins.first_row(f"transaction-{i}") for i in range(1_000)} == set(range(10))


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ({"y": (1.0,)}, "'y' has no feature_quantiles"),
        ({"x": (1.0,)}, "x: expected 22 shares that add up to 1"),
        ({"x": (2.0, -1.0, *[0.0] * 20)}, "x: expected 22 shares"),
        ({"x": (float("nan"), *[0.0] * 21)}, "x: expected 22 shares"),
    ],
)
def test_shares_of_a_damaged_manifest_are_refused(shares, reason):
    with pytest.raises(ValueError, match=reason):
        check_shares({"x": range(21)}, shares)

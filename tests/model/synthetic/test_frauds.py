"""Each kind of planted fraud is what its description says."""

import numpy as np
import pytest

from features.ulb import AMOUNT_INDEX, FEATURES, TIME_INDEX
from model.synthetic import frauds
from model.synthetic.parameters import COMPONENT_SLICE, load

N = 4_000


@pytest.fixture(scope="module")
def normals():
    rng = np.random.default_rng(0)
    return load().normal.draw(load().normal.draw_times(rng.random(20_000)), rng)


def draw(name):
    rng = np.random.default_rng(1)
    times = np.sort(load().normal.draw_times(rng.random(N)))
    return times, frauds.KINDS[name].draw(load(), times, rng)


def plane_distance(features):
    """Distance from the plane near which nine in ten normals lie."""
    basis = load().basis
    return (features[:, COMPONENT_SLICE] - basis.centre) @ basis.planes[0]


@pytest.mark.parametrize("name", frauds.KINDS)
def test_values_are_those_of_a_payment(name):
    times, features = draw(name)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[:, TIME_INDEX], np.floor(times))
    amounts = features[:, AMOUNT_INDEX]
    assert amounts.min() >= 0
    assert amounts.max() <= 30_000
    np.testing.assert_array_equal(amounts, np.round(amounts, 2))


def test_descriptions_are_one_line():
    assert all(kind.description and "\n" not in kind.description for kind in frauds.KINDS.values())
    assert len(frauds.KINDS) == 5


def test_stolen_card_has_camouflaged_ones():
    _, features = draw("stolen_card")
    on_plane = np.abs(plane_distance(features)) < 0.05
    assert on_plane.mean() == pytest.approx(load().camouflaged_share, abs=0.03)
    assert np.median(np.abs(plane_distance(features))) > 5


def test_card_testing_is_for_small_amounts():
    _, features = draw("card_testing")
    assert features[:, AMOUNT_INDEX].max() <= 2.0


def test_amount_spike_changes_the_amount_alone(normals):
    _, features = draw("amount_spike")
    assert features[:, AMOUNT_INDEX].min() >= 5_000
    assert np.median(features[:, AMOUNT_INDEX]) > np.quantile(normals[:, AMOUNT_INDEX], 0.999)
    spread = load().basis.scale
    gap = np.median(features[:, COMPONENT_SLICE], axis=0) - np.median(normals[:, COMPONENT_SLICE], axis=0)
    assert (np.abs(gap) / spread).max() < 0.2


def test_merchant_compromise_moves_six_components(normals):
    _, features = draw("merchant_compromise")
    spread = load().basis.scale
    gap = np.median(features[:, COMPONENT_SLICE], axis=0) - np.median(normals[:, COMPONENT_SLICE], axis=0)
    moved = {FEATURES[1 + i] for i in np.flatnonzero(np.abs(gap) / spread > 3)}
    assert moved == {"V3", "V4", "V11", "V13", "V19", "V24"}


def test_hidden_combination_hides_in_the_single_values(normals):
    _, features = draw("hidden_combination")
    low, high = np.quantile(normals, [0.005, 0.995], axis=0)
    outside = (features < low) | (features > high)
    # One in a hundred normal values lies outside as well.
    assert outside.mean() < 0.02
    assert outside.mean(axis=0).max() < 0.1
    assert np.abs(plane_distance(features)).min() > np.quantile(np.abs(plane_distance(normals)), 0.9)

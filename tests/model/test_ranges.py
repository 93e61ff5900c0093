"""The ranges of the training, and a feed that leaves them."""

from __future__ import annotations

import dataclasses
import logging
import pickle

import numpy as np
import pytest

from features.learnt import NOTHING
from features.ranges import FeatureRanges, FeatureWatch, check_quantiles, feature_quantiles
from features.ulb import AMOUNT_INDEX, COMPONENTS, FEATURES, TIME_INDEX
from tests.model.serving.artifacts import build_own_artifact
from tests.transforms.history_cases import SPEC


@pytest.fixture
def ranges(trained):
    return trained.manifest.ranges


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def named(message):
    return {name for name in FEATURES if f"{name} (" in message}


def test_the_manifest_holds_the_quantiles_of_each_feature(trained):
    quantiles = trained.manifest.feature_quantiles
    assert tuple(quantiles) == FEATURES
    assert {len(values) for values in quantiles.values()} == {21}
    assert quantiles["Amount"][0] >= 0
    assert quantiles["Amount"][0] < quantiles["Amount"][10] < quantiles["Amount"][20]


def test_what_is_not_in_the_score_has_no_range(ranges, normals):
    assert set(ranges.quantiles) == set(FEATURES) - {"Time"}
    later = normals.copy()
    later[:, TIME_INDEX] += 1e7
    watch, other = FeatureWatch(ranges), FeatureWatch(ranges)
    assert watch.look(later) == other.look(normals)


@pytest.mark.parametrize("rows", [1, 7, 500, 1000])
def test_a_fair_feed_raises_nothing(ranges, normals, caplog, rows):
    watch = FeatureWatch(ranges)
    for start in range(0, len(normals), rows):
        watch.look(normals[start : start + rows])
    assert warnings(caplog) == []


def in_cents(rows):
    rows[:, AMOUNT_INDEX] *= 100


def negated(rows):
    rows[:, AMOUNT_INDEX] *= -1


def standardised(rows):
    components = slice(1, 1 + len(COMPONENTS))
    rows[:, components] /= rows[:, components].std(axis=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(in_cents, {"Amount"}), (negated, {"Amount"}), (standardised, {"V26", "V27", "V28"})],
)
@pytest.mark.parametrize("rows", [1, 600])
def test_other_units_are_warned_of_once(ranges, normals, caplog, change, expected, rows):
    changed = normals.copy()
    change(changed)
    watch = FeatureWatch(ranges)
    for start in range(0, len(changed), rows):
        watch.look(changed[start : start + rows])
    (message,) = warnings(caplog)
    assert named(message) & expected
    assert "amount in cents" in message


def test_a_feed_that_changes_later_is_warned_of(ranges, normals, caplog):
    changed = normals[:1000].copy()
    negated(changed)
    watch = FeatureWatch(ranges)
    watch.look(normals[:1000])
    assert warnings(caplog) == []
    watch.look(changed)
    (message,) = warnings(caplog)
    assert named(message) == {"Amount"}


@pytest.mark.parametrize("rows", [1, 15, 16, 33])
def test_each_value_outside_counts(rows):
    watch = FeatureWatch(FeatureRanges(("a", "b"), {"b": range(21)}))
    features = np.full((rows, 2), 20.0, np.float32)
    assert watch.look(features) == 0
    features[-1] = -0.5
    assert watch.look(features) == 1
    features[0] = 20.5
    assert watch.look(features) == (1 if rows == 1 else 2)
    assert watch.look(features[:0]) == 0
    assert FeatureWatch(FeatureRanges()).look(features) == 0


def test_a_feature_of_one_value_is_judged_by_its_middle(caplog):
    flag = np.zeros((1000, 1), np.float32)
    flag[:10] = 1
    ranges = FeatureRanges(("flag",), feature_quantiles(["flag"], flag))
    FeatureWatch(ranges).look(np.roll(flag, 5))
    assert warnings(caplog) == []
    FeatureWatch(ranges).look(1 - flag)
    assert "flag (0 % outside, median 1; in training 0 to 1, median 0)" in warnings(caplog)[0]


def test_a_watch_travels(ranges, normals):
    watch = FeatureWatch(pickle.loads(pickle.dumps(ranges)))
    assert watch.look(normals) == FeatureWatch(ranges).look(normals)


@pytest.mark.parametrize(
    ("quantiles", "reason"),
    [
        ({"c": range(21)}, "feature_quantiles: 'c' is no input of the model"),
        ({"a": range(20)}, "feature_quantiles: a: expected 21 finite, ascending numbers"),
        ({"a": range(21, 0, -1)}, "feature_quantiles: a: expected 21 finite, ascending numbers"),
        ({"a": [0.0] * 20 + [float("inf")]}, "feature_quantiles: a: expected 21 finite, ascending numbers"),
    ],
)
def test_quantiles_that_do_not_fit_are_refused(quantiles, reason):
    with pytest.raises(ValueError, match=reason):
        check_quantiles(("a", "b"), quantiles)


def test_history_is_profiled_and_makes_no_other_feed(tmp_path):
    """A stream without a start has new accounts alone: that is no feed in other units."""
    manifest = build_own_artifact(tmp_path / "model", SPEC, NOTHING).manifest
    quantiles = {name: tuple(range(21)) for name in SPEC.inputs}
    manifest = dataclasses.replace(manifest, feature_quantiles=quantiles)
    assert set(manifest.ranges.quantiles) == {"amount"}
    assert manifest.bins(10).names == (*SPEC.inputs, "anomaly_score")

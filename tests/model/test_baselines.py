"""The choice of the baselines' settings."""

from __future__ import annotations

import numpy as np
import pytest

from features.ulb import FEATURES
from model import baselines, data, evaluate, whitening
from tests.model.conftest import ROWS


def by_v1(train, rows, seed, sign):
    """A detector that finds frauds of a high V1 with sign 1, of a low one with -1."""
    return sign * rows[:, FEATURES.index("V1") - 1]


TUNED = (("by V1", baselines.Tuned("sign", (-1, 1), by_v1)),)


@pytest.mark.parametrize("high_is_fraud", [True, False])
def test_the_labels_of_the_choosing_rows_alone_choose(normals, high_is_fraud):
    frauds = normals[1000:1020].copy()
    frauds[:, FEATURES.index("V1")] = 100.0 if high_is_fraud else -100.0
    chooser = baselines.Labelled(
        np.concatenate([normals[1100:1200], frauds]), np.repeat([0, 1], [100, 20]).astype(np.int8)
    )
    judged = normals[1200:1300]
    found = baselines.scores(normals[:1000], judged, TUNED, 0, chooser)
    sign = 1 if high_is_fraud else -1
    assert found.chosen == {"by V1": {"sign": sign}}
    default = baselines.scores(normals[:1000], judged, TUNED)
    assert np.array_equal(found.scores["by V1"], -sign * default.scores["by V1"])


@pytest.mark.parametrize("label", [0, 1])
def test_without_both_classes_the_first_value_is_taken(normals, label):
    rows = normals[:50]
    expected = baselines.scores(normals[:1000], rows, TUNED).scores["by V1"]
    one_class = baselines.Labelled(rows, np.full(50, label, np.int8))
    found = baselines.scores(normals[:1000], rows, TUNED, 0, one_class)
    assert found.chosen == {}
    assert np.array_equal(found.scores["by V1"], expected)


def test_baselines_are_tuned_as_far_as_the_score():
    """The score is built on an MCD of a support that labels chose: the MCD beside it gets the same choice."""
    settings = dict((*baselines.QUICK, *baselines.SLOW, *baselines.PYOD))
    assert settings["MCD"].values[0] == whitening.SUPPORT
    assert {0.9, 0.95, 0.995} <= set(settings["MCD"].values)
    assert {10, 20, 40} <= set(settings["Gaussian mixture"].values)


def test_the_validation_part_chooses_and_the_report_says_so(trained, monkeypatch):
    dataset = data.load(data.SYNTHETIC, rows=ROWS)
    parts = data.split(dataset, 0)
    sizes = []

    def watched(train, rows, seed, sign):
        sizes.append(len(rows))
        return by_v1(train, rows, seed, sign)

    detectors = (("watched", baselines.Tuned("sign", (-1, 1), watched)),)
    monkeypatch.setattr(baselines, "available", lambda quick=False: detectors)
    report = evaluate.evaluate_model(trained, dataset, 0.00172, 0, None)
    assert sizes == [len(parts.validation) + len(parts.test)] * 2
    sign = report["chosen"]["watched"]["sign"]
    assert f"with sign {sign} of watched chosen on the validation part" in evaluate.heading(report)
    repeated = evaluate.evaluate_repeatedly(None, dataset, 2, 0.00172, None, {"epochs": 1})
    seeds = [by_seed["chosen"]["watched"]["sign"] for by_seed in repeated["by_seed"]]
    assert repeated["chosen"] == {"watched": {"sign": list(dict.fromkeys(seeds))}}

from __future__ import annotations

import numpy as np
import pytest

from model.thresholds import ALERT_BUDGETS, SEVERITIES, ScoreQuantiles, calibrate, severity_codes


@pytest.fixture
def quantiles() -> ScoreQuantiles:
    return ScoreQuantiles.of(np.arange(100_001) / 1000)


def test_thresholds_of_known_scores(quantiles):
    assert calibrate(quantiles) == pytest.approx({"medium": 99.5, "high": 99.9})
    assert quantiles.threshold(0.25) == pytest.approx(75.0)
    assert quantiles.threshold(0.0002) == pytest.approx(99.98)


def test_calibrated_budgets_hold_on_fresh_scores_of_the_same_kind():
    rng = np.random.default_rng(0)
    thresholds = calibrate(ScoreQuantiles.of(rng.exponential(size=50_000)))
    codes = severity_codes(rng.exponential(size=200_000), thresholds)
    for code, (name, budget) in enumerate(ALERT_BUDGETS.items(), start=1):
        assert SEVERITIES[code] == name
        assert (codes >= code).mean() == pytest.approx(budget, rel=0.25)


def test_a_score_at_the_threshold_is_an_alert():
    codes = severity_codes([0.9, 1.0, 1.9, 2.0, np.inf, np.nan], {"medium": 1.0, "high": 2.0})
    assert codes.tolist() == [0, 1, 1, 2, 2, 0]
    assert codes.dtype == np.int8


def test_wrong_thresholds_are_named():
    with pytest.raises(ValueError, match="'high'"):
        severity_codes([1.0], {"medium": 1.0})
    with pytest.raises(ValueError, match="ascend"):
        severity_codes([1.0], {"medium": 2.0, "high": 1.0})


@pytest.mark.parametrize(
    ("scores", "text"), [(np.ones(999), "at least 1000"), (np.full(2000, np.nan), "finite")]
)
def test_calibration_refuses(scores, text):
    with pytest.raises(ValueError, match=text):
        ScoreQuantiles.of(scores)


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1])
def test_budget_must_be_a_share(quantiles, budget):
    with pytest.raises(ValueError, match="budget"):
        quantiles.threshold(budget)


def test_quantiles_must_ascend():
    with pytest.raises(ValueError, match="probabilities must increase"):
        ScoreQuantiles((0.0, 0.0), (1.0, 2.0))
    with pytest.raises(ValueError, match="scores must not decrease"):
        ScoreQuantiles((0.0, 1.0), (2.0, 1.0))


def test_the_trained_model_alerts_at_its_budgets_on_fresh_normals(trained, module, normals):
    """3,000 normals of the generator that the model was calibrated for: 0.5 % are 15, 4 deviations are 15."""
    from model.evaluation import anomaly_scores

    codes = severity_codes(anomaly_scores(module, normals), trained.manifest.thresholds)
    assert 1 <= (codes >= 1).sum() <= 45
    assert (codes == 2).sum() <= 20

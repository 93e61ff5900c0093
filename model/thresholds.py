"""From scores to alerts: thresholds for alert budgets, severities. Pure numpy.

A budget is the share of normal transactions that a team can afford to look at. A threshold is the score that
this share of held-out normals reaches or passes; a score is an alert when it is >= the threshold.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SEVERITIES: Final = ("normal", "medium", "high")
"""In ascending order; a severity code indexes this tuple. The first is "no alert"."""
ALERT_BUDGETS: Final[Mapping[str, float]] = {"medium": 0.005, "high": 0.001}
"""Share of normal transactions that may reach each severity or a higher one."""

MIN_CALIBRATION_ROWS: Final = 1000
"""Fewer held-out normals than this cannot place a threshold for a budget of 0.1 %."""


def _grid() -> npt.NDArray[np.float64]:
    """Per cent up to 99 %, then ever finer towards 1, where the alerts are."""
    return np.unique(
        np.round(
            np.concatenate(
                [np.arange(0, 100) / 100, 0.99 + np.arange(0, 100) / 1e4, 0.9999 + np.arange(0, 11) / 1e5]
            ),
            8,
        )
    )


@dataclass(frozen=True)
class ScoreQuantiles:
    """The quantile function of the score on held-out normal transactions.

    Attributes:
      probabilities: ascending, from 0 to 1.
      scores: the score at each probability, ascending.
    """

    probabilities: tuple[float, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.probabilities) != len(self.scores) or len(self.scores) < 2:
            raise ValueError("quantiles: needs as many probabilities as scores, and two of them at least")
        if not np.isfinite([*self.probabilities, *self.scores]).all():
            raise ValueError("quantiles: probabilities and scores must be finite numbers")
        if self.probabilities[0] < 0 or self.probabilities[-1] > 1:
            raise ValueError("quantiles: probabilities must lie between 0 and 1")
        if np.any(np.diff(self.probabilities) <= 0) or np.any(np.diff(self.scores) < 0):
            raise ValueError("quantiles: probabilities must increase and scores must not decrease")

    @classmethod
    def of(cls, scores: npt.ArrayLike) -> ScoreQuantiles:
        """Takes the quantile function of these scores of held-out normals.

        Raises:
          ValueError: fewer than MIN_CALIBRATION_ROWS scores, or scores that are not finite.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.size < MIN_CALIBRATION_ROWS:
            raise ValueError(
                f"calibration needs at least {MIN_CALIBRATION_ROWS} held-out normals, got {values.size}"
            )
        if not np.isfinite(values).all():
            raise ValueError("calibration scores must be finite")
        grid = _grid()
        return cls(tuple(grid.tolist()), tuple(np.quantile(values, grid).tolist()))

    def threshold(self, budget: float) -> float:
        """The score that a share of `budget` of the normals reaches; 0 < budget < 1."""
        if not 0.0 < budget < 1.0:
            raise ValueError(f"budget must lie between 0 and 1, got {budget}")
        return float(np.interp(1.0 - budget, self.probabilities, self.scores))


def calibrate(quantiles: ScoreQuantiles, budgets: Mapping[str, float] = ALERT_BUDGETS) -> dict[str, float]:
    """Finds the threshold of each severity for its alert budget.

    >>> quantiles = ScoreQuantiles.of(np.arange(100_001) / 1000)
    >>> calibrate(quantiles, {"medium": 0.05, "high": 0.01})
    {'medium': 95.0, 'high': 99.0}
    """
    return {name: quantiles.threshold(budget) for name, budget in budgets.items()}


def severity_codes(scores: npt.ArrayLike, thresholds: Mapping[str, float]) -> npt.NDArray[np.int8]:
    """Finds the severity of each score, as an index into SEVERITIES.

    >>> severity_codes([0.5, 1.0, 7.5], {"medium": 1.0, "high": 2.0}).tolist()
    [0, 1, 2]

    Args:
      scores: [n]; NaN counts as normal, so check for it before.
      thresholds: as `check_thresholds` takes them.

    Returns:
      int8 [n]: 0 normal, 1 medium (score >= its threshold), 2 high.

    Raises:
      ValueError: as `check_thresholds`.
    """
    return codes_of(np.asarray(scores), check_thresholds(thresholds))


def codes_of(scores: npt.NDArray[np.floating], steps: Sequence[float]) -> npt.NDArray[np.int8]:
    """Finds the severity of each score by thresholds that `check_thresholds` has put in order."""
    codes = (scores >= steps[0]).view(np.int8)
    for step in steps[1:]:
        codes += scores >= step
    return codes


def check_thresholds(thresholds: Mapping[str, float]) -> list[float]:
    """Puts thresholds in the order of SEVERITIES.

    Args:
      thresholds: one score for each severity but "normal", none below that of a lower severity.

    Raises:
      ValueError: a severity has no threshold, or the thresholds are not finite or do not ascend.
    """
    try:
        steps = [float(thresholds[name]) for name in SEVERITIES[1:]]
    except KeyError as e:
        raise ValueError(f"thresholds: no threshold for severity {e.args[0]!r}") from None
    if not np.isfinite(steps).all():
        raise ValueError(f"thresholds must be finite numbers, got {steps}")
    if not all(low <= high for low, high in itertools.pairwise(steps)):
        raise ValueError(f"thresholds must ascend from {SEVERITIES[1]} to {SEVERITIES[-1]}, got {steps}")
    return steps

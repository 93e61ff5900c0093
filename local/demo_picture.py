"""The picture of the demo: the scores with the thresholds, and the alerts over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.writing import writing
from model.thresholds import SEVERITIES

_COLORS: Final = {"normal": "#4c78a8", "medium": "#f2a33a", "high": "#d1495b"}


def draw(joined: pa.Table, thresholds: Mapping[str, float], path: Path, heading: str) -> None:
    """Draws the score distribution with the thresholds, and the scores over time with the alerts.

    Args:
      joined: columns event_time, anomaly_score, severity, and planted_kind (null for a normal transaction).
      thresholds: by severity.
      path: of the PNG.
      heading: over the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    score = np.maximum(joined.column("anomaly_score").to_numpy(), 1e-3)
    planted = joined.column("planted_kind").is_valid().to_numpy()
    bins = np.geomspace(score.min(), score.max() * 1.01, 70)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), width_ratios=(1, 1.25))
    left.hist(score[~planted], bins=bins, color=_COLORS["normal"], label="ordinary")
    left.hist(score[planted], bins=bins, color=_COLORS["high"], alpha=0.75, label="planted fraud")
    left.set(xscale="log", yscale="log", xlabel="anomaly_score", ylabel="transactions")
    for severity in SEVERITIES[1:]:
        left.axvline(
            thresholds[severity], color=_COLORS[severity], linestyle="--", label=f"{severity} threshold"
        )
    left.legend(frameon=False, fontsize=8)
    left.set_title("Score distribution", loc="left", fontsize=10)
    _over_time(right, joined, score, thresholds)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(heading, x=0.01, ha="left")
    figure.tight_layout()
    with writing(path, "--output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    plt.close(figure)


def _over_time(
    axis: Any, scores: pa.Table, score: npt.NDArray[np.float64], thresholds: Mapping[str, float]
) -> None:
    moments = scores.column("event_time").cast(pa.int64()).to_numpy()
    seconds = (moments - moments.min()) / 1e6
    severity = np.array(scores.column("severity").to_pylist())
    sizes = dict(zip(SEVERITIES, (2, 14, 18), strict=True))
    for name in SEVERITIES:
        rows = severity == name
        # Severity normal is no statement about the transaction: a fraud below the thresholds has it as well.
        label = f"{'no alert' if name == SEVERITIES[0] else name} ({int(rows.sum()):,})"
        axis.scatter(
            seconds[rows], score[rows], s=sizes[name], color=_COLORS[name], label=label, linewidths=0
        )
    for name in SEVERITIES[1:]:
        axis.axhline(thresholds[name], color=_COLORS[name], linestyle="--", linewidth=1)
    axis.set(yscale="log", xlabel="event time, seconds since the first transaction", ylabel="anomaly_score")
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    axis.set_title("Alerts over time", loc="left", fontsize=10)

"""Paired differences over splits that overlap, and the summary of a protocol's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model.outputs import ANOMALY_SCORE
from model.protocol.splits import SplitKind
from model.protocol.tasks import SCORE, Task

METRICS: Final = ("average_precision", "auroc")
CONFIDENCE: Final = 0.95
TUNED: Final = "tuned"
"""Setting of a baseline whose value the validation rows choose in each split, by average precision."""

Result = Mapping[str, Any]


class Paired(NamedTuple):
    """Differences of two scores on the same splits.

    Attributes:
      mean: of the score minus the other.
      spread: standard deviation over the splits.
      low, high: of the interval.
      wins: share of the splits in which the score is better; a tie counts half.
    """

    mean: float
    spread: float
    low: float
    high: float
    wins: float


def paired(differences: Sequence[float], judged_per_trained: float) -> Paired:
    """Summarises differences over splits by the corrected resampled t interval (Nadeau and Bengio, 2003).

    The splits share rows, so that their differences are alike, and their number n may not divide the variance
    alone: it is multiplied by 1/n + judged rows / training rows. A bootstrap over the splits would have the
    fault that this corrects. The correction is an approximation, on the careful side.

    >>> [round(value, 4) for value in paired([0.01, 0.03, 0.02, 0.02], judged_per_trained=1 / 3)]
    [0.02, 0.0082, 0.0002, 0.0398, 1.0]

    Args:
      differences: one a split, at least two.
      judged_per_trained: judged rows of a split by the rows that it trains on.
    """
    # scipy is needed to judge, not to score.
    from scipy.stats import t

    values = np.asarray(differences, np.float64)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    factor = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    reach = factor * float(np.sqrt(1 / len(values) + judged_per_trained)) * spread
    wins = float((values > 0).mean() + (values == 0).mean() / 2)
    return Paired(mean, spread, mean - reach, mean + reach, wins)


def summarise(results: Mapping[Task, Result], kind: SplitKind) -> dict[str, Any]:
    """Summarises the results of one kind of split, as JSON values.

    Returns:
      splits, rows and frauds; `scores`: a dictionary a score and setting with mean and spread of METRICS, and
      for others than the product's score the `Paired` differences; `by_split`: figures and highest normals;
      `spread_by_seed`: of detectors with several seeds; `left_out`.
    """
    mine = {task: result for task, result in results.items() if task.kind == kind}
    numbers = sorted({task.number for task in mine})
    figures, left_out = _figures(mine, numbers)
    rows = [mine[Task(kind, number, SCORE)]["rows"] for number in numbers]
    ratio = float(np.mean([row["judged"] / row["train"] for row in rows]))
    own = figures[ANOMALY_SCORE, ""]
    scores = []
    for (name, setting), values in figures.items():
        entry: dict[str, Any] = {"name": name, "setting": setting}
        for i, metric in enumerate(METRICS):
            mean, spread = float(values[:, i].mean()), float(values[:, i].std(ddof=1))
            entry[metric] = {"mean": mean, "spread": spread}
            if name != ANOMALY_SCORE:
                entry[metric]["difference"] = paired((own - values)[:, i].tolist(), ratio)._asdict()
        scores.append(entry)
    return {
        "splits": len(numbers),
        "rows": {part: float(np.mean([row[part] for row in rows])) for part in rows[0]},
        "frauds": [mine[Task(kind, number, SCORE)]["frauds"] for number in numbers],
        "scores": sorted(scores, key=lambda entry: -entry["average_precision"]["mean"]),
        "spread_by_seed": _spread_by_seed(mine),
        "by_split": [
            _split(mine[Task(kind, number, SCORE)], number, i, figures) for i, number in enumerate(numbers)
        ],
        "left_out": left_out,
    }


def _split(
    result: Result, number: int, position: int, figures: Mapping[tuple[str, str], npt.NDArray[np.float64]]
) -> dict[str, Any]:
    named = {
        f"{name}, {setting}" if setting else name: values[position]
        for (name, setting), values in figures.items()
    }
    return {
        "number": number,
        "cut": result["cut"],
        "frauds": result["frauds"],
        "figures": {name: dict(zip(METRICS, values.tolist(), strict=True)) for name, values in named.items()},
        "top_normals": result["top_normals"],
    }


def _figures(
    results: Mapping[Task, Result], numbers: Sequence[int]
) -> tuple[dict[tuple[str, str], npt.NDArray[np.float64]], dict[str, str]]:
    """Takes METRICS [splits, 2] by name and setting, means over seeds; and why a family is left out.

    A family that fails on one split is left out of all: a pair needs both.
    """
    left_out = {task.family: result["left_out"] for task, result in results.items() if "left_out" in result}
    by_split: list[dict[tuple[str, str], list[float]]] = []
    for number in numbers:
        seeds: dict[tuple[str, str], list[list[float]]] = {}
        first: dict[str, list[Result]] = {}
        for task, result in results.items():
            if task.number != number or task.family in left_out:
                continue
            for entry in result["entries"]:
                values = [entry[metric] for metric in METRICS]
                seeds.setdefault((entry["name"], entry["setting"]), []).append(values)
                if not entry["seed"] and entry["setting"]:
                    first.setdefault(entry["name"], []).append(entry)
        split = {key: np.mean(values, axis=0).tolist() for key, values in seeds.items()}
        for name, entries in first.items():
            # Of equal ones, and where no labels choose, max takes the first.
            chosen = max(entries, key=lambda entry: entry["validation"] or 0.0)
            split[name, TUNED] = [chosen[metric] for metric in METRICS]
        by_split.append(split)
    return {key: np.array([split[key] for split in by_split]) for key in by_split[0]}, left_out


def _spread_by_seed(results: Mapping[Task, Result]) -> dict[str, dict[str, float]]:
    """Computes the deviation by seed on the same split, pooled over the splits, of METRICS."""
    seeds: dict[tuple[int, str], list[list[float]]] = {}
    for task, result in results.items():
        for entry in result["entries"]:
            name = f"{entry['name']}, {entry['setting']}" if entry["setting"] else entry["name"]
            seeds.setdefault((task.number, name), []).append([entry[metric] for metric in METRICS])
    variances: dict[str, list[npt.NDArray[np.float64]]] = {}
    for (_, name), values in seeds.items():
        if len(values) > 1:
            variances.setdefault(name, []).append(np.var(values, axis=0, ddof=1))
    return {
        name: dict(zip(METRICS, np.sqrt(np.mean(values, axis=0)).tolist(), strict=True))
        for name, values in variances.items()
    }

"""Compares the model's score with other scores on the same labelled transactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from features.declaration import FeatureSpec
from features.default import ULB
from features.kinds import HISTORY
from model import baselines, fitting, inference, metrics, torchscript
from model.outputs import ANOMALY_SCORE
from model.thresholds import ALERT_BUDGETS

Scores = npt.NDArray[np.float64]

OWN_SCORES: Final = (ANOMALY_SCORE, "normalized_MAE", "denormalized_MAE")
"""The outputs of the model that are judged: its score, and the two errors that are usually taken for one."""


WITHOUT_HISTORY: Final = "anomaly_score_without_history"
KIND_BUDGET: Final = ALERT_BUDGETS["medium"]
"""Share of the normals that alert, for the recall of each kind of fraud."""
HELD_OUT: Final = 6


def anomaly_scores(module: torch.jit.ScriptModule, features: npt.NDArray[np.float32]) -> Scores:
    """Scores raw features [n, k]; anomaly_score, float64 [n]."""
    return inference.outputs(module, features, (ANOMALY_SCORE,))[ANOMALY_SCORE].astype(np.float64)


def own_scores(module: torch.jit.ScriptModule, features: npt.NDArray[np.float32]) -> dict[str, Scores]:
    """Computes OWN_SCORES of raw features [n, k], each float64 [n]."""
    named = inference.outputs(module, features, OWN_SCORES)
    return {name: values.astype(np.float64) for name, values in named.items()}


def compare(
    module: torch.jit.ScriptModule,
    fit_rows: npt.NDArray[np.float32],
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    detectors: Sequence[tuple[str, baselines.Detector]],
    prevalence: float = metrics.TRUE_PREVALENCE,
    seed: int = 0,
    chooser: baselines.Labelled | None = None,
    spec: FeatureSpec = ULB,
    kinds: npt.NDArray[Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Judges the model and the baselines on the same rows.

    Args:
      module: the traced model.
      fit_rows: normal transactions [n, k] to fit the baselines to.
      rows: transactions to judge on, [m, k].
      labels: int8 [m], 1 for a fraud.
      detectors: the baselines, from `model.baselines.available`.
      prevalence: share of frauds for which the figures are given.
      seed: of the baselines.
      chooser: labelled rows, neither fitted nor judged, that choose the settings of the baselines.
      spec: of the inputs.
      kinds: texts [m] that name the kind of each fraud.

    Returns:
      report: rows, prevalence, per score the figures of `model.metrics.figures`, the chosen settings of the
        baselines, and why one is left out; `by_kind`. Where features have a history, WITHOUT_HISTORY is the
        score of a network that is fitted without them.
      scores: per score its values [m].
    """
    fitted = baselines.scores(fit_rows, rows, detectors, seed, chooser, spec)
    scores = own_scores(module, rows) | fitted.scores
    if (plain := without_history(spec, fit_rows, rows, seed)) is not None:
        scores[WITHOUT_HISTORY] = plain
    of_network: dict[str, Scores] = {
        name: scores[name] for name in (ANOMALY_SCORE, WITHOUT_HISTORY) if name in scores
    }
    report = {
        "rows": {
            "normals": int((labels == 0).sum()),
            "frauds": int((labels == 1).sum()),
            "normals_that_baselines_are_fitted_to": len(fit_rows),
        },
        "prevalence": prevalence,
        "scores": {name: metrics.figures(values, labels, prevalence) for name, values in scores.items()},
        "chosen": fitted.chosen,
        "left_out": fitted.left_out,
        "by_kind": by_kind(of_network, labels, kinds) if kinds is not None else {},
    }
    return report, scores


def without_history(
    spec: FeatureSpec, fit_rows: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], seed: int
) -> Scores | None:
    """Scores rows by a network that is fitted to the features without a history; None where all or none have.

    Args:
      spec: of the inputs.
      fit_rows: normal transactions [n, k], of which one in HELD_OUT stops the training.
      rows: to be scored, [m, k].
      seed: of the weights.
    """
    plain = FeatureSpec(tuple(feature for feature in spec.features if feature.kind != HISTORY), spec.roles)
    if plain.features == spec.features or not any(plain.is_scored):
        return None
    kept = [i for i, group in enumerate(spec.groups) if spec.features[group].kind != HISTORY]
    fit_rows, rows = fit_rows[:, kept], rows[:, kept]
    is_held_out = np.arange(len(fit_rows)) % HELD_OUT == 0
    options = fitting.TrainingOptions(seed=seed)
    fitted = fitting.fit(fit_rows[~is_held_out], fit_rows[is_held_out], options, progress=False, spec=plain)
    return anomaly_scores(torchscript.trace(fitted.network), rows)


def by_kind(
    scores: Mapping[str, Scores],
    labels: npt.NDArray[np.int8],
    kinds: npt.NDArray[Any],
    budget: float = KIND_BUDGET,
) -> dict[str, dict[str, Any]]:
    """Judges scores on each kind of fraud against all normals.

    >>> scores, labels = {"score": np.array([0.1, 0.2, 0.9, 0.15])}, np.array([0, 0, 1, 1], np.int8)
    >>> by_kind(scores, labels, np.array(["", "", "spike", "burst"]))["spike"]
    {'frauds': 1, 'score': {'average_precision': 1.0, 'recall_at_0.005': 1.0}}

    Args:
      scores: each [n].
      labels: [n], 1 for a fraud.
      kinds: texts [n].
      budget: share of the normals that the alerts of the recall may have.
    """
    from sklearn.metrics import average_precision_score

    is_normal = labels == 0
    result: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(kinds[~is_normal].tolist())):
        is_kind = ~is_normal & (kinds == kind)
        result[kind] = {"frauds": int(is_kind.sum())}
        rows = is_normal | is_kind
        for name, values in scores.items():
            threshold = np.quantile(values[is_normal], 1 - budget)
            result[kind][name] = {
                "average_precision": float(average_precision_score(is_kind[rows], values[rows])),
                f"recall_at_{budget:g}": float((values[is_kind] > threshold).mean()),
            }
    return result


def kind_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes a row a kind and score of the figures of `by_kind`."""
    return [
        {"kind": kind or "(none)", "frauds": int(figures["frauds"]), "score": name} | figures[name]
        for kind, figures in report.items()
        for name in figures
        if name != "frauds"
    ]


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the reports of several seeds, shaped like one report.

    The deviations stand under `spread`, which is empty for a single report.
    """
    first = reports[0]
    left_out = {name: reason for report in reports for name, reason in report["left_out"].items()}
    names = [name for name in first["scores"] if name not in left_out]
    by_name = {name: [report["scores"][name] for report in reports] for name in names}
    deviation = partial(np.std, ddof=1)
    return {
        "repeats": len(reports),
        "rows": first["rows"],
        "prevalence": first["prevalence"],
        "scores": {name: _over_seeds(values, np.mean) for name, values in by_name.items()},
        # One report has no spread; a 0 would claim that it has none.
        "spread": {name: _over_seeds(values, deviation) for name, values in by_name.items()}
        if len(reports) > 1
        else {},
        "chosen": {name: _choices(name, reports) for name in first["chosen"] if name in names},
        "left_out": left_out,
        "by_kind": {
            kind: _over_seeds([report["by_kind"][kind] for report in reports], np.mean)
            for kind in first.get("by_kind", {})
            if all(kind in report["by_kind"] for report in reports)
        },
    }


def _choices(name: str, reports: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Lists the values of a baseline's setting that the reports chose, each once."""
    values: dict[str, list[Any]] = {}
    for report in reports:
        for setting, value in report["chosen"].get(name, {}).items():
            values.setdefault(setting, [])
            if value not in values[setting]:
                values[setting].append(value)
    return values


def _over_seeds(values: Sequence[Any], statistic: Callable[..., Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _over_seeds([value[key] for value in values], statistic) for key in values[0]}
    return float(statistic(values))


def figure_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Makes a row a score of a report, best average precision first.

    >>> figures = {"average_precision": 0.5, "auroc": 0.75, "recall_at": {"0.01": 0.25}, "precision_at": {}}
    >>> figure_rows({"scores": {"anomaly_score": figures}})
    [{'score': 'anomaly_score', 'average_precision': 0.5, 'auroc': 0.75, 'recall_at_0.01': 0.25}]

    Args:
      report: of `compare` or `summary`. The deviations of several seeds stand in columns that end in _std.
    """
    rows = []
    for name, figures in sorted(report["scores"].items(), key=lambda item: -item[1]["average_precision"]):
        row = {"score": name, **_flat(figures)}
        spread = report.get("spread", {}).get(name, {})
        rows.append(row | {f"{key}_std": value for key, value in _flat(spread).items()})
    return rows


def with_deviations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes figures and deviations of `figure_rows` into one column, for people.

    >>> with_deviations([{"score": "PCA", "auroc": 0.95, "auroc_std": 0.01}])
    [{'score': 'PCA', 'auroc': '0.950 ± 0.010'}]
    """
    return [
        {
            key: f"{value:.3f} ± {row[f'{key}_std']:.3f}" if f"{key}_std" in row else value
            for key, value in row.items()
            if not key.endswith("_std")
        }
        for row in rows
    ]


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    """The figures of one score without nesting: {"recall_at": {"0.01": x}} as {"recall_at_0.01": x}."""
    flat: dict[str, float] = {}
    for key, value in figures.items():
        flat |= (
            {f"{key}_{share}": at for share, at in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat

"""Compares the model's score with other scores on the same labelled transactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from model import baselines, metrics
from model.network import SCORE_FIELD

Scores = npt.NDArray[np.float64]

ROWS_AT_ONCE: Final = 8192
OWN_SCORES: Final = (SCORE_FIELD, "normalized_MAE", "denormalized_MAE")
"""What is judged of the model: its score, and the two errors that are usually taken for one."""


def anomaly_scores(module: torch.jit.ScriptModule, features: npt.NDArray[np.float32]) -> Scores:
    """anomaly_score of raw features [n, 30], float64 [n], in batches of bounded memory."""
    with torch.inference_mode():
        parts = [module.score(rows)[0] for rows in torch.from_numpy(features).split(ROWS_AT_ONCE)]
    return torch.cat(parts).double().numpy()


def own_scores(module: torch.jit.ScriptModule, features: npt.NDArray[np.float32]) -> dict[str, Scores]:
    """OWN_SCORES of raw features [n, 30], each float64 [n]."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in OWN_SCORES}
    with torch.inference_mode():
        for rows in torch.from_numpy(features).split(ROWS_AT_ONCE):
            answer = module(rows)
            for name in OWN_SCORES:
                parts[name].append(answer[name])
    return {name: torch.cat(part).double().numpy() for name, part in parts.items()}


def compare(
    module: torch.jit.ScriptModule,
    fit_rows: npt.NDArray[np.float32],
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    detectors: Sequence[tuple[str, baselines.Detector]],
    prevalence: float = metrics.TRUE_PREVALENCE,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Judges the model and the baselines on the same rows.

    Args:
      module: the traced model.
      fit_rows: normal transactions [n, 30] to fit the baselines to.
      rows: transactions to judge on, [m, 30].
      labels: int8 [m], 1 for a fraud.
      detectors: the baselines, from `model.baselines.available`.
      prevalence: share of frauds for which the figures are given.
      seed: of the baselines.

    Returns:
      report: rows, prevalence, and per score the figures of `model.metrics.figures`.
      scores: per score its values [m].
    """
    scores = own_scores(module, rows) | baselines.scores(fit_rows, rows, detectors, seed)
    report = {
        "rows": {
            "normals": int((labels == 0).sum()),
            "frauds": int((labels == 1).sum()),
            "normals_that_baselines_are_fitted_to": len(fit_rows),
        },
        "prevalence": prevalence,
        "scores": {name: metrics.figures(values, labels, prevalence) for name, values in scores.items()},
    }
    return report, scores


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the reports of several seeds, shaped like one report.

    The deviations stand under `spread`, which is empty for a single report.
    """
    first = reports[0]
    return {
        "repeats": len(reports),
        "rows": first["rows"],
        "prevalence": first["prevalence"],
        "scores": {name: _mean([r["scores"][name] for r in reports]) for name in first["scores"]},
        # One report has no spread; a 0 would claim that it has none.
        "spread": {name: _std([r["scores"][name] for r in reports]) for name in first["scores"]}
        if len(reports) > 1
        else {},
    }


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return float(np.mean(values))


def _std(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _std([value[key] for value in values]) for key in values[0]}
    return float(np.std(values, ddof=1))


def table(report: dict[str, Any]) -> str:
    """The figures as a Markdown table, best average precision first; mean ± deviation of several seeds."""
    shares = list(next(iter(report["scores"].values()))["recall_at"])
    percent = [f"{100 * float(share):g} %" for share in shares]
    header = [
        "score",
        "AP",
        "AUROC",
        *(f"recall at {p}" for p in percent),
        *(f"precision at {p}" for p in percent),
    ]
    lines = [header, ["---"] * len(header)]
    order = sorted(report["scores"], key=lambda name: -report["scores"][name]["average_precision"])
    for name in order:
        mean, spread = report["scores"][name], report.get("spread", {}).get(name)
        cells = [_cell(mean, spread, "average_precision"), _cell(mean, spread, "auroc")]
        for kind in ("recall_at", "precision_at"):
            cells += [_cell(mean[kind], spread and spread[kind], share) for share in shares]
        lines.append([name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _cell(mean: dict[str, Any], spread: dict[str, Any] | None, key: str) -> str:
    return f"{mean[key]:.3f}" + (f" ± {spread[key]:.3f}" if spread else "")

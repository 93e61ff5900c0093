"""The report of a training: what was read and learnt, the alerts to expect, and the share of each feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from common.output import print_rows, safe_text
from features.declaration import FeatureSpec
from features.learnt import Learnt
from model import artifact, evaluation, inference
from model.outputs import ANOMALY_SCORE, CONTRIBUTIONS

TOP_SHARE: Final = 0.01
"""Normals with the highest scores, of which the report says which feature leads them."""


def by_feature(spec: FeatureSpec, contributions: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Adds up the contributions [n, k] of the inputs that belong to one feature; [n, features]."""
    starts = np.searchsorted(spec.groups, np.arange(len(spec.features)))
    return np.add.reduceat(contributions.astype(np.float64), starts, axis=1)


def score_shares(
    spec: FeatureSpec, module: torch.jit.ScriptModule, normals: npt.NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Measures how much each feature has in the score of held-out normals.

    Returns:
      Per feature of the score: `share`, the mean of its shares of each score, which a few high scores do not
      make alone; and `leads`, the share of the TOP_SHARE highest scores in which it is the first reason.
    """
    outputs = inference.outputs(module, normals, (ANOMALY_SCORE, CONTRIBUTIONS))
    contributions = by_feature(spec, outputs[CONTRIBUTIONS])
    score = outputs[ANOMALY_SCORE]
    highest = score >= np.quantile(score, 1 - TOP_SHARE)
    leads = np.bincount(contributions[highest].argmax(axis=1), minlength=len(spec.features)) / highest.sum()
    totals = np.maximum(contributions.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    shares = (contributions / totals).mean(axis=0)
    return {
        name: {"share": float(share), "leads": float(lead)}
        for name, share, lead, feature in zip(spec.names, shares, leads, spec.features, strict=True)
        if feature.use == "score"
    }


def print_report(written: artifact.Artifact) -> None:
    """Prints what was read and learnt, the alerts to expect, figures of the test part, and the features."""
    manifest = written.manifest
    training, figures = manifest.training, manifest.figures
    print(f"Wrote {written.uri}: model {manifest.model_name} version {manifest.model_version}")
    print(f"Files: {', '.join((*manifest.files, artifact.MANIFEST_FILE))}")
    print(_rows_read(manifest.provenance, training["copies"]))
    if "frauds" not in manifest.provenance:
        print("No labels: frauds among the rows pass for normal, and frauds like them score less.")
    if unused := manifest.provenance.get("columns_not_used"):
        print(f"Columns not used: {safe_text(', '.join(unused))}")
    print_left_out(manifest.provenance)
    for line in _learnt_lines(manifest.spec, manifest.learnt):
        print(line)
    if constant := training["constant_features"]:
        print(f"Constant in the training rows, and so left out of the score: {', '.join(constant)}")
    print(
        f"Stopped after {training['epochs_run']} epochs; kept the weights of epoch "
        f"{training['best_epoch'] + 1}. Took {training['seconds']:.0f} s.\n"
    )
    print_rows(
        [
            {
                "severity": name,
                "threshold": f"{manifest.thresholds[name]:.4g}",
                "budget": f"{100 * training[f'{name}_budget']:g} %",
                "calibration_rows_above": round(training["rows_calibrated"] * training[f"{name}_budget"]),
                "test_normals_alerted": f"{100 * at['share_of_normals']:.2f} %",
                "alerts": at["alerts"],
                "recall": at["recall"],
            }
            for name, at in figures["at_thresholds"].items()
        ]
    )
    if "scores" in figures:
        rows = figures["rows"]
        print(
            f"\nTest part: {rows['frauds']} frauds, {rows['normals']} normals weighted to "
            f"{100 * figures['prevalence']:.3f} % fraud\n"
        )
        print_rows(evaluation.figure_rows(dict(figures)))
        if kinds := evaluation.kind_rows(figures.get("by_kind", {})):
            print("\nBy kind of fraud, against all normals\n")
            print_rows(kinds)
    print("\nThe features among normals: quantiles of their inputs, and their shares of the score\n")
    print_rows(_feature_rows(manifest))
    for name, reason in figures.get("left_out", {}).items():
        print(f"{name} cannot run on this data and is left out: {reason}")


def print_left_out(provenance: Mapping[str, Any]) -> None:
    """Says how many rows of a dataset are not used, and why."""
    if without := provenance.get("rows_without_label"):
        print(f"Rows left out, because they have no label: {without:,}")
    if refused := provenance.get("rows_refused"):
        texts = ", ".join(f"{name} ({count:,})" for name, count in refused.items())
        print(f"Rows left out, because the feature spec refuses them, by field: {safe_text(texts)}")


def _rows_read(provenance: Mapping[str, Any], copies: int) -> str:
    """Says in a sentence how many rows came, and of which kinds."""
    parts = [f"Read {provenance['rows']:,} rows"] if "rows" in provenance else []
    if "frauds" in provenance:
        parts.append(f"{provenance['frauds']:,} frauds")
    return f"{', '.join([*parts, f'{copies:,} copies of other rows'])}."


def _learnt_lines(spec: FeatureSpec, learnt: Learnt) -> list[str]:
    """Says what the encoding of the features learnt."""
    lines = []
    for name, rarity in learnt.categories.items():
        frequent = ", ".join(rarity.values[:3])
        lines.append(
            f"{name}: {len(rarity.values):,} values have a rarity of their own, the most frequent are "
            f"{safe_text(frequent)}; any other has {rarity.other:.3g}"
        )
    lines += [
        f"{name}: the median {value:.4g} stands for a missing value" for name, value in learnt.medians.items()
    ]
    return lines


def _feature_rows(manifest: artifact.Manifest) -> list[dict[str, Any]]:
    """A row an input: quantiles, and the share of its feature in the score of held-out normals."""
    spec, shares = manifest.spec, manifest.training["score_shares"]
    rows = []
    for name, group in zip(spec.inputs, spec.groups, strict=True):
        values = manifest.feature_quantiles[name]
        at = shares.get(spec.names[group], {})
        rows.append(
            {
                "input": name,
                **{f"{5 * i} %": f"{values[i]:.4g}" for i in (0, 1, 10, 19, 20)},
                "score_share": f"{100 * at['share']:.1f} %" if at else "not in the score",
                "leads_top_1_%": f"{100 * at['leads']:.1f} %" if at else "",
            }
        )
    return rows

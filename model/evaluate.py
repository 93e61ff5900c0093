"""Judges a model on labelled transactions, beside baselines on the same rows.

Example:
  python -m model.evaluate --model out/model --data transactions.parquet --png out/evaluation.png
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common.command import command
from model import artifact, baselines, data, evaluation, fitting, metrics, plots, torchscript
from model.thresholds import ScoreQuantiles, calibrate

MIN_NORMALS: Final = 200
"""Of data not recognised as the training data. Half of them fit the baselines, whose covariances of 30
features need a few rows for each."""


@dataclass(frozen=True)
class Rows:
    """What one evaluation is made on.

    Attributes:
      fit: normals that the baselines are fitted to, float32 [n, 30].
      rows: transactions to judge on, float32 [m, 30].
      labels: int8 [m].
      description: the same in words.
    """

    fit: npt.NDArray[np.float32]
    rows: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]
    description: str


def choose_rows(dataset: data.Dataset, manifest: artifact.Manifest, seed: int) -> Rows:
    """The rows to judge a model on; none of them was trained on where the whole training data is recognised.

    On the data that the model was trained on, these are the test part of the same split, and the baselines
    are fitted to its training part; the same where it was trained on these rows without their labels. On
    other data, half of the normals fit the baselines, and the other half and all frauds are judged. A part of
    the training data, or more than it, is not recognised: the manifest has a fingerprint of the whole alone.

    Raises:
      DataError: the data has no labels, lacks one of the classes, or has fewer than MIN_NORMALS normals.
    """
    labels = required_labels(dataset)
    trained_on = (dataset, dataclasses.replace(dataset, labels=None))
    known = [d for d in trained_on if data.fingerprint(d) == manifest.provenance.get("fingerprint")]
    if known:
        split_seed = int(manifest.training["seed"])
        parts = data.split(known[0], split_seed)
        fit = parts.train[labels[parts.train] == 0]
        return Rows(
            dataset.features[fit],
            dataset.features[parts.test],
            labels[parts.test],
            f"test part (seed {split_seed}) of the data that the model was trained on",
        )
    n_normal = int((labels == 0).sum())
    if n_normal < MIN_NORMALS:
        raise data.DataError(
            f"--data has {n_normal} normal transactions (column Class 0), at least {MIN_NORMALS} are needed: "
            "half of them fit the baselines, the others are judged"
        )
    normals = np.random.default_rng(seed).permutation(np.flatnonzero(labels == 0))
    fit, judged = np.array_split(normals, 2)
    judged = np.sort(np.concatenate([judged, np.flatnonzero(labels == 1)]))
    return Rows(
        dataset.features[fit],
        dataset.features[judged],
        labels[judged],
        "data not recognised as the training data (rows of it may be among them): half of its normals "
        "and all its frauds",
    )


def required_labels(dataset: data.Dataset) -> npt.NDArray[np.int8]:
    """The labels of a dataset that has both classes; DataError otherwise."""
    if dataset.labels is None:
        raise data.DataError("the data has no column Class; an evaluation needs labels")
    if not dataset.labels.any() or dataset.labels.all():
        raise data.DataError("column Class holds one class only; an evaluation needs frauds and normals")
    return dataset.labels


def evaluate_model(
    found: artifact.Artifact, dataset: data.Dataset, prevalence: float, seed: int, png: Path | None
) -> dict[str, Any]:
    """Judges one artifact; writes the picture when asked to. See `evaluation.compare` for the report."""
    rows = choose_rows(dataset, found.manifest, seed)
    report, scores = evaluation.compare(
        found.load_model(), rows.fit, rows.rows, rows.labels, baselines.available(), prevalence, seed
    )
    report = {"model_version": found.manifest.model_version, "evaluated_on": rows.description, **report}
    if png:
        _draw(png, scores, rows.labels, found.manifest.thresholds, report)
    return report


def evaluate_repeatedly(
    train_data: data.Dataset | None,
    dataset: data.Dataset,
    repeats: int,
    prevalence: float,
    png: Path | None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains and judges `repeats` models with seeds 0, 1, ...; mean and spread of their figures.

    With `train_data`, each is trained on a split of it and judged on all of `dataset`; without, both come
    from `dataset`, which is split anew for each seed. The picture is that of seed 0.
    """
    reports = []
    for seed in tqdm(range(repeats), desc="Seeds", unit="model"):
        source = train_data or dataset
        parts = data.split(source, seed)
        normal = source.is_normal
        fit, validation = (source.features[part[normal[part]]] for part in (parts.train, parts.validation))
        chosen = fitting.Settings(seed=seed, **(settings or {})).suited_to(source.labels is not None)
        network = fitting.fit(fit, validation, chosen, progress=False).network
        module = torchscript.trace(network)
        judged = np.arange(len(dataset.features)) if train_data else parts.test
        rows, labels = dataset.features[judged], required_labels(dataset)[judged]
        report, scores = evaluation.compare(
            module, fit, rows, labels, baselines.available(), prevalence, seed
        )
        reports.append(report)
        if png and seed == 0:
            quantiles = ScoreQuantiles.of(evaluation.anomaly_scores(module, validation))
            _draw(png, scores, labels, calibrate(quantiles), report)
    where = "all rows of --data" if train_data else "the test part of --data, split by each seed"
    return {
        "evaluated_on": f"{where}; {repeats} seeds of training and split",
        **evaluation.summary(reports),
        "by_seed": reports,
    }


def _draw(
    png: Path,
    scores: dict[str, evaluation.Scores],
    labels: npt.NDArray[np.int8],
    thresholds: Any,
    report: dict[str, Any],
) -> None:
    title = (
        f"{report['rows']['frauds']} frauds, {report['rows']['normals']} normals weighted to "
        f"{100 * report['prevalence']:.3f} % fraud"
    )
    plots.evaluation_picture(png, scores, labels, thresholds, report["prevalence"], title)


def readable(report: dict[str, Any]) -> str:
    """The report as text: what it was measured on, then the table."""
    rows = report["rows"]
    return (
        f"Evaluated on {report['evaluated_on']}:\n{rows['frauds']} frauds and {rows['normals']} normals, "
        f"weighted to {100 * report['prevalence']:.3f} % fraud; baselines fitted to "
        f"{rows['normals_that_baselines_are_fitted_to']} normals.\n\n{evaluation.table(report)}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluate",
        description="Judge the anomaly score on labelled transactions, beside baselines on the same rows.",
        epilog="Examples: python -m model.evaluate --model out/model --data ulb.parquet --png out/picture.png"
        " | python -m model.evaluate --data ulb.parquet --repeat 5",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="artifact directory, local or gs://bucket/prefix")
    what.add_argument("--repeat", type=int, metavar="N", help="train and judge N models with seeds 0 to N-1")
    parser.add_argument(
        "--data",
        default=data.SYNTHETIC,
        help="labelled CSV or Parquet file in the ULB layout, bigquery://project.dataset.table, or synthetic",
    )
    parser.add_argument("--train_data", help="with --repeat: train on this data, judge on all of --data")
    parser.add_argument(
        "--prevalence",
        type=float,
        default=metrics.TRUE_PREVALENCE,
        help="share of frauds to weight the normals to (default: that of the full ULB data, 0.00173)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of baselines and synthetic data; with --repeat, of the data alone",
    )
    parser.add_argument("--rows", type=int, default=data.SYNTHETIC_ROWS, help="synthetic rows to draw")
    parser.add_argument("--png", type=Path, help="write the picture here")
    parser.add_argument("--json", type=Path, help="write the report here, too")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the output")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m model.evaluate`; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.repeat is not None and args.repeat < 1:
        parser.error("--repeat must be at least 1")
    if not 0 < args.prevalence < 1:
        parser.error("--prevalence must lie between 0 and 1")
    if args.train_data and not args.repeat:
        parser.error("--train_data goes with --repeat")
    for name, least in (("rows", 1), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    try:
        # An evaluation takes minutes; a place that cannot be written to must not cost them.
        for path in filter(None, (args.png, args.json)):
            artifact.check_writable(path.parent)
        dataset = data.load(args.data, rows=args.rows, seed=args.seed)
        required_labels(dataset)
        if args.model:
            report = evaluate_model(artifact.read(args.model), dataset, args.prevalence, args.seed, args.png)
        else:
            train_data = data.load(args.train_data, rows=args.rows) if args.train_data else None
            report = evaluate_repeatedly(train_data, dataset, args.repeat, args.prevalence, args.png)
    except (data.DataError, artifact.ArtifactError) as e:
        print(f"model.evaluate: {e}", file=sys.stderr)
        return 2
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text if args.format == "json" else readable(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Trains the model on normal transactions and writes its artifact directory.

Example:
  python -m model.train --data synthetic --output out/model
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from common.command import command
from model import artifact, baselines, data, evaluation, fitting, package, torchscript
from model.features import FEATURES
from model.thresholds import ALERT_BUDGETS, ScoreQuantiles, calibrate, severity_codes

PACKAGE: Final = "beam-transaction-anomaly"


def train(
    dataset: data.Dataset,
    output: str,
    settings: fitting.Settings | None = None,
    model_version: str | None = None,
    progress: bool = True,
) -> artifact.Artifact:
    """Splits the data, fits the network, calibrates the thresholds and writes the artifact.

    Known frauds are left out of everything that is learnt; labels serve the figures of the test part alone.
    Without labels the network is fitted twice, the second time without the most anomalous rows, and the alert
    budgets are shares of all transactions and not of normals.

    Args:
      dataset: what to train on.
      output: artifact directory, local or gs://bucket/prefix.
      settings: of the training; their seed is that of the split, too.
      model_version: the time of training when None.
      progress: show a progress bar.

    Raises:
      DataError: too few normal transactions.
      ArtifactError: the output cannot be written as an artifact.
    """
    settings = (settings or fitting.Settings()).suited_to(labelled=dataset.labels is not None)
    parts = data.split(dataset, settings.seed)
    fit_rows, validation_rows, test_rows = (
        _normals(dataset, part) for part in (parts.train, parts.validation, parts.test)
    )
    fitted = fitting.fit(fit_rows, validation_rows, settings, progress)
    module = torchscript.trace(fitted.network)
    quantiles = ScoreQuantiles.of(evaluation.anomaly_scores(module, validation_rows))
    thresholds = calibrate(quantiles)
    version = model_version or datetime.now(UTC).strftime("%Y%m%d.%H%M%S")
    manifest = artifact.Manifest(
        model_name=artifact.MODEL_NAME,
        model_version=version,
        features=FEATURES,
        thresholds=thresholds,
        quantiles=quantiles,
        training={
            **fitted.history,
            "split": dict(zip(("train", "validation", "test"), data.SPLIT_SHARES, strict=True)),
            "rows_fitted": len(fit_rows),
            "rows_calibrated": len(validation_rows),
            "alert_budgets": dict(ALERT_BUDGETS),
        },
        provenance={**dataset.provenance, "fingerprint": data.fingerprint(dataset)},
        figures=_figures(module, dataset, parts, fit_rows, test_rows, thresholds, settings.seed),
        versions=versions(),
    )
    with TemporaryDirectory() as directory:
        path = Path(directory) / artifact.MODEL_FILE
        torchscript.save(module, path)
        files = [path]
        if package.archive_available():
            files.append(package.write_archive(path, Path(directory), version))
        return artifact.write(output, manifest, files)


def _normals(dataset: data.Dataset, part: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    return dataset.features[part[dataset.is_normal[part]]]


def _figures(
    module: torch.jit.ScriptModule,
    dataset: data.Dataset,
    parts: data.Split,
    fit_rows: npt.NDArray[np.float32],
    test_rows: npt.NDArray[np.float32],
    thresholds: dict[str, float],
    seed: int,
) -> dict[str, Any]:
    """What the test part says: alert rates of its normals, and with labels the figures of an evaluation."""
    codes = severity_codes(evaluation.anomaly_scores(module, test_rows), thresholds)
    figures: dict[str, Any] = {
        "alert_share_of_test_normals": {
            name: float((codes >= code).mean()) for code, name in enumerate(thresholds, start=1)
        }
    }
    if dataset.labels is None or len(np.unique(dataset.labels[parts.test])) < 2:
        return {**figures, "note": "the test part has no labelled frauds to judge the score on"}
    report, _ = evaluation.compare(
        module,
        fit_rows,
        dataset.features[parts.test],
        dataset.labels[parts.test],
        baselines.available(quick=True),
        seed=seed,
    )
    return {**figures, **report}


def versions() -> dict[str, str]:
    """Versions of Python, torch and this package, for the manifest."""
    try:
        own = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {"python": platform.python_version(), "torch": torch.__version__, PACKAGE: own}


def readable(written: artifact.Artifact) -> str:
    """What was trained, as text."""
    manifest = written.manifest
    lines = [
        f"Wrote {written.uri}: model {manifest.model_name} version {manifest.model_version}, "
        f"files {', '.join(manifest.files)}",
        f"Stopped after {manifest.training['epochs_run']} epochs; kept the weights of epoch "
        f"{manifest.training['best_epoch'] + 1}.",
        "Thresholds: " + ", ".join(f"{name} {value:.4g}" for name, value in manifest.thresholds.items()),
    ]
    if "scores" in manifest.figures:
        rows = manifest.figures["rows"]
        lines += [
            f"Test part: {rows['frauds']} frauds, {rows['normals']} normals weighted to "
            f"{100 * manifest.figures['prevalence']:.3f} % fraud",
            evaluation.table(dict(manifest.figures)),
        ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    defaults = fitting.Settings()
    parser = argparse.ArgumentParser(
        prog="python -m model.train",
        description="Train the model on normal transactions and write its artifact directory.",
        epilog="Examples: python -m model.train --data synthetic --output out/model"
        " | python -m model.train --data ulb.parquet --output gs://my-bucket/model"
        " | python -m model.train --output out/model"
        " --data bigquery://bigquery-public-data.ml_datasets.ulb_fraud_detection",
    )
    parser.add_argument(
        "--data",
        default=data.SYNTHETIC,
        help="CSV or Parquet file in the ULB layout (Class optional), bigquery://project.dataset.table, or "
        "synthetic (default)",
    )
    parser.add_argument("--output", required=True, help="artifact directory, local or gs://bucket/prefix")
    parser.add_argument(
        "--seed", type=int, default=0, help="of split, weights and synthetic data (default 0)"
    )
    parser.add_argument(
        "--rows", type=int, default=data.SYNTHETIC_ROWS, help="synthetic rows to draw (default %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=int, default=defaults.epochs, help="at most this many (default %(default)s)"
    )
    parser.add_argument("--model_version", help="version in the manifest (default: the time of training)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json prints the manifest")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m model.train`; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    for name, least in (("epochs", 1), ("rows", 1), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")
    try:
        # Data that cannot be split is refused before the output directory is made.
        dataset = data.load(args.data, rows=args.rows, seed=args.seed)
        data.check_enough(dataset)
        artifact.check_writable(args.output)
        settings = fitting.Settings(seed=args.seed, epochs=args.epochs)
        written = train(dataset, args.output, settings, args.model_version)
    except (data.DataError, artifact.ArtifactError) as e:
        print(f"model.train: {e}", file=sys.stderr)
        return 2
    print(written.manifest.to_json() if args.format == "json" else readable(written))
    if artifact.ARCHIVE_FILE not in written.manifest.files:
        print(
            f"model.train: left out {artifact.ARCHIVE_FILE}, which TorchServe needs: torch-model-archiver is "
            "not installed (pip install torch-model-archiver)",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Trains the model on normal transactions and writes its artifact directory."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from common.command import MissingExtraError, Parser, command
from common.options import add_options, option, read_options
from common.output import print_rows
from model import artifact, baselines, data, evaluation, fitting, package, torchscript
from model.features import FEATURES
from model.thresholds import ALERT_BUDGETS, ScoreQuantiles, calibrate, severity_codes

EXAMPLES: Final = """
  anomaly train --output out/model
  anomaly train --data ulb.parquet --output gs://my-bucket/model
  anomaly train --data bigquery://bigquery-public-data.ml_datasets.ulb_fraud_detection --output out/model
"""
PACKAGE: Final = "beam-transaction-anomaly"


@dataclass(frozen=True)
class ArtifactOptions:
    """The artifact that a training writes."""

    output: str = option(metavar="DIR", help="artifact directory, local or gs://bucket/prefix")
    model_version: str | None = option(None, help="version in the manifest (default: the time of training)")


def train(
    dataset: data.Dataset,
    output: str,
    options: fitting.TrainingOptions | None = None,
    model_version: str | None = None,
    progress: bool = True,
) -> artifact.Artifact:
    """Splits the data, fits the network, calibrates the thresholds and writes the artifact.

    Known frauds are left out of everything that is learnt; labels serve the figures of the test part alone.
    Without labels the network is fitted twice, the second time without the most anomalous rows, and the alert
    budgets are shares of all transactions and not of normals.

    >>> dataset, options = data.load("synthetic", rows=6_000), fitting.TrainingOptions(epochs=1)
    >>> with TemporaryDirectory() as directory:
    ...     written = train(dataset, directory, options, model_version="1.0", progress=False)
    ...     module = artifact.read(directory).load_model()
    >>> evaluation.anomaly_scores(module, dataset.features[:3]).shape
    (3,)
    >>> sorted(written.manifest.thresholds)
    ['high', 'medium']

    Args:
      dataset: transactions to train on.
      output: artifact directory, local or gs://bucket/prefix.
      options: of the training; their seed is also that of the split.
      model_version: the time of training when None.
      progress: show a progress bar.

    Raises:
      DataError: too few normal transactions.
      ArtifactError: the output cannot be written as an artifact.
    """
    options = (options or fitting.TrainingOptions()).suited_to(labelled=dataset.labels is not None)
    parts = data.split(dataset, options.seed)
    fit_rows, validation_rows, test_rows = (
        _normals(dataset, part) for part in (parts.train, parts.validation, parts.test)
    )
    fitted = fitting.fit(fit_rows, validation_rows, options, progress)
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
        figures=_figures(module, dataset, parts, fit_rows, test_rows, thresholds, options.seed),
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
    """Measures on the test part: alert rates of its normals, and with labels the figures of an evaluation."""
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


def print_summary(written: artifact.Artifact) -> None:
    """Prints what was trained: files, epochs, thresholds, and the figures of the test part."""
    manifest = written.manifest
    print(f"Wrote {written.uri}: model {manifest.model_name} version {manifest.model_version}")
    print(f"Files: {', '.join((*manifest.files, artifact.MANIFEST_FILE))}")
    print(
        f"Stopped after {manifest.training['epochs_run']} epochs; kept the weights of epoch "
        f"{manifest.training['best_epoch'] + 1}."
    )
    print("Thresholds: " + ", ".join(f"{name} {value:.4g}" for name, value in manifest.thresholds.items()))
    if "scores" in manifest.figures:
        rows = manifest.figures["rows"]
        print(
            f"Test part: {rows['frauds']} frauds, {rows['normals']} normals weighted to "
            f"{100 * manifest.figures['prevalence']:.3f} % fraud\n"
        )
        print_rows(evaluation.figure_rows(dict(manifest.figures)))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly train`."""
    parser = Parser("anomaly train", __doc__, EXAMPLES)
    add_options(parser, ArtifactOptions, "artifact")
    add_options(parser, data.DataOptions, "data")
    add_options(parser, fitting.TrainingOptions, "training")
    args = parser.parse_args(argv)
    target = read_options(ArtifactOptions, args)
    source = read_options(data.DataOptions, args)
    options = read_options(fitting.TrainingOptions, args, seed=source.seed)
    try:
        # Data that cannot be split is refused before the output directory is made.
        dataset = data.load(source.data, source.rows, source.seed)
        data.check_enough(dataset)
        artifact.check_writable(target.output)
        written = train(dataset, target.output, options, target.model_version)
    except ImportError as error:
        raise MissingExtraError("training", "train", error) from error
    print_summary(written)
    if artifact.ARCHIVE_FILE not in written.manifest.files:
        print(
            f"Left out {artifact.ARCHIVE_FILE}, which TorchServe needs: run pip install torch-model-archiver",
            file=sys.stderr,
        )
    return 0

"""Trains the model on normal transactions and writes its artifact directory."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
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
from common.options import OptionError, add_options, option, read_options
from common.output import print_rows, safe_text
from model import artifact, baselines, data, evaluation, fitting, metrics, package, torchscript
from model.features import FEATURES
from model.ranges import feature_quantiles
from model.thresholds import ScoreQuantiles, calibrate, severity_codes

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
    prevalence: float = option(
        metrics.TRUE_PREVALENCE,
        metavar="SHARE",
        help="share of frauds for which the figures of the test part are given (default: that of the full "
        "ULB data, 0.00173)",
    )

    def __post_init__(self) -> None:
        if not 0 < self.prevalence < 1:
            raise OptionError(f"--prevalence: expected a share between 0 and 1, got {self.prevalence}")


def train(
    dataset: data.Dataset,
    output: str,
    options: fitting.TrainingOptions | None = None,
    model_version: str | None = None,
    progress: bool = True,
    prevalence: float = metrics.TRUE_PREVALENCE,
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
      prevalence: share of frauds for which the figures of the test part are given.

    Raises:
      DataError: too few normal transactions.
      ArtifactError: the output cannot be written as an artifact.
    """
    options = (options or fitting.TrainingOptions()).suited_to(labelled=dataset.labels is not None)
    parts = data.split(dataset, options.seed, options.split)
    fit_rows, validation_rows = (_normals(dataset, part) for part in (parts.train, parts.validation))
    fitted = fitting.fit(fit_rows, validation_rows, options, progress)
    module = torchscript.trace(fitted.network)
    quantiles = ScoreQuantiles.of(evaluation.anomaly_scores(module, validation_rows))
    thresholds = calibrate(quantiles, options.budgets)
    version = model_version or datetime.now(UTC).strftime("%Y%m%d.%H%M%S")
    manifest = artifact.Manifest(
        model_name=artifact.MODEL_NAME,
        model_version=version,
        features=FEATURES,
        thresholds=thresholds,
        quantiles=quantiles,
        training={
            **fitted.history,
            "split_shares": dict(zip(("train", "validation", "test"), data.SPLIT_SHARES, strict=True)),
            "copies": parts.copies,
            "rows_fitted": len(fit_rows),
            "rows_calibrated": len(validation_rows),
        },
        provenance={**dataset.provenance, "fingerprint": data.fingerprint(dataset)},
        figures=_figures(module, dataset, parts, fit_rows, thresholds, options.seed, prevalence),
        feature_quantiles=feature_quantiles(FEATURES, fit_rows),
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
    thresholds: dict[str, float],
    seed: int,
    prevalence: float,
) -> dict[str, Any]:
    """Measures on the test part: alerts at the thresholds, and with labels the figures of an evaluation."""
    rows, is_normal = dataset.features[parts.test], dataset.is_normal[parts.test]
    codes = severity_codes(evaluation.anomaly_scores(module, rows), thresholds)
    at_thresholds = {}
    for code, name in enumerate(thresholds, start=1):
        alerted = codes >= code
        at_thresholds[name] = {
            "share_of_normals": float(alerted[is_normal].mean()),
            "alerts": int(alerted.sum()),
            "recall": float(alerted[~is_normal].mean()) if not is_normal.all() else None,
        }
    figures: dict[str, Any] = {"at_thresholds": at_thresholds}
    if is_normal.all() or not is_normal.any():
        return {**figures, "note": "the test part has no labelled frauds to judge the score on"}
    report, _ = evaluation.compare(
        module,
        fit_rows,
        rows,
        (~is_normal).astype(np.int8),
        baselines.available(quick=True),
        prevalence,
        seed,
        baselines.Labelled(
            dataset.features[parts.validation], (~dataset.is_normal[parts.validation]).astype(np.int8)
        ),
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
    """Prints what was read and trained, the alerts at the thresholds, and the figures of the test part."""
    manifest = written.manifest
    training, figures = manifest.training, manifest.figures
    print(f"Wrote {written.uri}: model {manifest.model_name} version {manifest.model_version}")
    print(f"Files: {', '.join((*manifest.files, artifact.MANIFEST_FILE))}")
    print(_rows_read(manifest.provenance, training["copies"]))
    if unused := manifest.provenance.get("columns_not_used"):
        print(f"Columns not used: {safe_text(', '.join(unused))}")
    if constant := training["constant_features"]:
        print(f"Constant in the training rows, and so left out of the score: {', '.join(constant)}")
    print(
        f"Stopped after {training['epochs_run']} epochs; kept the weights of epoch "
        f"{training['best_epoch'] + 1}.\n"
    )
    print_rows(
        [
            {
                "severity": name,
                "threshold": f"{manifest.thresholds[name]:.4g}",
                "budget": f"{100 * training[f'{name}_budget']:g} %",
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
    for name, reason in figures.get("left_out", {}).items():
        print(f"{name} cannot run on this data and is left out: {reason}")


def _rows_read(provenance: Mapping[str, Any], copies: int) -> str:
    """Says in a sentence how many rows came, and of which kinds."""
    parts = [f"Read {provenance['rows']:,} rows"] if "rows" in provenance else []
    if "frauds" in provenance:
        parts.append(f"{provenance['frauds']:,} frauds")
    if left_out := provenance.get("rows_without_label"):
        parts.append(f"{left_out:,} without a label, left out")
    return f"{', '.join([*parts, f'{copies:,} copies of other rows'])}."


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
        dataset = data.load(source.data, source.rows, source.seed, source.label_column)
        data.check_enough(dataset)
        artifact.check_writable(target.output)
        written = train(dataset, target.output, options, target.model_version, prevalence=target.prevalence)
    except ImportError as error:
        raise MissingExtraError("training", "train", error) from error
    print_summary(written)
    if artifact.ARCHIVE_FILE not in written.manifest.files:
        print(
            f"Left out {artifact.ARCHIVE_FILE}, which TorchServe needs: run pip install torch-model-archiver",
            file=sys.stderr,
        )
    return 0

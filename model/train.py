"""Trains the model on normal transactions and writes its artifact directory."""

from __future__ import annotations

import platform
import sys
import time
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
from common.options import OptionError, add_options, option, read_options
from features.profiles import training_shares
from features.ranges import feature_quantiles
from model import artifact, baselines, data, evaluation, fitting, metrics, package, torchscript
from model.dataset import fingerprint
from model.report import print_report, score_shares
from model.thresholds import ScoreQuantiles, calibrate, severity_codes

EXAMPLES: Final = """
  anomaly train --output out/model
  anomaly train --data ulb.parquet --output gs://my-bucket/model
  anomaly train --data payments.csv --features features.yaml --output out/model
  anomaly train --data bigquery://bigquery-public-data.ml_datasets.ulb_fraud_detection --output out/model
"""
PACKAGE: Final = "beam-transaction-anomaly"
JUDGED_NORMALS: Final = 100_000
"""Normals of a part that figures and baselines are made of at most: more cost minutes and change no digit."""


@dataclass(frozen=True)
class ArtifactOptions:
    """The artifact that a training writes."""

    output: str = option(metavar="DIR", help="artifact directory, local or gs://bucket/prefix")
    model_version: str | None = option(None, help="version in the manifest (default: the time of training)")
    prevalence: float | None = option(
        None,
        metavar="SHARE",
        help="share of frauds for which the figures of the test part are given (default: that of the full "
        "ULB data, 0.00173, for its features, otherwise that of --data)",
    )

    def __post_init__(self) -> None:
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise OptionError(f"--prevalence: expected a share between 0 and 1, got {self.prevalence}")


def train(
    dataset: data.Dataset,
    output: str,
    options: fitting.TrainingOptions | None = None,
    model_version: str | None = None,
    progress: bool = True,
    prevalence: float | None = None,
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
      prevalence: share of frauds for which the figures of the test part are given, see
        `metrics.usual_prevalence`.

    Raises:
      DataError: too few normal transactions.
      ArtifactError: the output cannot be written as an artifact.
    """
    started = time.monotonic()
    options = (options or fitting.TrainingOptions()).suited_to(dataset.labels is not None, dataset.spec)
    parts = data.split(dataset, options.seed, options.split or "random")
    # What encodes the features is learnt as the network is: from normals of the training part alone.
    dataset = dataset.learning_from(parts.train[dataset.is_normal[parts.train]])
    spec, learnt = dataset.spec, dataset.learnt
    fit_rows, validation_rows = (_normals(dataset, part) for part in (parts.train, parts.validation))
    fitted = fitting.fit(fit_rows, validation_rows, options, progress, spec)
    module = torchscript.trace(fitted.network)
    quantiles = ScoreQuantiles.of(evaluation.anomaly_scores(module, validation_rows))
    thresholds = calibrate(quantiles, options.budgets)
    ranges = feature_quantiles(spec.inputs, fit_rows)
    version = model_version or datetime.now(UTC).strftime("%Y%m%d.%H%M%S")
    manifest = artifact.Manifest(
        model_name=artifact.MODEL_NAME,
        model_version=version,
        features=spec.names,
        thresholds=thresholds,
        quantiles=quantiles,
        training={
            **fitted.history,
            "split_shares": dict(zip(("train", "validation", "test"), data.SPLIT_SHARES, strict=True)),
            "copies": parts.copies,
            "rows_fitted": len(fit_rows),
            "rows_calibrated": len(validation_rows),
            "score_shares": score_shares(spec, module, validation_rows),
            "seconds": round(time.monotonic() - started, 1),
        },
        provenance={**dataset.provenance, "fingerprint": fingerprint(dataset)},
        figures=_figures(module, dataset, parts, fit_rows, thresholds, options.seed, prevalence),
        feature_quantiles=ranges,
        feature_shares=training_shares(spec.inputs, fit_rows, ranges),
        missing_shares=dataset.missing_shares(parts.train[dataset.is_normal[parts.train]]),
        versions=versions(),
        spec=spec,
        learnt=learnt,
    )
    with TemporaryDirectory() as directory:
        path = Path(directory) / artifact.MODEL_FILE
        torchscript.save(module, path)
        files = [path]
        if package.archive_available():
            files.append(package.write_archive(path, Path(directory), version, spec, learnt))
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
    prevalence: float | None,
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
    assert dataset.labels is not None
    judged = _judged(dataset, parts.test, seed)
    test, chooser = (
        baselines.Labelled(dataset.features[part], (~dataset.is_normal[part]).astype(np.int8))
        for part in (judged, _judged(dataset, parts.validation, seed))
    )
    report, _ = evaluation.compare(
        module,
        fit_rows[:: len(fit_rows) // JUDGED_NORMALS + 1],
        test.rows,
        test.labels,
        baselines.available(quick=True),
        prevalence or metrics.usual_prevalence(dataset.spec, dataset.labels),
        seed,
        chooser,
        dataset.spec,
        None if dataset.kinds is None else dataset.kinds[judged],
    )
    return {**figures, **report}


def _judged(dataset: data.Dataset, part: npt.NDArray[np.intp], seed: int) -> npt.NDArray[np.intp]:
    """Takes the frauds of a part, and at most JUDGED_NORMALS of its normals."""
    normals = part[dataset.is_normal[part]]
    if len(normals) > JUDGED_NORMALS:
        normals = np.random.default_rng(seed).choice(normals, JUDGED_NORMALS, replace=False)
        part = np.sort(np.concatenate([normals, part[~dataset.is_normal[part]]]))
    return part


def versions() -> dict[str, str]:
    """Versions of Python, torch and this package, for the manifest."""
    try:
        own = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {"python": platform.python_version(), "torch": torch.__version__, PACKAGE: own}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly train`."""
    needed = f"It needs at least {data.MIN_NORMALS:,} normal transactions; a fifth places the thresholds."
    parser = Parser("anomaly train", f"{__doc__}\n\n{needed}", EXAMPLES)
    add_options(parser, ArtifactOptions, "artifact")
    add_options(parser, data.DataOptions, "data")
    add_options(parser, fitting.TrainingOptions, "training")
    args = parser.parse_args(argv)
    target = read_options(ArtifactOptions, args)
    source = read_options(data.DataOptions, args)
    options = read_options(fitting.TrainingOptions, args, seed=source.seed)
    try:
        # Data that cannot be split is refused before the output directory is made.
        dataset = data.load(
            source.data, source.rows, source.seed, source.label_column, source.spec, source.kind_column
        )
        data.check_enough(dataset)
        artifact.check_writable(target.output)
        written = train(dataset, target.output, options, target.model_version, prevalence=target.prevalence)
    except ImportError as error:
        raise MissingExtraError("training", "train", error) from error
    print_report(written)
    if artifact.ARCHIVE_FILE not in written.manifest.files:
        print(
            f"Left out {artifact.ARCHIVE_FILE}, which TorchServe needs: run pip install torch-model-archiver",
            file=sys.stderr,
        )
    return 0

"""Judges a model on labelled transactions, beside baselines on the same rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from common.command import MissingExtraError, Parser, command
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_rows, track
from common.values import at_least, location
from common.writing import write_text
from model import artifact, baselines, data, evaluation, fitting, metrics, plots, torchscript
from model.dataset import fingerprint
from model.protocol import judge
from model.protocol import report as protocol_report
from model.report import print_left_out
from model.thresholds import ScoreQuantiles, calibrate

EXAMPLES: Final = """
  anomaly evaluate --model out/model --data ulb.parquet --png out/evaluation.png
  anomaly evaluate --data ulb.parquet --protocol repeated --output out/protocol --report out/report.json
  anomaly evaluate --data cards.csv --features features.yaml --protocol repeated --splits 3 --max_rows 15000
  anomaly evaluate --data ulb.parquet --repeat 5
  anomaly evaluate --train_data dev.parquet --data holdout.parquet --repeat 5 --report out/report.json
"""
MIN_NORMALS: Final = 200
"""Of data not recognised as the training data. Half of them fit the baselines, whose covariances of 30
features need a few rows for each."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation: one model, several that it trains, or a protocol."""

    model: str | None = option(None, metavar="DIR", help="artifact directory, local or gs://bucket/prefix")
    repeat: int | None = option(
        None,
        type=at_least(1),
        metavar="N",
        help="train and judge N models with seeds 0 to N-1, in place of --model; --seed is that of the data",
    )
    protocol: Literal["repeated"] | None = option(
        None,
        help="repeated: in place of --model, train and judge the score on many splits by row and by time, "
        "paired with tuned baselines; about three minutes a split of 40,000 rows on a quiet core",
    )
    train_data: str | None = option(
        None,
        type=location,
        metavar="SOURCE",
        help="with --repeat: train on this data, judge on all of --data",
    )
    prevalence: float | None = option(
        None,
        metavar="SHARE",
        help="share of frauds to weight the normals to (default: that of the full ULB data, 0.00173, for its "
        "features, otherwise that of --data)",
    )
    png: Path | None = option(None, type=Path, metavar="FILE", help="write the picture here")
    report: Path | None = option(
        None, type=Path, metavar="FILE", help="write the whole report here as JSON, with the figures by seed"
    )

    def __post_init__(self) -> None:
        if [self.model, self.repeat, self.protocol].count(None) != 2:
            raise OptionError("--model, --repeat, --protocol: expected one of them")
        if self.protocol and self.png:
            raise OptionError("--png: expected with --model or --repeat; --protocol draws no picture")
        if self.train_data and not self.repeat:
            raise OptionError("--train_data: expected together with --repeat, which trains")
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise OptionError(f"--prevalence: expected a share between 0 and 1, got {self.prevalence}")


@dataclass(frozen=True)
class Rows:
    """The rows of one evaluation.

    Attributes:
      fit: normals that the baselines are fitted to, float32 [n, k].
      rows: transactions to judge on, float32 [m, k].
      labels: int8 [m].
      description: the same as text.
      chooser: labelled rows that choose the settings of the baselines; None where none are free for it.
      kinds: texts [m] that name the kind of each fraud; None where no column does.
    """

    fit: npt.NDArray[np.float32]
    rows: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]
    description: str
    chooser: baselines.Labelled | None = None
    kinds: npt.NDArray[Any] | None = None


def choose_rows(dataset: data.Dataset, manifest: artifact.Manifest, seed: int) -> Rows:
    """Chooses rows to judge a model on: none that it was trained on, where the training data is recognised.

    On the data that the model was trained on, these are the test part of the same split. The baselines are
    fitted to its training part, with settings that its validation part chooses. It is the same where the
    model was trained on these rows without their labels. On other data, half of the normals fit the
    baselines, and the other half and all frauds are judged. A part of the training data, or more than it, is
    not recognised: the manifest has a fingerprint of the whole alone.

    Raises:
      DataError: the data has no labels, has one class only, or has fewer than MIN_NORMALS normals.
    """
    labels = required_labels(dataset)
    trained_on = (dataset, dataclasses.replace(dataset, labels=None))
    known = [d for d in trained_on if fingerprint(d) == manifest.provenance.get("fingerprint")]
    if known:
        split_seed = int(manifest.training["seed"])
        by: data.SplitBy = "time" if manifest.training["split"] == "time" else "random"
        parts = data.split(known[0], split_seed, by)
        fit = parts.train[labels[parts.train] == 0]
        return Rows(
            dataset.features[fit],
            dataset.features[parts.test],
            labels[parts.test],
            f"test part ({by} split, seed {split_seed}) of the data that the model was trained on",
            _chooser(dataset, parts),
            _kinds(dataset, parts.test),
        )
    n_normal = int((labels == 0).sum())
    if n_normal < MIN_NORMALS:
        raise data.DataError(
            f"--data has {n_normal} normal transactions, at least {MIN_NORMALS} are needed: "
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
        kinds=_kinds(dataset, judged),
    )


def required_labels(dataset: data.Dataset) -> npt.NDArray[np.int8]:
    """Takes the labels of a dataset that has both classes.

    Raises:
      DataError: there are none, or of one class only.
    """
    if dataset.labels is None:
        raise data.DataError(
            f"the data has no labels (column {dataset.spec.roles.label}); an evaluation needs them"
        )
    if not dataset.labels.any() or dataset.labels.all():
        raise data.DataError("the labels are of one class only; an evaluation needs frauds and normals")
    return dataset.labels


def evaluate_model(
    judged: artifact.Artifact, dataset: data.Dataset, prevalence: float, seed: int, png: Path | None
) -> dict[str, Any]:
    """Judges one artifact; see `evaluation.compare` for the report. With `png` it writes the picture."""
    rows = choose_rows(dataset, judged.manifest, seed)
    detectors = baselines.available()
    report, scores = evaluation.compare(
        judged.load_model(),
        rows.fit,
        rows.rows,
        rows.labels,
        detectors,
        prevalence,
        seed,
        rows.chooser,
        judged.manifest.spec,
        rows.kinds,
    )
    report = {"model_version": judged.manifest.model_version, "evaluated_on": rows.description, **report}
    if png:
        _draw(png, scores, rows.labels, judged.manifest.thresholds, report)
    return report


def evaluate_repeatedly(
    train_data: data.Dataset | None,
    dataset: data.Dataset,
    repeats: int,
    prevalence: float,
    png: Path | None,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains and judges `repeats` models with seeds 0, 1, ...; mean and spread of their figures.

    With `train_data`, each is trained on a split of it and judged on all of `dataset`; without, both come
    from `dataset`, which is split anew for each seed. The picture is that of seed 0.
    """
    reports = []
    for seed in track(range(repeats), "models"):
        source = train_data or dataset
        parts = data.split(source, seed, fitting.usual_split(source.spec))
        normal = source.is_normal
        source = source.learning_from(parts.train[normal[parts.train]])
        fit, validation = (source.features[part[normal[part]]] for part in (parts.train, parts.validation))
        options = fitting.TrainingOptions(seed=seed, **(training or {})).suited_to(
            source.labels is not None, source.spec
        )
        network = fitting.fit(fit, validation, options, progress=False, spec=source.spec).network
        module = torchscript.trace(network)
        judged = np.arange(len(dataset.features)) if train_data else parts.test
        rows = dataset.encoded_by(source.learnt).features[judged]
        labels = required_labels(dataset)[judged]
        chooser = _chooser(source, parts)
        report, scores = evaluation.compare(
            module,
            fit,
            rows,
            labels,
            baselines.available(),
            prevalence,
            seed,
            chooser,
            source.spec,
            _kinds(dataset, judged),
        )
        reports.append(report)
        if png and seed == 0:
            quantiles = ScoreQuantiles.of(evaluation.anomaly_scores(module, validation))
            _draw(png, scores, labels, calibrate(quantiles), report)
    by = "time" if dataset.spec.history else "each seed"
    where = "all rows of --data" if train_data else f"the test part of --data, split by {by}"
    return {
        "evaluated_on": f"{where}; {repeats} seeds of training and split",
        **evaluation.summary(reports),
        "by_seed": reports,
    }


def _kinds(dataset: data.Dataset, rows: npt.NDArray[np.intp]) -> npt.NDArray[Any] | None:
    return None if dataset.kinds is None else dataset.kinds[rows]


def _chooser(source: data.Dataset, parts: data.Split) -> baselines.Labelled | None:
    """The labelled validation part of a split; None where the source has no labels."""
    if source.labels is None:
        return None
    return baselines.Labelled(source.features[parts.validation], source.labels[parts.validation])


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


def heading(report: dict[str, Any]) -> str:
    """Says in a sentence or two which rows a report is about."""
    rows = report["rows"]
    return (
        f"Evaluated on {report['evaluated_on']}:\n{rows['frauds']} frauds and {rows['normals']} normals, "
        f"weighted to {100 * report['prevalence']:.3f} % fraud; baselines fitted to "
        f"{rows['normals_that_baselines_are_fitted_to']} normals"
        f"{f', with {_settings(report)} chosen on the validation part' if report['chosen'] else ''}.\n"
    )


def _settings(report: dict[str, Any]) -> str:
    """Names the chosen settings of the baselines: of several models, each value once."""
    texts = []
    for name, settings in report["chosen"].items():
        for setting, value in settings.items():
            values = " or ".join(map(str, value if isinstance(value, list) else [value]))
            texts.append(f"{setting} {values} of {name}")
    return ", ".join(texts)


def _evaluate(
    options: EvaluateOptions, source: data.DataOptions, protocol: judge.ProtocolOptions
) -> dict[str, Any]:
    if not options.protocol and protocol != judge.ProtocolOptions():
        raise OptionError(
            "--splits, --by, --seeds, --max_rows, --processes, --output: expected with --protocol"
        )
    if options.model and source.features:
        raise OptionError("--features: expected without --model, which has its own feature spec")
    judged = artifact.read(options.model) if options.model else None
    spec = judged.manifest.spec if judged else source.spec
    label = source.label_column
    dataset = data.load(source.data, source.rows, source.seed, label, spec, source.kind_column)
    prevalence = options.prevalence or metrics.usual_prevalence(spec, required_labels(dataset))
    counts = {"data": _counts(dataset)}
    if options.protocol:
        return counts | judge.judge(dataset, protocol, prevalence, source.seed)
    if judged:
        dataset = dataset.encoded_by(judged.manifest.learnt)
        return counts | evaluate_model(judged, dataset, prevalence, source.seed, options.png)
    if options.train_data and spec.history:
        # The history of --data would begin anew, where that of an account goes on.
        raise OptionError(
            "--train_data: expected none for features with a history, which the rows to judge continue: pass "
            "--data alone, which is split by time"
        )
    train_data = (
        data.load(options.train_data, source.rows, label_column=label, spec=spec)
        if options.train_data
        else None
    )
    if train_data:
        counts["train_data"] = _counts(train_data)
    return counts | evaluate_repeatedly(train_data, dataset, options.repeat or 1, prevalence, options.png)


def _counts(dataset: data.Dataset) -> dict[str, Any]:
    """The rows that were read, and how many of them are left out, and why."""
    names = ("source", "rows", "rows_without_label", "rows_refused")
    return {name: dataset.provenance[name] for name in names if name in dataset.provenance}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly evaluate`."""
    parser = Parser("anomaly evaluate", __doc__, EXAMPLES)
    add_options(parser, EvaluateOptions, "evaluation")
    add_options(parser, data.DataOptions, "data")
    add_options(parser, judge.ProtocolOptions, "protocol")
    add_format(parser)
    args = parser.parse_args(argv)
    options, protocol = read_options(EvaluateOptions, args), read_options(judge.ProtocolOptions, args)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    # An evaluation takes minutes; a place that cannot be written to must not cost them.
    written = [path.parent for path in (options.png, options.report) if path]
    for directory in [*written, *([protocol.output] if protocol.output else [])]:
        artifact.check_writable(directory)
    try:
        report = _evaluate(options, read_options(data.DataOptions, args), protocol)
    except ImportError as error:
        raise MissingExtraError("an evaluation", "train", error) from error
    if options.report:
        write_text(options.report, json.dumps(report, indent=2) + "\n", "--report")
    if args.format == "table":
        for source in ("train_data", "data"):
            print_left_out(report.get(source, {}))
    if options.protocol:
        if args.format == "table":
            protocol_report.print_report(report)
        else:
            print_rows(protocol_report.figure_rows(report), args.format)
        return 0
    rows = evaluation.figure_rows(report)
    if args.format == "table":
        print(heading(report))
        for name, reason in report["left_out"].items():
            print(f"{name} cannot run on this data and is left out: {reason}")
        rows = evaluation.with_deviations(rows)
    print_rows(rows, args.format)
    if args.format == "table" and (kinds := evaluation.kind_rows(report["by_kind"])):
        print("\nBy kind of fraud, against all normals\n")
        print_rows(kinds)
    return 0

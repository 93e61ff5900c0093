from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from features.ulb import FEATURES, LABEL
from model import baselines, data, evaluate, evaluation, fitting, plots
from model.dataset import fingerprint
from model.network import TransactionAutoencoder
from model.synthetic.generator import TransactionGenerator
from tests.model.conftest import ROWS

ONE = baselines.QUICK[1:]
"""PCA: the quickest baseline."""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(baselines, "available", lambda quick=False: ONE)


@pytest.fixture(scope="module")
def other_data(tmp_path_factory) -> str:
    features, labels = TransactionGenerator(seed=11, fraud_share=0.02).features(3_000)
    path = tmp_path_factory.mktemp("data") / "other.parquet"
    columns = {name: features[:, i] for i, name in enumerate(FEATURES)}
    parquet.write_table(pa.table(columns | {LABEL: labels}), path)
    return str(path)


def test_training_data_is_judged_on_its_test_part(trained, quick):
    dataset = data.load(data.SYNTHETIC, rows=ROWS)
    rows = evaluate.choose_rows(dataset, trained.manifest, seed=0)
    parts = data.split(dataset, 0)
    assert np.array_equal(rows.rows, dataset.features[parts.test])
    assert len(rows.fit) == trained.manifest.training["rows_fitted"]
    report = evaluate.evaluate_model(trained, dataset, 0.00172, 0, None)
    own = trained.manifest.figures["scores"]["anomaly_score"]
    assert report["scores"]["anomaly_score"]["auroc"] == pytest.approx(own["auroc"])


@pytest.mark.parametrize("labelled", [True, False])
def test_training_data_is_known_in_any_order_and_by_its_features_alone(trained, labelled):
    """Rows that the model learnt must not pass for other data because labels or order changed."""
    dataset = data.load(data.SYNTHETIC, rows=ROWS)
    learnt = dataset if labelled else dataclasses.replace(dataset, labels=None)
    provenance = {**trained.manifest.provenance, "fingerprint": fingerprint(learnt)}
    manifest = dataclasses.replace(trained.manifest, provenance=provenance)
    order = np.random.default_rng(3).permutation(ROWS)
    shuffled = data.Dataset(dataset.features[order], dataset.labels[order])
    judged = evaluate.choose_rows(shuffled, manifest, seed=0).rows
    parts = data.split(learnt, 0)
    learnt_rows = {row.tobytes() for row in dataset.features[np.r_[parts.train, parts.validation]]}
    assert len(judged) == len(parts.test)
    assert not learnt_rows & {row.tobytes() for row in judged}


def test_other_data_keeps_fitted_and_judged_normals_apart(trained, other_data):
    dataset = data.load(other_data)
    rows = evaluate.choose_rows(dataset, trained.manifest, seed=0)
    judged = rows.rows[rows.labels == 0]
    assert len(rows.fit) + len(judged) == (dataset.labels == 0).sum()
    assert rows.labels.sum() == dataset.labels.sum()
    assert "not recognised as the training data (rows of it may be among them)" in rows.description
    assert not {row.tobytes() for row in rows.fit} & {row.tobytes() for row in judged}


def test_the_command_prints_a_table_and_writes_json_and_png(trained_dir, other_data, tmp_path, capsys, quick):
    png, report = tmp_path / "a" / "e.png", tmp_path / "b" / "e.json"
    arguments = [
        "--model",
        str(trained_dir),
        "--data",
        other_data,
        "--png",
        str(png),
        "--report",
        str(report),
    ]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "normals, weighted to 0.173 % fraud; baselines fitted to" in printed
    assert {line.split()[0] for line in printed.splitlines() if line} >= {*evaluation.OWN_SCORES, "PCA"}
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 20_000
    scores = json.loads(report.read_text())["scores"]
    assert set(scores) == {*evaluation.OWN_SCORES, "PCA"}
    assert set(scores["PCA"]["recall_at"]) == {"0.001", "0.005", "0.01"}


def test_repeats_give_mean_and_spread(quick):
    dataset = data.load(data.SYNTHETIC, rows=7_000)
    report = evaluate.evaluate_repeatedly(None, dataset, 2, 0.00172, None, {"epochs": 1})
    values = [r["scores"]["anomaly_score"]["auroc"] for r in report["by_seed"]]
    assert report["repeats"] == 2
    assert report["scores"]["anomaly_score"]["auroc"] == pytest.approx(np.mean(values))
    assert report["spread"]["anomaly_score"]["auroc"] == pytest.approx(np.std(values, ddof=1))
    (row,) = (row for row in evaluation.figure_rows(report) if row["score"] == "anomaly_score")
    assert row["auroc"] == pytest.approx(np.mean(values))
    assert row["auroc_std"] == pytest.approx(np.std(values, ddof=1))
    (shown,) = evaluation.with_deviations([row])
    assert shown["auroc"] == f"{row['auroc']:.3f} ± {row['auroc_std']:.3f}"
    (single, *_) = evaluation.figure_rows(evaluation.summary(report["by_seed"][:1]))
    assert not any(key.endswith("_std") for key in single)


def test_repeats_on_unlabelled_training_data_trim_as_training_does(quick, monkeypatch, normals):
    seen = []

    def fit(rows, held_out, options, progress, spec):
        seen.append(options.trim)
        return fitting.Fitted(TransactionAutoencoder().eval(), {})

    monkeypatch.setattr(fitting, "fit", fit)
    labelled = data.load(data.SYNTHETIC, rows=6_000)
    for source in (labelled, dataclasses.replace(labelled, labels=None)):
        evaluate.evaluate_repeatedly(source, labelled, 1, 0.00172, None)
    assert seen == [0.0, fitting.UNLABELLED_TRIM]


def test_a_place_that_cannot_be_written_to_is_named_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for flag in ("--report", "--png"):
        assert evaluate.main(["--model", "none", flag, str(tmp_path / "file" / "report")]) == 1
        assert "cannot be written" in capsys.readouterr().err


def test_rows_that_are_not_judged_are_told(trained_dir, other_data, tmp_path, capsys, quick):
    table, path, report = parquet.read_table(other_data), tmp_path / "rows.parquet", tmp_path / "report.json"
    for name, row in (("V3", 5), ("V3", 6), ("Amount", 7), (LABEL, 8)):
        values = table[name].to_pylist()
        values[row] = None
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    parquet.write_table(table, path)
    args = ["--model", str(trained_dir), "--data", str(path), "--report", str(report)]
    assert evaluate.main(args) == 0
    printed = capsys.readouterr().out
    assert "Rows left out, because they have no label: 1" in printed
    assert "Rows left out, because the feature spec refuses them, by field: V3 (2), Amount (1)" in printed
    judged = json.loads(report.read_text())
    assert judged["data"] == {
        "source": str(path),
        "rows": len(table),
        "rows_without_label": 1,
        "rows_refused": {"V3": 2, "Amount": 1},
    }
    of_normals = judged["rows"]["normals"] + judged["rows"]["normals_that_baselines_are_fitted_to"]
    assert of_normals + judged["rows"]["frauds"] == len(table) - 4


def test_data_without_labels_is_refused(trained_dir, other_data, tmp_path, capsys):
    path = tmp_path / "plain.parquet"
    parquet.write_table(parquet.read_table(other_data).drop_columns([LABEL]), path)
    assert evaluate.main(["--model", str(trained_dir), "--data", str(path)]) == 1
    assert "the data has no labels (column Class)" in capsys.readouterr().err


def test_too_few_rows_are_refused(trained_dir, other_data, tmp_path, capsys):
    path = tmp_path / "few.parquet"
    rows = parquet.read_table(other_data)
    frauds = np.flatnonzero(rows[LABEL].to_numpy())[:1]
    parquet.write_table(rows.take(np.r_[np.flatnonzero(rows[LABEL].to_numpy() == 0)[:3], frauds]), path)
    assert evaluate.main(["--model", str(trained_dir), "--data", str(path)]) == 1
    assert "--data has 3 normal transactions, at least 200" in capsys.readouterr().err


def test_a_missing_model_is_named(tmp_path, other_data, capsys):
    assert evaluate.main(["--model", str(tmp_path), "--data", other_data]) == 1
    assert "manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--repeat", "0"],
        ["--repeat", "1", "--prevalence", "1.5"],
        ["--model", "x", "--train_data", "y"],
        ["--model", "x", "--rows", "0"],
        ["--model", "x", "--seed", "-1"],
        [],
    ],
)
def test_wrong_arguments_name_their_flag(arguments, capsys):
    try:
        status = evaluate.main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    expected = arguments[-2] if arguments else "--model, --repeat, --protocol: expected one of them"
    assert expected in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "detector"), [*baselines.QUICK, *baselines.SLOW, *baselines.PYOD], ids=lambda v: str(v)[:12]
)
def test_baselines_rank_a_gross_outlier_first(name, detector, normals):
    if (name, detector) in baselines.PYOD:
        pytest.importorskip("pyod", reason="PyOD is an extra: pip install pyod")
    rows = normals[1000:1200].copy()
    rows[17, 1:29] = 60.0
    scores = baselines.scores(normals[:1000], rows, [(name, detector)])[0][name]
    assert scores.shape == (200,)
    assert np.argmax(scores) == 17


def test_a_picture_of_zero_scores_can_be_drawn(tmp_path):
    labels = np.array([0, 0, 0, 1], np.int8)
    scores = {"anomaly_score": np.array([0.0, 1.0, 2.0, 1e20])}
    plots.evaluation_picture(tmp_path / "p.png", scores, labels, {"medium": 1.0, "high": 2.0}, 0.01, "title")
    assert (tmp_path / "p.png").stat().st_size > 10_000

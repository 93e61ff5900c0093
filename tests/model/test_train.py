from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import threadpoolctl
import torch
from pyarrow import parquet

from features.ulb import FEATURES, LABEL
from model import artifact, baselines, data, evaluation, fitting, package, report, torchscript, train
from model.network import TransactionAutoencoder
from model.synthetic.generator import TransactionGenerator
from model.thresholds import ALERT_BUDGETS
from tests.model.conftest import ROWS


def write(path: Path, n: int, label: bool = True, **replaced: np.ndarray) -> str:
    features, labels = TransactionGenerator(seed=5, fraud_share=0.02).features(n)
    columns = {name: features[:, i] for i, name in enumerate(FEATURES)} | replaced
    parquet.write_table(pa.table(columns | ({LABEL: labels} if label else {})), path)
    return str(path)


def test_the_same_seed_gives_the_same_model_whatever_the_frauds_are(tmp_path):
    """Frauds turned into noise change nothing that is learnt or calibrated."""
    rows = data.load(write(tmp_path / "a.parquet", 5_500))
    spoiled = data.Dataset(rows.features.copy(), rows.labels, {})
    frauds = rows.labels == 1
    spoiled.features[frauds] = np.random.default_rng(0).normal(size=(int(frauds.sum()), 30)) * 1e4
    options = fitting.TrainingOptions(epochs=1, seed=3)
    first, again, other = (
        train.train(source, str(tmp_path / name), options, model_version="1", progress=False)
        for name, source in (("first", rows), ("again", rows), ("other", spoiled))
    )
    state = first.load_model(freeze=False).state_dict()
    for same in (again, other):
        actual = same.load_model(freeze=False).state_dict()
        assert all(torch.equal(state[name], actual[name]) for name in state)
        assert same.manifest.thresholds == first.manifest.thresholds
    assert again.manifest.figures == first.manifest.figures
    assert other.manifest.figures != first.manifest.figures


def test_trimming_keeps_unlabelled_outliers_out_of_the_second_fit():
    """4 of 500 rows lie far off in one direction; after trimming the spread is that of the others."""
    rows = np.random.default_rng(1).normal(size=(600, 30)).astype(np.float32)
    rows[:4, 7] = 50.0
    fits = [
        fitting.fit(rows[:500], rows[500:], fitting.TrainingOptions(epochs=1, trim=trim), progress=False)
        for trim in (0.0, 0.01)
    ]
    assert fits[1].history["rows_trimmed"] == 5
    assert float(fits[0].network.std[7]) > 3.0
    assert float(fits[1].network.std[7]) == pytest.approx(rows[4:500, 7].std(), abs=0.05)


def test_early_stopping_restores_the_best_weights():
    rng = np.random.default_rng(0)
    train_rows, held_out = (rng.normal(size=(n, 30)).astype(np.float32) for n in (300, 200))
    options = fitting.TrainingOptions(epochs=60, patience=4, batch_size=32, learning_rate=0.02)
    fitted = fitting.fit(train_rows, held_out, options, progress=False)
    losses = fitted.history["validation_losses"]
    # On noise the network overfits, so that the last epoch is not the best.
    assert (
        fitted.history["epochs_run"]
        == len(losses)
        == fitted.history["best_epoch"] + 1 + options.patience
        < 60
    )
    assert np.argmin(losses) == fitted.history["best_epoch"]
    targets = fitting._targets(fitted.network, torch.from_numpy(held_out))
    with torch.no_grad():
        assert float(fitting._loss(fitted.network, targets)) == pytest.approx(min(losses), rel=1e-6)


def test_training_works_without_labels_and_without_the_archiver(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "a.parquet", 5_500, label=False)
    monkeypatch.setattr(package, "archive_available", lambda: False)
    out = tmp_path / "model"
    assert train.main(["--data", path, "--output", str(out), "--epochs", "1"]) == 0
    manifest = artifact.verify(out)
    assert set(manifest.files) == {artifact.MODEL_FILE, artifact.SCHEMA_FILE}
    assert "no labelled frauds" in manifest.figures["note"]
    assert manifest.training["trim"] == fitting.UNLABELLED_TRIM
    assert manifest.training["rows_trimmed"] == pytest.approx(0.01 * manifest.training["rows_fitted"], abs=1)
    printed = capsys.readouterr()
    assert "pip install torch-model-archiver" in printed.err
    assert "No labels: frauds among the rows pass for normal" in printed.out
    (high,) = (line for line in printed.out.splitlines() if line.startswith("high "))
    assert high.split()[2:5] == ["0.1", "%", "1"]  # of 1,100 rows


@pytest.mark.parametrize("value", [2.5, 0.1])
def test_a_constant_feature_does_not_break_training(normals, value):
    rows = normals[:600].copy()
    rows[:, FEATURES.index("V13")] = value
    network = fitting.fit(rows[:500], rows[500:], fitting.TrainingOptions(epochs=1), progress=False).network
    scores = evaluation.anomaly_scores(torchscript.trace(network), rows)
    assert np.isfinite(scores).all()
    assert np.median(scores) < 5


def test_time_and_constant_features_never_change_a_score(normals):
    """A feed goes on for weeks after the training; a field that was always 0 is used one day."""
    rows = normals[:600].copy()
    hidden = [FEATURES.index(name) for name in ("Time", "V13", "Amount")]
    rows[:, hidden[1:]] = 0.0
    fitted = fitting.fit(rows[:500], rows[500:], fitting.TrainingOptions(epochs=1), progress=False)
    assert fitted.history["constant_features"] == ["V13", "Amount"]
    later = rows.copy()
    later[:, hidden] += [30 * 86_400, 5.0, 1e4]
    with torch.no_grad():
        now, then = (fitted.network.score(torch.from_numpy(x)) for x in (rows, later))
    assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
    assert (now[2][:, hidden] == 0).all()


def test_a_baseline_that_cannot_run_does_not_cost_the_model(tmp_path, capsys, monkeypatch):
    def broken(*args: object) -> None:
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(baselines, "QUICK", (*baselines.QUICK, ("broken", broken)))
    path = write(tmp_path / "a.parquet", 5_500)
    assert train.main(["--data", path, "--output", str(tmp_path / "model"), "--epochs", "1"]) == 0
    manifest = artifact.verify(tmp_path / "model")
    assert manifest.figures["left_out"] == {"broken": "LinAlgError: Singular matrix"}
    assert "PCA" in manifest.figures["scores"]
    assert "broken cannot run on this data and is left out: LinAlgError" in capsys.readouterr().out


def test_budgets_split_and_prevalence_are_those_that_were_asked_for(tmp_path, capsys):
    path = write(tmp_path / "a.parquet", 6_000)
    flags = ["--medium_budget=0.05", "--high_budget=0.01", "--split=time", "--prevalence=0.02", "--epochs=1"]
    assert train.main(["--data", path, "--output", str(tmp_path / "model"), *flags]) == 0
    read = artifact.read(tmp_path / "model")
    assert read.manifest.training["split"] == "time"
    assert read.manifest.figures["prevalence"] == 0.02
    dataset = data.load(path)
    held_out = data.split(dataset, 0, "time").validation
    scores = evaluation.anomaly_scores(
        read.load_model(), dataset.features[held_out[dataset.is_normal[held_out]]]
    )
    for name, budget in (("medium", 0.05), ("high", 0.01)):
        assert (scores >= read.manifest.thresholds[name]).mean() == pytest.approx(budget, abs=2e-3)
    assert "Read 6,000 rows" in capsys.readouterr().out
    assert train.main(["--output", str(tmp_path / "m"), "--medium_budget=0.01", "--high_budget=0.02"]) == 2
    assert "--high_budget, --medium_budget: expected" in capsys.readouterr().err


def test_training_keeps_to_one_thread_and_gives_the_others_back(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    def count(*args: object) -> tuple[object, dict]:
        blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        seen.append((torch.get_num_threads(), *blas))
        return TransactionAutoencoder(), {}

    monkeypatch.setattr(fitting, "_fit_once", count)
    try:
        rows = np.zeros((2, 30), np.float32)
        fitting.fit(rows, rows)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(seen[0]) > 1
    assert set(seen[0]) == {1}


def test_thresholds_hold_on_the_test_part(trained):
    """2,400 test normals: 0.5 % of them are 12."""
    at = trained.manifest.figures["at_thresholds"]
    assert at["high"]["share_of_normals"] <= at["medium"]["share_of_normals"] <= 0.015
    assert at["medium"]["share_of_normals"] > 0
    assert at["medium"]["alerts"] >= at["high"]["alerts"] > 0
    assert 0 < at["high"]["recall"] <= at["medium"]["recall"] <= 1


def test_thresholds_are_quantiles_of_the_validation_scores(trained, module):
    dataset = data.load(data.SYNTHETIC, rows=ROWS)
    validation = data.split(dataset, 0).validation
    scores = evaluation.anomaly_scores(module, dataset.features[validation[dataset.labels[validation] == 0]])
    for name, budget in ALERT_BUDGETS.items():
        expected = np.quantile(scores, 1 - budget)
        assert trained.manifest.thresholds[name] == pytest.approx(expected, rel=1e-4)
        assert (scores >= trained.manifest.thresholds[name]).mean() == pytest.approx(budget, abs=1e-3)


def test_the_summary_names_version_thresholds_and_figures(trained, capsys):
    report.print_report(trained)
    printed = capsys.readouterr().out
    assert f"Wrote {trained.uri}: model pytorch_autoencoder version test-1" in printed
    assert re.search(rf"high +{trained.manifest.thresholds['high']:.4g} +0.1 %", printed)
    assert all(f"\n{name}  " in printed for name in trained.manifest.figures["scores"])


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(train, "train")
    (tmp_path / "file").write_text("x")
    assert train.main(["--output", str(tmp_path / "file"), "--rows", "6000"]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--seed", "-1"], ["--epochs", "0"]])
def test_numbers_out_of_range_are_named(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit):
        train.main(["--output", str(tmp_path), *arguments])
    assert f"argument {arguments[0]}: expected a whole number of at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "replaced", "text"),
    [
        (1_000, {}, "too few: at least 5000"),
        (
            1_000,
            {"V2": np.full(1_000, np.nan)},
            "1,000 of 1,000 rows are refused, the first is row 0: V2: expected a",
        ),
        (1_000, {"Amount": np.array(["a"] * 1_000)}, "1,000 of 1,000 rows are refused"),
    ],
)
def test_bad_data_is_an_error_that_names_it(tmp_path, capsys, n, replaced, text):
    path = write(tmp_path / "a.parquet", n, **replaced)
    assert train.main(["--data", path, "--output", str(tmp_path / "m")]) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_missing_columns_are_named(tmp_path, capsys):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"Time": [1.0], "V1": [2.0]}), path)
    assert train.main(["--data", str(path), "--output", str(tmp_path / "m")]) == 1
    assert "column(s) missing: V2, V3" in capsys.readouterr().err


def test_output_is_required(capsys):
    with pytest.raises(SystemExit):
        train.main([])
    assert "--output" in capsys.readouterr().err

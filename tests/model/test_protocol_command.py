"""`anomaly evaluate --protocol repeated` as a command, and on features of one's own."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from features import reading
from model import data, evaluate, fitting
from model.outputs import ANOMALY_SCORE
from model.protocol import detectors, splits, tasks
from tests.model.test_own_features import SPEC, payments

ROWS = 13_000


@pytest.fixture
def quick(monkeypatch):
    """Two quick baselines, and a training of one epoch by the function that trains the product's score."""
    monkeypatch.setattr(detectors, "FAMILIES", {name: detectors.FAMILIES[name] for name in ("PCA", "kNN")})
    fit = fitting.fit

    def fit_once(train, validation, options, **more):
        return fit(train, validation, dataclasses.replace(options, epochs=1), **more)

    monkeypatch.setattr(fitting, "fit", fit_once)


def test_the_command_prints_tables_and_continues(quick, tmp_path, capsys):
    arguments = ["--protocol", "repeated", "--rows", str(ROWS), "--splits", "2", "--by", "row"]
    kept, written = tmp_path / "kept", tmp_path / "report.json"
    arguments += ["--output", str(kept), "--report", str(written)]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr()
    assert "2 splits by row, drawn at random" in printed.out
    assert "The worst splits by row" in printed.out
    assert "kNN, tuned" in printed.out
    assert "6 of 6 tasks" in printed.err
    assert len(list(kept.iterdir())) == 6
    report = json.loads(written.read_text())
    assert report["kinds"]["row"]["splits"] == 2
    assert evaluate.main([*arguments, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    own = next(row for row in rows if row["score"] == ANOMALY_SCORE)
    (entry,) = (each for each in report["kinds"]["row"]["scores"] if each["name"] == ANOMALY_SCORE)
    assert own["average_precision"] == entry["average_precision"]["mean"]
    assert len(list(kept.iterdir())) == 6


def test_own_features_are_judged_alike(quick, tmp_path):
    spec_file, table = tmp_path / "features.yaml", tmp_path / "payments.parquet"
    spec_file.write_text(SPEC)
    parquet.write_table(payments(ROWS, fraud_share=0.02), table)
    dataset = data.load(str(table), spec=reading.read(str(spec_file)))
    job = tasks.Job(dataset, 0.02)
    for kind in splits.SPLIT_KINDS:
        result = tasks.perform(job, tasks.Task(kind, 0, tasks.SCORE))
        assert result["entries"][0]["auroc"] > 0.8
        assert len(tasks.perform(job, tasks.Task(kind, 0, "kNN"))["entries"]) == len(detectors.NEIGHBOURS)
        values = [f["value"] for normal in result["top_normals"] for f in normal["features"]]
        assert all(isinstance(value, float | str) for value in values)


def test_rows_keep_the_numbers_of_the_table_when_others_are_left_out():
    table = payments(100)
    for row, name in ((3, "is_fraud"), (50, "amount")):  # without a label; refused by the spec
        i = table.column_names.index(name)
        column = pa.array([None if n == row else value for n, value in enumerate(table[name].to_pylist())])
        table = table.set_column(i, name, column)
    dataset = data.from_arrow(table, "payments", spec=reading.parse(SPEC))
    assert dataset.numbers.tolist() == [n for n in range(100) if n not in (3, 50)]
    assert dataset.taken(np.array([0, 3])).numbers.tolist() == [0, 4]


@pytest.mark.integration
def test_several_processes_give_the_same_results(tmp_path):
    job = tasks.Job(data.load(data.SYNTHETIC, rows=ROWS), 0.01)
    todo = [tasks.Task("row", 0, family) for family in ("PCA", "kNN")]
    results = [
        tasks.run(job, todo, tmp_path / str(n), n, lambda done: None)
        for n in (1, 2)
        if not (tmp_path / str(n)).mkdir()
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--protocol", "repeated", "--model", "m"], "--model, --repeat, --protocol: expected one of them"),
        (["--protocol", "repeated", "--png", "p.png"], "--png: expected with --model or --repeat"),
        (["--repeat", "2", "--splits", "3"], "--splits, --by, --seeds"),
        (["--protocol", "repeated", "--splits", "1"], "--splits: expected a whole number of at least 2"),
        (["--protocol", "repeated", "--max_rows", "100"], "--max_rows: expected a whole number of at least"),
    ],
)
def test_wrong_options_are_named(arguments, expected, capsys):
    try:
        status = evaluate.main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]

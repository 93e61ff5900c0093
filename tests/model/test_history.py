"""Training and evaluation with account history: the order of time, the split, and the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from features.declaration import FeatureSpec
from model import artifact, data, evaluate, fitting, train
from model.dataset import DataError, from_arrow
from model.evaluation import WITHOUT_HISTORY

DAY = 86_400_000_000
SPEC: dict[str, Any] = {
    "label": "fraud",
    "features": [
        {"name": "amount", "kind": "number", "scale": "log"},
        {
            "name": "level",
            "kind": "history",
            "statistic": "deviation",
            "of": "amount",
            "by": "account",
            "half_life": "30d",
        },
        {"name": "day", "kind": "history", "statistic": "count", "by": "account", "half_life": "1d"},
    ],
}


def _table(n: int = 9_000, seed: int = 5) -> pa.Table:
    """Payments of accounts with a level each; in one of a hundred the amount is eight times as high."""
    rng = np.random.default_rng(seed)
    level = rng.lognormal(3, 1.5, 150)
    account = rng.integers(0, 150, n)
    is_fraud = rng.random(n) < 0.01
    amount = level[account] * rng.lognormal(0, 0.3, n) * np.where(is_fraud, 8, 1)
    times = 1_700_000_000_000_000 + np.sort(rng.integers(0, 60 * DAY, n))
    return pa.table(
        {
            "account_id": [f"a{i}" for i in account],
            "event_time": pa.array(times).cast(pa.timestamp("us", "UTC")),
            "amount": amount,
            "fraud": is_fraud,
            "kind": np.where(is_fraud, "spike", ""),
        }
    )


def test_rows_get_their_history_whatever_their_order_and_labels() -> None:
    spec, table = FeatureSpec.from_json(SPEC), _table(2_000)
    whole = from_arrow(table, "x", spec=spec)
    order = np.random.default_rng(1).permutation(2_000)
    shuffled = from_arrow(table.take(pa.array(order)), "x", spec=spec)
    np.testing.assert_allclose(shuffled.features, whole.features[order], rtol=1e-6)
    # Rows without a label are left out of the training, and are in the history of the others.
    is_known = np.arange(2_000) % 3 > 0
    labels = pa.array(table["fraud"].to_pylist(), mask=~is_known)
    partly = from_arrow(table.set_column(3, "fraud", labels), "x", spec=spec)
    np.testing.assert_array_equal(partly.features, whole.features[is_known])


def test_rows_of_csv_without_an_account_count_in_other_histories_as_in_a_batch_job(tmp_path: Path) -> None:
    visits = {"name": "visits", "kind": "history", "statistic": "count", "by": "shop", "half_life": "1d"}
    spec = FeatureSpec.from_json(SPEC | {"features": [*SPEC["features"], visits]})
    accounts = pa.array(_table(2_000)["account_id"].to_pylist(), mask=np.arange(2_000) % 50 == 7)
    table = _table(2_000).set_column(0, "account_id", accounts).append_column("shop", pa.repeat("s", 2_000))
    csv.write_csv(table, tmp_path / "rows.csv")
    loaded = data.load(str(tmp_path / "rows.csv"), spec=spec)
    np.testing.assert_allclose(loaded.features, from_arrow(table, "x", spec=spec).features, rtol=1e-6)


def test_the_history_of_the_test_part_continues_that_of_the_training_part() -> None:
    spec = FeatureSpec.from_json(SPEC)
    dataset = from_arrow(_table(), "x", spec=spec)
    options = fitting.TrainingOptions().suited_to(True, spec)
    assert options.split == "time"
    parts = data.split(dataset, 0, "time")
    assert dataset.times is not None
    assert dataset.times[parts.train].max() <= dataset.times[parts.test].min()
    first = from_arrow(_table().slice(0, 6_000), "x", spec=spec)
    np.testing.assert_array_equal(first.features, dataset.features[:6_000])
    assert (dataset.features[parts.test, 2] > 0).all()


@pytest.mark.parametrize("column", ["account_id", "event_time"])
def test_a_source_without_account_or_time_is_refused(column: str) -> None:
    with pytest.raises(DataError, match=f"x: The source has no column '{column}', the .*, which the history"):
        from_arrow(_table(100).drop_columns([column]), "x", spec=FeatureSpec.from_json(SPEC))


def test_the_kind_column_must_be_there() -> None:
    with pytest.raises(DataError, match="--kind_column: there is no column 'scenario'; the last are"):
        from_arrow(_table(100), "x", spec=FeatureSpec.from_json(SPEC), kind_column="scenario")


@pytest.mark.integration
def test_reports_have_figures_with_and_without_history_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet.write_table(_table(), tmp_path / "rows.parquet")
    (tmp_path / "spec.yaml").write_text(json.dumps(SPEC))
    source = [f"--data={tmp_path / 'rows.parquet'}", "--kind_column=kind"]
    model = f"{tmp_path / 'model'}"
    assert (
        train.main([*source, f"--features={tmp_path / 'spec.yaml'}", "--epochs=6", f"--output={model}"]) == 0
    )
    printed = capsys.readouterr().out
    assert "By kind of fraud" in printed
    manifest = artifact.read(model).manifest
    assert manifest.training["split"] == "time"
    for figures in (manifest.figures, _evaluated([*source, f"--model={model}"], tmp_path)):
        kinds = figures["by_kind"]["spike"]
        assert kinds["frauds"] == figures["rows"]["frauds"] > 5
        with_, without = (kinds[name]["average_precision"] for name in ("anomaly_score", WITHOUT_HISTORY))
        assert with_ > 0.5 > without


def _evaluated(args: list[str], tmp_path: Path) -> dict[str, Any]:
    assert evaluate.main([*args, f"--report={tmp_path / 'report.json'}"]) == 0
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return report


def test_two_sources_are_refused_for_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(SPEC))
    args = ["--data=a.csv", "--train_data=b.csv", "--repeat=1", f"--features={tmp_path / 'spec.yaml'}"]
    parquet.write_table(_table(100), tmp_path / "a.parquet")
    args[0] = f"--data={tmp_path / 'a.parquet'}"
    assert evaluate.main(args) == 2
    assert "--train_data: expected none for features with a history" in capsys.readouterr().err

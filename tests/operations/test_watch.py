"""`anomaly watch` and `anomaly model recalibrate`: the limits, and jobs over a fair and a shifted feed."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command import CommandError
from common.names import MODEL
from features.ulb import FEATURES
from model import artifact
from model.thresholds import ALERT_BUDGETS, ScoreQuantiles
from operations import query, watch
from operations.models import __main__ as models
from operations.models.recalibrate import quantiles_of, recalibrated, recalibrated_version
from pipelines import batch
from tests.pipelines.test_end_to_end import endpoints, rows
from transforms import metrics

LIMITS = watch.Limits()
ROWS = 25_000


def feature(name="V1", **values):
    row = {"feature": name, "model_version": "v1", "transactions": 5_000, "psi": 0.01}
    return row | {"outside_percent": 0.0, "missing_percent": 0.0, "trained_missing_percent": None} | values


def severity(name="medium", **values):
    row = {"severity": name, "model_version": "v1", "transactions": 5_000, "alerts": 25}
    return row | {"budget_percent": 0.5, "times_budget": 1.0} | values


def over(drift=(), budgets=(), limits=LIMITS):
    found = watch.checks(drift, budgets, limits)
    return {(each.check, each.name) for each in found if each.status == "over"}


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ({"psi": 0.26}, "psi"),
        ({"outside_percent": 1.1}, "outside_percent"),
        ({"missing_percent": 5.1}, "missing_percent"),
    ],
)
def test_a_feature_is_over_one_limit(values, check):
    assert over([feature(), feature("V2", **values)]) == {(check, "V2")}
    assert over([feature("V2", **values, transactions=999)]) == set()
    assert over([feature("V2", **values)], limits=watch.Limits(9, 9, 9)) == set()


def test_a_number_that_is_none_is_not_within_its_limit():
    """As of a manifest whose share of missing values is NaN, which JSON of Python may have."""
    assert over([feature(trained_missing_percent=float("nan"))]) == {("missing_percent", "V1")}


def test_missing_values_that_the_training_had_as_well_are_no_drift():
    assert over([feature(missing_percent=30.0, trained_missing_percent=28.0)]) == set()
    assert over([feature(missing_percent=30.0, trained_missing_percent=20.0)]) == {("missing_percent", "V1")}


def test_alerts_are_judged_where_their_budget_allows_some():
    assert over(budgets=[severity(times_budget=3.1)]) == {("times_budget", "medium")}
    assert over(budgets=[severity(times_budget=3.1, transactions=900)]) == set()


def test_the_worst_comes_first_and_what_is_not_judged_last():
    drift = [feature("few", psi=9.0, transactions=9), feature("bad", psi=0.5), feature("worse", psi=2.0)]
    found = watch.checks(drift, [], LIMITS)
    assert [each.name for each in found[:2]] == ["worse", "bad"]
    assert {each.status for each in found[-3:]} == {"too few rows"}


def test_the_budgets_of_the_query_are_those_of_the_training():
    text = query.text("alert_budget")
    assert all(f"{budget:g} AS budget" in text for budget in ALERT_BUDGETS.values())


def test_thresholds_come_from_the_live_scores(model_dir):
    manifest = artifact.verify(model_dir)
    scores = np.sort(np.random.default_rng(1).lognormal(5, 1, 100_000))
    bins = [{"transactions": 1, "least": score, "most": score} for score in scores.tolist()]
    exact = ScoreQuantiles.of(scores)
    np.testing.assert_allclose(quantiles_of(bins, manifest.quantiles).scores, exact.scores)
    made = recalibrated(manifest, bins, "v2", {"dataset": "p.d"})
    for name, budget in ALERT_BUDGETS.items():
        assert np.mean(scores >= made.thresholds[name]) == pytest.approx(budget, rel=0.05)
    assert made.training["recalibrated"] == {"dataset": "p.d", "rows": 100_000}
    made.check()


def test_a_version_that_was_recalibrated_often_keeps_a_length_that_is_allowed():
    now = dt.datetime(2026, 3, 1, 10, 15)
    version = "x" * 63
    for _ in range(3):
        version = recalibrated_version(version, now)
        now += dt.timedelta(days=1)
    assert version == "x" * 46 + "-r20260303.101500"
    MODEL.check(version, "--model_version")


def test_too_few_scores_make_no_threshold(model_dir):
    bins = [{"transactions": 19_999, "least": 1.0, "most": 1.0}]
    with pytest.raises(CommandError, match=r"expected at least 20,000 transactions.*got 19,999"):
        recalibrated(artifact.verify(model_dir), bins, "v2", {})


@pytest.fixture
def scored(bigquery_emulator, dataset, model_dir, tmp_path):
    """Scores ROWS rows of the distribution that the model was trained on, after a change; returns flags."""

    def score(change=lambda features: features):
        random = np.random.default_rng(11)
        features = random.normal(size=(ROWS, 30))
        features[:, 0] = random.uniform(0, 172_800, ROWS)
        features[:, -1] = random.lognormal(3, 1, ROWS)
        columns = dict(zip(FEATURES, change(features).T, strict=True))
        path = tmp_path / "rows.parquet"
        ids = [f"tx-{i}" for i in range(ROWS)]
        pq.write_table(pa.table({"transaction_id": ids, **columns}), path)
        flags = [f"--model={model_dir}", f"--output_dataset={bigquery_emulator.project}.{dataset}"]
        result = batch.run([f"--input={path}", *flags, "--profile_every=1", *endpoints(bigquery_emulator)])
        result.wait_until_finish()
        assert metrics.totals(result)[metrics.ROWS_SCORED] == ROWS
        place = f"--dataset={bigquery_emulator.project}.{dataset}"
        return [place, f"--bigquery_endpoint={bigquery_emulator.bigquery}"]

    return score


def cents(features):
    features[:, -1] *= 100
    return features


@pytest.mark.integration
def test_a_fair_feed_is_within_its_limits(scored, bigquery_client, dataset, model_dir, tmp_path, capsys):
    flags = scored()
    profiles = rows(bigquery_client, dataset, "feature_profiles").to_pylist()
    assert {row["transactions"] for row in profiles} == {ROWS}
    assert {sum(item["transactions"] for item in row["bins"]) for row in profiles} == {ROWS}
    assert len(profiles) == 30  # 29 of the 30 inputs are in the score

    assert watch.main([*flags, "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in found} == {"ok"}
    assert {row["check"] for row in found} == {"psi", "outside_percent", "missing_percent", "times_budget"}

    output = tmp_path / "recalibrated"
    argv = ["recalibrate", f"--model={model_dir}", f"--output={output}", "--format=json"]
    assert models.main([*argv, *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    before, after = artifact.verify(model_dir), artifact.verify(output)
    assert after.model_version.startswith(f"{before.model_version}-r")
    scores = rows(bigquery_client, dataset, "scores_latest")["anomaly_score"].to_numpy()
    for row, (name, budget) in zip(printed, ALERT_BUDGETS.items(), strict=True):
        share = float(np.mean(scores >= after.thresholds[name]))
        assert (row["severity"], share) == (name, pytest.approx(budget, abs=2 / ROWS + 0.01 * budget))
    assert artifact.read(output).load_model() is not None
    assert before.feature_shares == after.feature_shares


@pytest.mark.integration
def test_a_shifted_feed_is_over_its_limits(scored, capsys):
    flags = scored(cents)
    assert watch.main([*flags, "--format=json"]) == 1
    captured = capsys.readouterr()
    bad = {(row["check"], row["name"]) for row in json.loads(captured.out) if row["status"] == "over"}
    assert bad >= {("psi", "Amount"), ("outside_percent", "Amount"), ("psi", "anomaly_score")}
    assert not {name for _, name in bad} & {f"V{i}" for i in range(1, 29)}
    assert f"{len(bad)} of " in captured.err

    assert watch.main([*flags, "--model_version=other"]) == 1
    assert "expected profiles and scores of version other since" in capsys.readouterr().err

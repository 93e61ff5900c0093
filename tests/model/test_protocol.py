"""The repeated protocol: its splits, its intervals, what it keeps, and the normals that it shows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import t

from features.ulb import FEATURES
from model import data
from model.outputs import ANOMALY_SCORE
from model.protocol import detectors, judge, report, splits, statistics, tasks, tops

ROWS = 13_000
QUICK = {name: detectors.FAMILIES[name] for name in ("PCA", "kNN")}


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.load(data.SYNTHETIC, rows=ROWS)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(detectors, "FAMILIES", QUICK)


@pytest.fixture
def options(tmp_path) -> judge.ProtocolOptions:
    return judge.ProtocolOptions(splits=2, output=tmp_path / "kept", training={"epochs": 1})


def test_the_interval_counts_the_rows_that_splits_share():
    differences = [0.01, 0.03, 0.02, 0.02, -0.01, 0.0]
    pair = statistics.paired(differences, 1 / 3)
    factor, spread = t.ppf(0.975, 5), np.std(differences, ddof=1)
    plain = factor * spread / np.sqrt(6)  # of six splits without a row in common
    assert pair.high - pair.mean == pytest.approx(plain * np.sqrt(1 + 6 / 3))
    assert pair.mean - pair.low == pytest.approx(pair.high - pair.mean)
    assert pair.spread == pytest.approx(spread)
    assert pair.wins == pytest.approx(4.5 / 6)


def test_splits_by_row_keep_their_parts_apart(dataset):
    one, other = (splits.split(dataset, "row", number) for number in (0, 1))
    for judged_split in (one, other):
        parts = np.concatenate([judged_split.train, judged_split.validation, judged_split.judged])
        assert np.array_equal(np.sort(parts), np.arange(ROWS))
    assert one.digest == splits.split(dataset, "row", 0).digest != other.digest


def test_splits_by_time_judge_what_comes_later_and_vary_the_cut(dataset):
    times, cuts = dataset.times, []
    for number in range(5):
        judged_split = splits.split(dataset, "time", number)
        learnt = np.concatenate([judged_split.train, judged_split.validation])
        assert not set(learnt) & set(judged_split.judged)
        assert times[learnt].max() <= times[judged_split.judged].min()
        assert len(learnt) == int(judged_split.cut * ROWS)
        cuts.append(judged_split.cut)
    assert cuts[0] == 0.5
    assert len(set(cuts)) == 5
    low, high = splits.FIRST_PART
    assert all(low <= cut <= high for cut in cuts)


def test_a_row_that_equals_an_earlier_one_is_not_judged_by_time(dataset):
    features = dataset.features.copy()
    first, last = np.argsort(dataset.times, kind="stable")[[0, -1]]
    features[last] = features[first]
    copied = dataclasses.replace(dataset, features=features)  # its time stays the last
    assert last in splits.split(dataset, "time", 0).judged
    assert last not in splits.split(copied, "time", 0).judged


def test_kinds_suit_the_data(dataset):
    assert splits.usual_kinds(dataset) == ("row", "time")
    timeless = dataclasses.replace(dataset, times=None)
    assert splits.usual_kinds(timeless) == ("row",)
    with pytest.raises(data.DataError, match=r"--by=time: expected rows with an event time, got none"):
        splits.split(timeless, "time", 0)


def test_judged_rows_without_frauds_are_refused(dataset):
    early = dataset.labels.copy()
    early[dataset.times > np.median(dataset.times) * 0.5] = 0
    with pytest.raises(data.DataError, match=r"expected frauds and normals .* split time-00, got 0 frauds"):
        splits.split(dataclasses.replace(dataset, labels=early), "time", 0)


def test_a_sample_keeps_the_frauds_and_the_numbers_of_the_source(dataset):
    sample = splits.sample(dataset, 6_000, seed=0)
    assert len(sample.features) == 6_000
    assert sample.labels.sum() == dataset.labels.sum()
    assert np.array_equal(sample.features, dataset.features[sample.numbers])
    many = dataclasses.replace(dataset, labels=(np.arange(ROWS) % 20 < 3).astype(np.int8))
    assert splits.sample(many, 6_000, seed=0).labels.mean() == pytest.approx(0.15, abs=0.001)
    assert splits.sample(dataset, ROWS, seed=0) is dataset


@pytest.fixture
def done(monkeypatch) -> list[tasks.Task]:
    """The tasks that were done, each in no time: these tests are about what is kept."""
    tasks_done = []

    def perform(job: tasks.Job, task: tasks.Task) -> dict:
        tasks_done.append(task)
        figures = dict.fromkeys(statistics.METRICS, 0.5 + 0.01 * len(tasks_done))
        name = ANOMALY_SCORE if task.family == tasks.SCORE else task.family
        rows = {"train": 3, "validation": 1, "judged": 1}
        entry = {"name": name, "setting": "", "seed": task.seed, **figures}
        return {"rows": rows, "cut": None, "frauds": 1, "entries": [entry], "top_normals": []}

    monkeypatch.setattr(tasks, "perform", perform)
    return tasks_done


def test_a_cut_run_goes_on_where_it_was_cut(dataset, quick, options, done):
    whole = judge.judge(dataset, options, 0.01)
    assert len(done) == 2 * 2 * 3
    done.clear()
    assert judge.judge(dataset, options, 0.01) == whole
    assert done == []
    (lost,) = options.output.glob("time-01-kNN-*.json")
    lost.unlink()
    judge.judge(dataset, options, 0.01)
    assert done == [tasks.Task("time", 1, "kNN")]
    done.clear()
    judge.judge(dataset, dataclasses.replace(options, splits=3, by="row"), 0.01)
    assert {task.number for task in done} == {2}


def test_another_score_leaves_the_baselines_and_other_figures_leave_nothing(
    dataset, quick, options, done, monkeypatch
):
    judge.judge(dataset, options, 0.01)
    done.clear()
    code = tasks._code
    monkeypatch.setattr(tasks, "_code", lambda is_score: ("new",) if is_score else code(is_score))
    judge.judge(dataset, options, 0.01)
    assert {task.family for task in done} == {tasks.SCORE}
    assert len(done) == 4
    done.clear()
    judge.judge(dataset, options, 0.02)
    assert len(done) == 2 * 2 * 3


def test_a_cut_run_keeps_what_was_done(dataset, quick, options, done, monkeypatch):
    perform = tasks.perform

    def cut(job, task):
        if task == tasks.Task("row", 1, "PCA"):
            raise KeyboardInterrupt
        return perform(job, task)

    monkeypatch.setattr(tasks, "perform", cut)
    with pytest.raises(KeyboardInterrupt):
        judge.judge(dataset, options, 0.01)
    before = done.copy()
    monkeypatch.setattr(tasks, "perform", perform)
    judge.judge(dataset, options, 0.01)
    assert len(before) == 7
    assert not set(before) & set(done[len(before) :])


def test_the_report_pairs_the_scores_of_each_split(dataset, quick, options, capsys):
    options = dataclasses.replace(options, seeds=2, by="row", max_rows=6_000)
    whole = judge.judge(dataset, options, 0.01)
    summary = whole["kinds"]["row"]
    figures = [split["figures"] for split in summary["by_split"]]
    entries = {(entry["name"], entry["setting"]): entry for entry in summary["scores"]}
    assert {name for name, _ in entries} == {ANOMALY_SCORE, "PCA", "kNN"}
    for (name, setting), entry in entries.items():
        if name == ANOMALY_SCORE:
            continue
        other = f"{name}, {setting}"
        values = [each[ANOMALY_SCORE]["auroc"] - each[other]["auroc"] for each in figures]
        assert entry["auroc"]["difference"]["mean"] == pytest.approx(np.mean(values))
        assert entry["auroc"]["difference"]["wins"] == np.mean(np.sign(values) / 2 + 0.5)
    for each in figures:  # the tuned one is one of the settings, not the best in hindsight
        tried = [value for name, value in each.items() if name.startswith("kNN, k ")]
        assert each["kNN, tuned"] in tried
    assert set(summary["spread_by_seed"]) == {ANOMALY_SCORE}
    assert json.loads(json.dumps(whole)) == whole
    report.print_report(whole)
    printed = capsys.readouterr().out
    assert "2 splits by row, drawn at random" in printed
    for split in summary["by_split"]:
        normal = split["top_normals"][0]
        assert f"row {normal['row']}: place {normal['place']}, " in printed
    rows = report.figure_rows(whole)
    assert {row["score"] for row in rows} == {ANOMALY_SCORE, "PCA", "kNN"}
    (row,) = (row for row in rows if row["score"] == "kNN" and row["setting"] == "tuned")
    assert row["auroc_difference_low"] == entries["kNN", "tuned"]["auroc"]["difference"]["low"]


def test_the_labels_of_the_judged_rows_choose_no_setting(dataset, quick, monkeypatch):
    """With the labels of the judged rows turned round, the validation rows choose as before."""
    job = tasks.Job(dataset, 0.01)
    task = tasks.Task("row", 0, "PCA")
    same = job.split("row", 0)
    judged = same.judged
    labels = dataset.labels.copy()
    labels[judged] = np.random.default_rng(0).permutation(labels[judged])
    turned = tasks.Job(dataclasses.replace(dataset, labels=labels), 0.01)
    monkeypatch.setattr(splits, "split", lambda *arguments: same)
    before, after = (tasks.perform(each, task)["entries"] for each in (job, turned))
    assert [entry["validation"] for entry in before] == [entry["validation"] for entry in after]
    assert [entry["auroc"] for entry in before] != [entry["auroc"] for entry in after]


def test_a_family_that_cannot_run_is_left_out_of_all_splits(dataset, quick, options, done, monkeypatch):
    perform = tasks.perform

    def fails_once(job, task):
        failed = {"left_out": "ValueError: no such rows"} if task == tasks.Task("row", 1, "kNN") else {}
        return perform(job, task) | failed

    monkeypatch.setattr(tasks, "perform", fails_once)
    summary = judge.judge(dataset, dataclasses.replace(options, by="row"), 0.01)["kinds"]["row"]
    assert summary["left_out"] == {"kNN": "ValueError: no such rows"}
    assert {entry["name"] for entry in summary["scores"]} == {ANOMALY_SCORE, "PCA"}


def test_a_family_that_fails_says_why(dataset, monkeypatch):
    def fails(train, rows, seed):
        raise ValueError("no such rows")

    monkeypatch.setattr(detectors, "FAMILIES", {"odd": fails})
    result = tasks.perform(tasks.Job(dataset, 0.01), tasks.Task("row", 0, "odd"))
    assert result["left_out"] == "ValueError: no such rows"


def test_a_normal_on_top_is_named_with_its_cost_and_its_neighbours(dataset):
    judged_split = splits.split(dataset, "row", 0)
    judged, train = judged_split.judged, judged_split.train[dataset.is_normal[judged_split.train]]
    labels = dataset.labels[judged]
    scores = labels + np.linspace(0, 0.5, len(judged))
    planted = int(np.flatnonzero(labels == 0)[7])
    scores[planted] = 5.0
    features = dataset.features.copy()
    # It looks as five frauds do.
    features[judged[labels == 1][:5]] = features[judged[planted]] = features[judged[labels == 1][0]]
    contributions = np.zeros((len(judged), len(FEATURES)), np.float32)
    contributions[planted, FEATURES.index("V3")] = 4.0
    contributions[planted, FEATURES.index("V9")] = 1.0
    moved = dataclasses.replace(dataset, features=features, numbers=np.arange(ROWS) + 100)
    first, *others = tops.top_normals(moved, judged, train, scores, contributions, labels, 0.01)
    assert first["row"] == judged[planted] + 100
    assert first["place"] == 1
    assert first["frauds_below"] == 1.0
    assert [feature["name"] for feature in first["features"][:2]] == ["V3", "V9"]
    assert [feature["share"] for feature in first["features"][:2]] == pytest.approx([0.8, 0.2])
    assert first["features"][0]["value"] == features[judged[planted], FEATURES.index("V3")]
    assert first["frauds_nearest"] == 1.0
    # Without it, all frauds stand above all normals.
    weight = (labels.sum() * 0.99 / 0.01) / (labels == 0).sum()
    places = np.arange(1, labels.sum() + 1)
    assert first["costs"] == pytest.approx(1 - np.mean(places / (places + weight)), abs=1e-6)
    assert all(other["costs"] == pytest.approx(0, abs=1e-9) for other in others)

"""Pipelines over a model with history features, and the histories that they begin with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import pubsub_v1

from common.options import OptionError
from features.declaration import FeatureSpec
from features.history.plan import plans
from features.learnt import NOTHING
from local.runner import LocalStreamingRunner, run_until_drained
from model import artifact, evaluation, train
from model.dataset import Dataset
from model.fitting import TrainingOptions
from pipelines import history, lookups, streaming
from tests.pipelines.test_end_to_end import endpoints, rows, run_batch
from tests.pipelines.test_own_features import scored
from tests.transforms.history_cases import SPEC, expected, payloads, payments
from tests.transforms.history_cases import history as case
from transforms import metrics
from transforms.forms import Encoding
from transforms.history import KNOWN
from transforms.history_files import HistoryFiles
from transforms.message import MessageRules

PAST, PRESENT = 1_000, 500


@pytest.fixture(scope="module")
def history_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("history") / "model"
    inputs = np.stack(list(expected(payments(8_000, seed=9)).values()))
    dataset = Dataset(inputs, None, {}, SPEC)
    options = TrainingOptions(epochs=1, split="random")
    train.train(dataset, str(directory), options, "history-1", progress=False)
    return directory


@pytest.fixture(scope="module")
def story() -> list[dict]:
    return payments(PAST + PRESENT)


@pytest.fixture(scope="module")
def scores(history_model, story) -> dict[str, float]:
    """By transaction: the score of the model for the features that training computes."""
    inputs = expected(story)
    found = evaluation.anomaly_scores(artifact.read(history_model).load_model(), np.stack([*inputs.values()]))
    return dict(zip(inputs, found.tolist(), strict=True))


def write_lines(path: Path, payments: list[dict]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in payloads(payments)))
    return path


def assert_scores(found: dict[str, dict], scores: dict[str, float], story: list[dict]) -> None:
    assert found.keys() == {row["id"] for row in story}
    np.testing.assert_allclose(
        [row["anomaly_score"] for row in found.values()], [scores[key] for key in found], rtol=1e-4
    )


@pytest.fixture(scope="module")
def past(history_model, story, tmp_path_factory) -> Path:
    """The histories of the first payments."""
    directory = tmp_path_factory.mktemp("past")
    data = write_lines(directory / "past.jsonl", story[:PAST])
    assert (
        history.main(["build", f"--data={data}", f"--model={history_model}", f"--output={directory}/out"])
        == 0
    )
    return directory / "out"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_batch_gives_the_scores_of_training(history_model, story, scores, tmp_path, form):
    source = tmp_path / f"payments.{form}"
    if form == "jsonl":
        write_lines(source, story[::-1])
    else:
        pq.write_table(pa.Table.from_pylist(story[::-1]), source, row_group_size=400)
    totals = run_batch([f"--input={source}", f"--model={history_model}", f"--output={tmp_path}/out"])
    assert totals[metrics.ROWS_IN] == totals[metrics.ROWS_SCORED] == len(story)
    assert_scores(scored(tmp_path / "out"), scores, story)


def test_a_batch_continues_the_histories_and_counts_nothing_twice(
    history_model, story, scores, past, tmp_path
):
    overlapping = story[PAST - 200 :]
    source = write_lines(tmp_path / "payments.jsonl", overlapping)
    totals = run_batch(
        [f"--input={source}", f"--model={history_model}", f"--output={tmp_path}/out", f"--history={past}"]
    )
    assert totals[KNOWN] == 2 * 200  # once by account, once by shop
    found = scored(tmp_path / "out")
    assert len(found) == len(overlapping)
    new = {row["id"] for row in story[PAST:]}
    assert_scores({key: row for key, row in found.items() if key in new}, scores, story[PAST:])


def test_histories_that_are_built_in_steps_are_those_of_one_step(history_model, story, past, tmp_path):
    first = write_lines(tmp_path / "all.jsonl", story[:PAST])
    until = story[PAST // 2 - 1]["time"]
    common = ["build", f"--data={first}", f"--model={history_model}"]
    history.main([*common, f"--output={tmp_path}/half", f"--until={until}"])
    history.main([*common, f"--output={tmp_path}/whole", f"--history={tmp_path}/half"])
    half, whole, wanted = (
        HistoryFiles.read(str(path)) for path in (tmp_path / "half", tmp_path / "whole", past)
    )
    assert (half.rows, whole.rows, wanted.rows) == (PAST // 2, PAST // 2, PAST)
    assert whole.until == wanted.until > half.until
    for path in Path(past).glob("*/*.parquet"):
        one, other = pq.read_table(path), pq.read_table(tmp_path / "whole" / path.relative_to(past))
        assert one["key"].equals(other["key"])
        assert one["last"].equals(other["last"])
        for name in ("numbers", "bits"):
            np.testing.assert_allclose(
                one[name].combine_chunks().flatten().to_numpy(zero_copy_only=False),
                other[name].combine_chunks().flatten().to_numpy(zero_copy_only=False),
                rtol=1e-9,
            )


def test_a_history_goes_on_for_keys_without_new_rows(history_model, story, past, tmp_path):
    last = story[PAST] | {"card": {"account": None}}
    data = write_lines(tmp_path / "next.jsonl", [last])
    common = ["build", f"--data={data}", f"--model={history_model}", f"--history={past}"]
    assert history.main([*common, f"--output={tmp_path}/next"]) == 0
    before, after = HistoryFiles.read(str(past)), HistoryFiles.read(str(tmp_path / "next"))
    by_account, by_shop = zip(before.keys, after.keys, strict=True)
    assert by_account[0].count == by_account[1].count
    assert by_shop[0].count <= by_shop[1].count <= by_shop[0].count + 1
    for plan in plans(SPEC):  # also of buckets without any row
        for bucket in range(after.buckets):
            assert len(after.load(plan, bucket).keys) >= len(before.load(plan, bucket).keys)


def test_rows_without_an_account_alone_make_a_history_that_can_be_read(history_model, story, tmp_path):
    data = write_lines(tmp_path / "data.jsonl", [row | {"card": {"account": None}} for row in story[:60]])
    common = ["build", f"--data={data}", f"--model={history_model}"]
    assert history.main([*common, f"--output={tmp_path}/out"]) == 0
    files = HistoryFiles.read(str(tmp_path / "out"))
    assert [len(files.load(plans(SPEC)[0], bucket).keys) for bucket in range(files.buckets)] == [0] * 16


@pytest.mark.integration
def test_a_stream_continues_the_histories(
    history_model, story, scores, past, local_stack, channel, dataset, bigquery_client
):
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={history_model}",
        f"--history={past}",
        f"--output_dataset={local_stack.project}.{dataset}",
        *endpoints(local_stack),
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())
    publisher = pubsub_v1.PublisherClient()
    sent = story[PAST - 100 :]
    for payload in payloads(sent):  # one after the other: Pub/Sub has no order
        publisher.publish(channel.topic, payload).result(timeout=60)
    run_until_drained(
        result, lambda: metrics.totals(result).get(metrics.ROWS_SCORED, 0) >= len(sent), timeout=120
    )
    assert metrics.totals(result)[KNOWN] == 2 * 100
    stored = {
        row["transaction_id"]: row for row in rows(bigquery_client, dataset, "scores_latest").to_pylist()
    }
    assert stored.keys() == {row["id"] for row in sent}
    new = {row["id"] for row in story[PAST:]}
    assert_scores({key: row for key, row in stored.items() if key in new}, scores, story[PAST:])


def test_a_history_that_does_not_fit_is_told_at_launch(history_model, model_dir, past, story, tmp_path):
    source = write_lines(tmp_path / "payments.jsonl", story[:5])
    common = [f"--input={source}", f"--output={tmp_path}/out"]
    with pytest.raises(OptionError, match="--history: the model of --model has no history features"):
        run_batch([*common, f"--model={model_dir}", f"--history={past}"])
    with pytest.raises(OptionError, match=r"--history: expected a directory that `anomaly history build`"):
        run_batch([*common, f"--model={history_model}", f"--history={tmp_path}/none"])
    with pytest.raises(OptionError, match="divided into 16 buckets, got --history_buckets=32"):
        run_batch([*common, f"--model={history_model}", f"--history={past}", "--history_buckets=32"])
    other = tmp_path / "other"
    other.mkdir()
    index = json.loads((past / "history.json").read_text())
    index["keys"][0]["version"] = "0123456789abcdef"
    (other / "history.json").write_text(json.dumps(index))
    with pytest.raises(OptionError, match=r"expected the histories by account .* got by account \(0123"):
        run_batch([*common, f"--model={history_model}", f"--history={other}"])
    with pytest.raises(OptionError, match="has a history already"):
        history.run([f"--data={source}", f"--model={history_model}", f"--output={past}"])


@pytest.mark.parametrize(("column", "flag"), [("account_id", "account"), ("event_time", "event_time")])
def test_rows_without_account_or_time_are_told_at_launch(story, tmp_path, caplog, column, flag):
    """Other models take such rows: these columns may be missing."""
    spec = FeatureSpec.from_json(
        {"features": [{"name": "amount", "kind": "number"}, case("idle", "since_last")]}
    )
    rules = MessageRules(encoding=Encoding(spec, NOTHING))
    kept = {"account_id": ["a"], "event_time": ["2026-01-01T00:00:00Z"], "amount": [1.0]}
    del kept[column]
    columns, lines = tmp_path / "payments.parquet", tmp_path / "payments.jsonl"
    pq.write_table(pa.table(kept), columns)
    lines.write_text(json.dumps({name: values[0] for name, values in kept.items()}) + "\n")
    text = rf"history features, which need the .* expected {column}, got .*: pass --{flag}_column"
    with pytest.raises(OptionError, match=text):
        lookups.check_files(str(columns), lookups.find_local_files(str(columns), None), rules)
    lookups.check_files(str(lines), lookups.find_local_files(str(lines), None), rules)
    assert re.search(text, caplog.text)  # later lines may have it

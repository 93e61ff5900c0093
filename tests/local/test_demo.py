"""The demo, whole, and its checks."""

import datetime as dt
import functools
import json
import shutil
import time

import pyarrow as pa
import pytest
from google.cloud import pubsub_v1

from local import demo, pubsub
from local.demo_report import Pace, alert_latency

pytestmark = pytest.mark.integration


def run(capsys, model_dir, tmp_path, *args):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "2000"]
    assert demo.main([*argv, "--format", "json", *args]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("server", ["embedded", "gcloud"])
def test_the_demo(server, bigquery_emulator, capsys, model_dir, tmp_path):
    if server == "gcloud" and pubsub.missing():
        pytest.skip(" ".join(pubsub.missing()))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    started = time.monotonic()
    summary = run(capsys, model_dir, tmp_path, f"--pubsub={server}", "--rate=1000")
    took = time.monotonic() - started
    assert summary["pubsub"] == server
    rows, queries = summary["rows"], summary["queries"]
    assert summary["published"] == 2000 == rows["scores"] + rows["error_records"]
    assert sum(row["messages"] for row in queries["dead_letters"]) == rows["error_records"] > 0
    assert sum(row["transactions"] for row in queries["latency"]) == rows["scores"]
    assert sum(row["transactions"] for row in summary["alerts_by_kind"]) == rows["scores"]
    assert sum(row["medium"] + row["high"] for row in summary["alerts_by_kind"]) == rows["alerts"]
    scores = [row["anomaly_score"] for row in queries["top_anomalies"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 8
    assert summary["alert_messages"] == rows["alerts"] > 0
    assert 0 < summary["alert_latency_ms"]["p50"] <= summary["alert_latency_ms"]["p99"]
    # Every message, from end to end: the publisher alone needs about 2 s for them.
    for pace in (summary["stream"], summary["batch"]):
        assert pace["messages"] == 2000
        assert 0 < pace["seconds"] < took
    assert summary["stream"]["seconds"] > 1.5
    assert (tmp_path / "demo" / "anomalies.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert f"<dd>{rows['scores']:,}</dd>" in page
    assert f"<dd>{rows['error_records']:,}</dd>" in page
    assert (tmp_path / "demo" / "mine.txt").read_text() == "mine"


def test_a_model_that_was_altered_is_an_error_without_a_traceback(capsys, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    with (tmp_path / "model" / "final_model_traced.pt").open("ab") as file:
        file.write(b"x")
    assert demo.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "demo")]) == 1
    assert "copy or train it again" in capsys.readouterr().err


def test_the_report_for_people(bigquery_emulator, capsys, model_dir, tmp_path):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "500"]
    assert demo.main([*argv, "--pubsub=embedded"]) == 0
    out = capsys.readouterr().out
    for text in (
        "Top anomalies",
        "Latency from the event to its score",
        "Alerts by planted kind",
        "Dead letters by reason",
        "Conservation   500 messages",
        "Stream         500 messages in",
        "Batch          500 messages in",
        "Pub/Sub        embedded",
        f"Page           {tmp_path / 'demo' / 'report.html'}",
    ):
        assert text in out


def test_a_pace_is_messages_over_all_of_their_time():
    assert str(Pace(12_000, 16.0)) == "12,000 messages in 16.0 s, 750 a second"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--count", "0"], "argument --count: expected a whole number of at least 1, got '0'"),
        (["--rate", "0"], "argument --rate: expected a whole number of at least 1, got '0'"),
        (["--seed", "-1"], "argument --seed: expected a whole number of at least 0, got '-1'"),
        (["--output", "{}/file"], "--output: expected a directory, got {}/file, where {}/file is a file"),
        (
            ["--output", "{}/file/under"],
            "got {}/file/under, where {}/file is a file",
        ),
        (["--model", "{}/file"], "--model: expected a directory, got {}/file, where {}/file is a file"),
    ],
)
def test_options_are_checked_before_anything_runs(flags, reason, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    argv = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "demo")]
    try:
        status = demo.main([*argv, *(flag.format(tmp_path) for flag in flags)])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert reason.replace("{}", str(tmp_path)) in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def stored(*names):
    return pa.table({"transaction_id": list(names), "anomaly_score": [1.0] * len(names)})


def test_scores_that_differ_are_an_error_and_two_empty_tables_are_no_proof():
    demo.check_same(stored("a", "b"), stored("b", "a"))
    other = pa.table({"transaction_id": ["a"], "anomaly_score": [1.5]})
    for first, second in ((stored("a"), other), (stored("a"), stored("b")), (stored(), stored())):
        with pytest.raises(demo.DemoError, match="batch and streaming disagree"):
            demo.check_same(first, second)


def test_an_alert_that_is_missing_on_the_topic_or_in_the_table_is_an_error(channel, monkeypatch):
    event = "2026-03-01T12:00:00+00:00"
    publisher = pubsub_v1.PublisherClient()
    for name in ("a", "b", "b"):  # delivered twice
        body = json.dumps({"transaction_id": name, "event_time": event}).encode()
        publisher.publish(channel.topic, body).result(timeout=30)
    summary = demo.DemoReport()
    demo.check_alerts(summary, stored("a", "b"), channel.subscription)
    assert summary.alert_messages == 2
    body = json.dumps({"transaction_id": "c", "event_time": event}).encode()
    publisher.publish(channel.topic, body).result(timeout=30)
    monkeypatch.setattr(demo.topics, "take", functools.partial(demo.topics.take, timeout=1))
    with pytest.raises(demo.DemoError, match="1 alerts of the table are not on the topic, 1 of the topic"):
        demo.check_alerts(summary, stored("d"), channel.subscription)


def test_a_message_without_a_row_is_an_error(tmp_path):
    run = demo.Demo(demo.DemoOptions(output=tmp_path), None)
    rows = {"scores": 1, "alerts": 0, "error_records": 1}
    with pytest.raises(demo.DemoError, match="3 messages were published, 1 scores and 1 dead letters"):
        run.finish(demo.DemoReport(published=3, rows=rows), stored("a"))


def test_the_first_copy_of_an_alert_counts():
    event = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    after = [event + dt.timedelta(milliseconds=number) for number in (10, 30, 500)]
    messages = [("a", event, after[0]), ("b", event, after[2]), ("b", event, after[1])]
    assert alert_latency(messages) == {"p50": 20, "p99": 30}

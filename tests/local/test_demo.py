"""The demo, whole: with the emulators, and from files to files."""

import datetime as dt
import functools
import json
import shutil

import pyarrow as pa
import pytest
from google.cloud import pubsub_v1

from local import demo
from operations import report

pytestmark = pytest.mark.integration


def run(capsys, model_dir, tmp_path, *args):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "2000"]
    assert demo.main([*argv, "--format", "json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def check(summary):
    rows = summary["rows"]
    assert summary["published"] == rows["scores"] + rows["error_records"]
    assert sum(row["messages"] for row in summary["dead_letters"]) == rows["error_records"] > 0
    assert sum(row["transactions"] for row in summary["alerts_by_kind"]) == rows["scores"]
    assert sum(row["medium"] + row["high"] for row in summary["alerts_by_kind"]) == rows["alerts"]
    scores = [row["anomaly_score"] for row in summary["top_anomalies"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 8


def test_with_the_emulators(local_stack, capsys, model_dir, tmp_path):
    summary = run(capsys, model_dir, tmp_path, "--rate", "1000")
    check(summary)
    assert summary["mode"] == "emulators"
    assert summary["published"] == 2000
    assert summary["comparison"]["equal"] is True
    assert summary["alert_messages"] == summary["rows"]["alerts"] > 0
    to_score, to_alert = (summary["latency_ms"][f"event to {name}"] for name in ("score", "alert message"))
    assert 0 < to_score["p50"] <= to_score["p99"]
    assert 0 < to_alert["p50"] <= to_alert["p99"]
    assert (tmp_path / "demo" / "anomalies.png").read_bytes()[:4] == b"\x89PNG"


def test_from_files_to_files(capsys, model_dir, tmp_path):
    summary = run(capsys, model_dir, tmp_path, "--files")
    check(summary)
    assert summary["mode"] == "files"
    assert summary["left_out"]
    assert (tmp_path / "demo" / "anomalies.png").exists()


def test_it_says_what_it_left_out_and_why(capsys, monkeypatch, model_dir, tmp_path):
    monkeypatch.setattr(demo.LocalStack, "missing", staticmethod(lambda: ["no Java"]))
    summary = run(capsys, model_dir, tmp_path)
    assert summary["mode"] == "files"
    assert summary["left_out"] == [demo.LEFT_OUT, "no Java"]


def test_a_directory_that_holds_other_files_keeps_them(capsys, model_dir, tmp_path):
    (tmp_path / "demo" / "scored").mkdir(parents=True)
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    (tmp_path / "demo" / "scored" / "scores-00000-of-00009.parquet").write_text("of an earlier demo")
    check(run(capsys, model_dir, tmp_path, "--files"))
    assert (tmp_path / "demo" / "mine.txt").read_text() == "mine"


def test_a_model_that_was_altered_is_an_error_without_a_traceback(capsys, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    with (tmp_path / "model" / "final_model_traced.pt").open("ab") as file:
        file.write(b"x")
    assert demo.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "demo"), "--files"]) == 1
    assert "copy or train it again" in capsys.readouterr().err


def test_the_report_for_people(capsys, model_dir, tmp_path):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "500", "--files"]
    assert demo.main(argv) == 0
    out = capsys.readouterr().out
    for text in (
        "Top anomalies",
        "Alerts by planted kind",
        "Dead letters by reason",
        "Conservation",
        "Left out",
    ):
        assert text in out


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


def test_two_empty_tables_are_no_proof():
    assert report.compare(stored("a", "b"), stored("b", "a", "a")).equal
    assert not report.compare(stored(), stored()).equal


def test_an_alert_that_is_missing_on_the_topic_or_in_the_table_is_an_error(channel, monkeypatch):
    event = "2026-03-01T12:00:00+00:00"
    publisher = pubsub_v1.PublisherClient()
    for name in ("a", "b", "b"):  # delivered twice
        body = json.dumps({"transaction_id": name, "event_time": event}).encode()
        publisher.publish(channel.topic, body).result(timeout=30)
    summary = demo.DemoReport("emulators", [])
    demo.check_alerts(summary, stored("a", "b"), channel.subscription)
    assert summary.alert_messages == 2
    body = json.dumps({"transaction_id": "c", "event_time": event}).encode()
    publisher.publish(channel.topic, body).result(timeout=30)
    monkeypatch.setattr(demo.topics, "take", functools.partial(demo.topics.take, timeout=1))
    with pytest.raises(demo.DemoError, match="1 alerts of the table are not on the topic, 1 of the topic"):
        demo.check_alerts(summary, stored("d"), channel.subscription)


def test_a_message_without_a_row_is_an_error(tmp_path):
    run = demo.Demo(demo.DemoOptions(output=tmp_path), None)
    rows = {"scores": stored("a"), "alerts": stored(), "error_records": stored("b")}
    with pytest.raises(demo.DemoError, match="3 messages were published, 1 scores and 1 dead letters"):
        run.finish(demo.DemoReport("files", [], published=3), rows)


def test_the_first_copy_of_an_alert_counts():
    event = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    after = [event + dt.timedelta(milliseconds=number) for number in (10, 30, 500)]
    latency = report.alert_latency([("a", event, after[0]), ("b", event, after[2]), ("b", event, after[1])])
    assert latency == report.Latency(p50=20, p99=pytest.approx(29.8))

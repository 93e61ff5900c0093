"""The demo, whole, and its checks."""

import dataclasses
import datetime as dt
import functools
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
from google.cloud import pubsub_v1

from local import demo, demo_feed, demo_operate, pubsub
from local.demo_commands import DemoError
from local.demo_operate import OperatedReport
from local.demo_report import FeedReport, Pace, alert_latency, alerts_by_kind
from model import artifact

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def next_model(model_dir, tmp_path_factory):
    """Another version of the model, which takes over."""
    path, first = tmp_path_factory.mktemp("next"), artifact.read(model_dir)
    manifest = dataclasses.replace(first.manifest, model_version="next")
    artifact.write(path, manifest, [first.local_dir / name for name in first.manifest.files])
    return path


def run(capsys, model_dir, card_model, next_model, tmp_path, *args):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "2000"]
    cards = ["--card_model", str(card_model), "--next_model", str(next_model)]
    assert demo.main([*argv, *cards, "--format", "json", *args]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("server", ["embedded", "gcloud"])
def test_the_demo(server, bigquery_emulator, capsys, model_dir, card_model, next_model, tmp_path):
    if server == "gcloud" and pubsub.missing():
        pytest.skip(" ".join(pubsub.missing()))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    started = time.monotonic()
    summary = run(capsys, model_dir, card_model, next_model, tmp_path, f"--pubsub={server}", "--rate=1000")
    took = time.monotonic() - started
    assert summary["pubsub"] == server
    for name, published in (("ulb", 2000), ("cards", 1000)):
        feed = summary[name]
        rows, queries = feed["rows"], feed["queries"]
        assert feed["published"] == published == rows["scores"] + rows["error_records"]
        assert sum(row["messages"] for row in queries["dead_letters"]) == rows["error_records"] > 0
        assert sum(row["transactions"] for row in queries["latency"]) == rows["scores"]
        assert sum(row["transactions"] for row in feed["alerts_by_kind"]) == rows["scores"]
        assert sum(row["medium"] + row["high"] for row in feed["alerts_by_kind"]) == rows["alerts"]
        scores = [row["anomaly_score"] for row in queries["top_anomalies"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 8
        assert feed["alert_messages"] == rows["alerts"] > 0
        # Every message, from end to end: the publisher alone needs about a second for 1,000 of them.
        for pace in (feed["stream"], feed["batch"]):
            assert pace["messages"] == published
            assert 0 < pace["seconds"] < took
        assert feed["stream"]["seconds"] > 0.75 * published / 1000
        assert Path(feed["picture"]).read_bytes()[:4] == b"\x89PNG"
        page = Path(feed["page"]).read_text(encoding="utf-8")
        assert f"<dd>{rows['scores']:,}</dd>" in page
        assert f"<dd>{rows['error_records']:,}</dd>" in page
    assert 0 < summary["ulb"]["alert_latency_ms"]["p50"] <= summary["ulb"]["alert_latency_ms"]["p99"]
    kinds = {row["planted_kind"]: row for row in summary["cards"]["alerts_by_kind"]}
    # By the past of the account, of which the alert speaks in words.
    spike = kinds["amount_spike"]
    assert spike["alerted_percent"] == 100
    assert "amount_level: amount is " in spike["reasons_of_the_highest"]
    assert "deviations over this account's 30-day level (+" in spike["reasons_of_the_highest"]
    assert kinds["(normal)"]["alerted_percent"] < 2
    operated = summary["operated"]
    rows = {row["model_version"]: row["transactions"] for row in operated["versions"]}
    assert rows.keys() == {artifact.read(model_dir).manifest.model_version, "next"}
    assert sum(rows.values()) == operated["published"]
    # The worst first. The test's first model saw few rows in its training, and is over some limits as well.
    amounts = [each["model_version"] for each in operated["over"] if each["name"] == "Amount"]
    assert amounts[0] == "next"
    assert (tmp_path / "demo" / "mine.txt").read_text() == "mine"


def test_the_pages_are_served_until_the_demo_is_ended(model_dir, card_model, next_model, tmp_path):
    argv = [
        "--next_model",
        str(next_model),
        "--model",
        str(model_dir),
        "--card_model",
        str(card_model),
        "--output",
        str(tmp_path / "demo"),
    ]
    command = [sys.executable, "-m", "local.demo", *argv, "--count=400", "--rate=400", "--serve"]
    with subprocess.Popen(
        [*command, "--pubsub=embedded"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "until Ctrl-C" in line:
                break
        urls = re.findall(r"http://127\.0\.0\.1:\d+/", seen[-1])
        assert len(urls) == 2, "".join(seen)
        texts = []
        for url in urls:
            with urllib.request.urlopen(url, timeout=60) as answer:
                texts.append(answer.read().decode())
        process.terminate()  # not by Ctrl-C, which a shell in the background has its commands ignore
        assert process.wait(60) == 143
    assert ".anomaly</title>" in texts[0]
    assert ".cards</title>" in texts[1]
    for text in texts:
        assert 'http-equiv="refresh"' in text
        assert 'class="problem"' not in text


def test_a_model_that_was_altered_is_an_error_without_a_traceback(capsys, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    with (tmp_path / "model" / "final_model_traced.pt").open("ab") as file:
        file.write(b"x")
    assert demo.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "demo")]) == 1
    assert "copy or train it again" in capsys.readouterr().err


def test_the_report_for_people(bigquery_emulator, capsys, model_dir, card_model, next_model, tmp_path):
    argv = [
        "--next_model",
        str(next_model),
        "--model",
        str(model_dir),
        "--output",
        str(tmp_path / "demo"),
        "--count",
        "500",
    ]
    assert demo.main([*argv, "--card_model", str(card_model), "--pubsub=embedded"]) == 0
    out = capsys.readouterr().out
    for text in (
        "top anomalies",
        "Latency from the event to its score",
        "Alerts by planted kind",
        "Dead letters by reason",
        "Conservation   500 messages",
        "Stream         500 messages in",
        "Batch          500 messages in",
        "Pub/Sub        embedded",
        f"Page           {tmp_path / 'demo' / 'report.html'}",
        "Card payments, by the feature spec of examples/cards",
        "Conservation   250 messages",
        f"Page           {tmp_path / 'demo' / 'cards' / 'report.html'}",
        "Another model, promoted while the stream ran: ",
        "Then amounts came in cents",
    ):
        assert text in out


def test_a_pace_is_messages_over_all_of_their_time():
    assert str(Pace(12_000, 16.0)) == "12,000 messages in 16.0 s, 750 a second"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--count", "1"], "argument --count: expected a whole number of at least 2, got '1'"),
        (["--rate", "0"], "argument --rate: expected a whole number of at least 1, got '0'"),
        (["--seed", "-1"], "argument --seed: expected a whole number of at least 0, got '-1'"),
        (["--output", "{}/file"], "--output: expected a directory, got {}/file, where {}/file is a file"),
        (
            ["--output", "{}/file/under"],
            "got {}/file/under, where {}/file is a file",
        ),
        (["--model", "{}/file"], "--model: expected a directory, got {}/file, where {}/file is a file"),
        (["--card_model", "{}/file"], "--card_model: expected a directory, got {}/file, where {}/file is"),
        (["--card_features", "{}/none"], "--card_features: expected a feature spec, got {}/none, which is"),
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
    demo_feed.check_same(stored("a", "b"), stored("b", "a"))
    close, other = (
        pa.table({"transaction_id": ["a"], "anomaly_score": [score]}) for score in (1.000009, 1.00002)
    )
    demo_feed.check_same(stored("a"), close)
    moved = {"transaction_id": ["a", "b"], "account_id": ["1", "2"]}
    first, second = (pa.table(moved | {"anomaly_score": scores}) for scores in ([1.0, 1.0], [2.0, 2.0]))
    demo_feed.check_same(first, second, late=2)
    with pytest.raises(DemoError, match="batch and streaming disagree"):
        demo_feed.check_same(first, second, late=1)
    for first, second in ((stored("a"), other), (stored("a"), stored("b")), (stored(), stored())):
        with pytest.raises(DemoError, match="batch and streaming disagree"):
            demo_feed.check_same(first, second)


def test_an_alert_that_is_missing_on_the_topic_or_in_the_table_is_an_error(channel, monkeypatch):
    event = "2026-03-01T12:00:00+00:00"
    publisher = pubsub_v1.PublisherClient()
    for name in ("a", "b", "b"):  # delivered twice
        body = json.dumps({"transaction_id": name, "event_time": event}).encode()
        publisher.publish(channel.topic, body).result(timeout=30)
    summary = FeedReport()
    demo_feed.check_alerts(summary, stored("a", "b"), channel.subscription)
    assert summary.alert_messages == 2
    body = json.dumps({"transaction_id": "c", "event_time": event}).encode()
    publisher.publish(channel.topic, body).result(timeout=30)
    monkeypatch.setattr(demo_feed.topics, "take", functools.partial(demo_feed.topics.take, timeout=1))
    with pytest.raises(DemoError, match="1 alerts of the table are not on the topic, 1 of the topic"):
        demo_feed.check_alerts(summary, stored("d"), channel.subscription)


def test_a_message_without_a_row_is_an_error():
    rows = {"scores": 1, "alerts": 0, "error_records": 1}
    with pytest.raises(DemoError, match="3 messages were published, 1 scores and 1 dead letters"):
        demo_feed.check_stored(FeedReport(published=3, rows=rows))


def test_an_operated_stream_must_lose_no_row_use_both_models_and_name_the_shift():
    both = [{"model_version": version, "transactions": n} for version, n in (("a", 2), ("b", 3), ("b", 1))]
    over = [{"name": "anomaly_score"}, {"name": "Amount"}]
    demo_operate.check(OperatedReport(6, both, over))
    for published, versions, named, reason in (
        (7, both, over, "7 messages were published for two models, scored: {'a': 2, 'b': 4}"),
        (2, both[:1], over, "2 messages were published for two models, scored: {'a': 2}"),
        (6, both, over[:1], "amounts came in cents, and anomaly watch does not name Amount"),
    ):
        with pytest.raises(DemoError, match=re.escape(reason)):
            demo_operate.check(OperatedReport(published, versions, named))


def test_a_model_of_other_features_is_an_error(model_dir, tmp_path):
    with pytest.raises(DemoError, match=r"expected a model of the features in .*features\.yaml, got"):
        demo.ensure_card_model(model_dir, demo.CARD_SPEC, tmp_path / "payments.csv")


def test_the_alerts_of_a_kind_and_the_reasons_of_its_highest():
    names = ("anomaly_score", "severity", "amount", "planted_kind", "top_features")
    country = [{"feature": "country", "contribution": 8.0, "value": "NZ"}]
    rows = [
        (20.0, "high", 50.0, "new_country", country),
        (12.0, "medium", 900.0, "new_country", []),
        (1.0, "normal", 9.0, "new_country", []),
        (2.0, "normal", None, None, []),
    ]
    found = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    planted, normal = alerts_by_kind(found)
    assert planted == {
        "planted_kind": "new_country",
        "transactions": 3,
        "medium": 1,
        "high": 1,
        "alerted_percent": 66.67,
        "amount_of_the_highest": 50.0,
        "reasons_of_the_highest": "country: NZ (+8.00)",
    }
    assert (normal["planted_kind"], normal["reasons_of_the_highest"]) == ("(normal)", None)


def test_the_first_copy_of_an_alert_counts():
    event = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    after = [event + dt.timedelta(milliseconds=number) for number in (10, 30, 500)]
    messages = [("a", event, after[0]), ("b", event, after[2]), ("b", event, after[1])]
    assert alert_latency(messages) == {"p50": 20, "p99": 30}

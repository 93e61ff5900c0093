"""The demo, whole: with the emulators, and from files to files."""

import json
import shutil

import pytest

from pipelines import demo
from transforms import metrics

pytestmark = pytest.mark.integration


def run(capsys, model_dir, tmp_path, *args):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "2000"]
    assert demo.main([*argv, "--format", "json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def check(found):
    counters = found["counters"]
    assert found["published"] == counters[metrics.ROWS_SCORED] + counters[metrics.DEAD_LETTERS]
    assert sum(row["messages"] for row in found["dead_letters"]) == counters[metrics.DEAD_LETTERS] > 0
    assert sum(row["transactions"] for row in found["alerts_by_kind"]) == counters[metrics.ROWS_SCORED]
    scores = [row["anomaly_score"] for row in found["top_anomalies"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 8


def test_with_the_emulators(local_stack, capsys, model_dir, tmp_path):
    found = run(capsys, model_dir, tmp_path, "--rate", "1000")
    check(found)
    assert found["mode"] == "emulators"
    assert found["published"] == 2000
    assert found["comparison"]["equal"] is True
    assert found["alert_messages"] == found["counters"][metrics.ALERTS] > 0
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert (tmp_path / "demo" / "anomalies.png").read_bytes()[:4] == b"\x89PNG"


def test_from_files_to_files(capsys, model_dir, tmp_path):
    found = run(capsys, model_dir, tmp_path, "--files")
    check(found)
    assert found["mode"] == "files"
    assert found["left_out"]
    assert (tmp_path / "demo" / "anomalies.png").exists()


def test_it_says_what_it_left_out_and_why(capsys, monkeypatch, model_dir, tmp_path):
    monkeypatch.setattr(demo.LocalStack, "missing", staticmethod(lambda: ["no Java"]))
    found = run(capsys, model_dir, tmp_path)
    assert found["mode"] == "files"
    assert found["left_out"] == [demo.LEFT_OUT, "no Java"]


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

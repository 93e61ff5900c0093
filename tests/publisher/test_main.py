"""The command line, in a process of its own where signals matter."""

import datetime as dt
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from model.synthetic import frauds
from model.synthetic.cards import frauds as card_frauds
from publisher import malformed
from publisher.__main__ import describe, main
from publisher.publish import Summary

ROOT = Path(__file__).parents[2]


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "publisher", "--format", "json", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(happened, process):
    while not happened():
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.02)


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "anomaly publish --topic projects/my-project/topics/transactions --rate 500" in text
    for kind in (*frauds.KINDS.values(), *card_frauds.KINDS.values(), *malformed.KINDS.values()):
        assert kind.name in text
        assert kind.description in text
    assert "0.00172" in text


def status(arguments) -> int:
    """The exit status, whether argparse ends the command or a check."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


START = "2026-01-01T00:00:00Z"


def test_the_same_options_write_the_same_file(tmp_path, capsys):
    for name in ("a", "b"):
        arguments = ["--jsonl", str(tmp_path / name), "--count", "2000", "--malformed_share", "0.05"]
        assert main([*arguments, "--seed", "5", "--start_time", START]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    text = capsys.readouterr().out
    assert "sent            2,000" in text
    assert "ended by        all messages of --count" in text


@pytest.mark.parametrize("spec", ["ulb", "card"])
def test_a_run_that_skips_continues_another(tmp_path, spec):
    runs = {"whole": ["--count=1500"], "rest": ["--skip=1000", "--count=500"]}
    for name, flags in runs.items():
        shares = ["--fraud_share=0.05", "--malformed_share=0.05"]
        cycle = ["--cycle=1500"] if spec == "ulb" else []
        arguments = [f"--spec={spec}", f"--jsonl={tmp_path / name}", f"--start_time={START}", *shares, *cycle]
        assert main([*arguments, *flags]) == 0
    whole, rest = ((tmp_path / name).read_bytes().splitlines() for name in runs)
    assert whole[1000:] == rest


def test_a_run_that_skips_ends_before_today(tmp_path):
    arguments = ["--spec=card", "--accounts=20", f"--jsonl={tmp_path / 'm'}", "--fraud_share=0"]
    assert main([*arguments, "--skip=2000", "--count=500"]) == 0
    last = json.loads((tmp_path / "m").read_bytes().splitlines()[-1])["event_time"]
    assert dt.datetime.fromisoformat(last) < dt.datetime.now(dt.UTC)


def test_json_summary_and_labels(tmp_path, capsys):
    arguments = ["--parquet", str(tmp_path / "t.parquet"), "--labels", str(tmp_path / "l.parquet")]
    assert main([*arguments, "--count", "3000", "--malformed_share", "0.1", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["sent"] == 3_000
    assert summary["left_out"] + summary["confirmed"] == 3_000
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == summary["confirmed"]
    assert pq.read_metadata(tmp_path / "l.parquet").num_rows == summary["confirmed"]
    assert {"rate", "bytes", "planted", "malformed", "failed", "stopped_by"} <= set(summary)


def test_kinds_are_shown_of_made_messages_alone():
    kinds = ["normal", "planted frauds", "malformed"]
    for is_file, shown, end in (
        (False, kinds, "the present, which simulated time has reached"),
        (True, [], "the last line of --input"),
    ):
        rows = describe(Summary("topic", stopped_by="source", confirmed=3, normal=3), is_file)
        assert ([name for name in kinds if name in rows], rows["ended by"]) == (shown, end)


def test_a_short_run_shows_the_whole_rhythm(tmp_path):
    """Without --cycle, --count transactions spread over the two days."""
    main(["--parquet", str(tmp_path / "t.parquet"), "--count", "500", "--start_time", START])
    times = pq.read_table(tmp_path / "t.parquet")["Time"].to_numpy()
    assert times[0] < 2_000
    assert times[-1] > 172_800 - 2_000


def test_only_the_kinds_named(tmp_path, capsys):
    arguments = ["--jsonl", str(tmp_path / "m"), "--count", "5000", "--format", "json"]
    kinds = ["--fraud_kinds", "amount_spike, stolen_card", "--malformed_kinds", "empty"]
    main([*arguments, *kinds, "--fraud_share", "0.05", "--malformed_share", "0.05"])
    summary = json.loads(capsys.readouterr().out)
    assert set(summary["planted"]) == {"amount_spike", "stolen_card"}
    assert set(summary["malformed"]) == {"empty"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected one of --topic, --jsonl, --parquet and --csv, got none of them"),
        (["--jsonl", "a", "--parquet", "b"], "got --jsonl and --parquet"),
        (["--jsonl", "a"], "a file needs an end: pass --count or --duration"),
        (["--jsonl", "a", "--count", "0"], "--count: expected a whole number of at least 1, got '0'"),
        (["--jsonl", "a", "--count", "5", "--tee", "b"], "--tee goes with --topic"),
        (["--jsonl", "a", "--count", "5", "--labels", "a"], "expected files of different names"),
        (["--jsonl", "no/such/a", "--count", "5"], "does not exist; create it first"),
        (
            ["--jsonl", "a", "--count", "5", "--start_time", "noon"],
            "expected a time with its offset such as 2026-01-01T00:00:00Z, got 'noon'",
        ),
        (["--jsonl", "a", "--count", "5", "--start_time", "2026-01-01"], "got '2026-01-01'"),
        (["--topic", "projects/p/topics/t", "--start_time", START], "--event_time simulated"),
        (["--topic", "transactions"], "--topic: expected projects/PROJECT/topics/TOPIC, got 'transactions'"),
        (["--jsonl", "a", "--count", "5", "--pattern", "ramp"], "peak_rate: the pattern ramp needs one"),
        (
            ["--jsonl", "a", "--count", "5", "--peak_rate", "9"],
            "--peak_rate means nothing to --pattern",
        ),
        (["--jsonl", "a", "--count", "5", "--period", "9"], "--period means nothing to --pattern constant"),
        (
            ["--jsonl", "a", "--count", "5", "--pattern", "burst", "--peak_rate", "9", "--rate", "1"],
            "--rate means nothing to --pattern burst",
        ),
        (
            ["--jsonl", "a", "--count", "5", "--pattern", "ramp", "--peak_rate", "9", "--width", "1"],
            "--width means nothing to --pattern ramp",
        ),
        (["--jsonl", "a", "--count", "5", "--timeout", "9"], "--timeout goes with --topic"),
        (
            ["--jsonl", "a", "--count", "5", "--start_time", "9999-12-31T23:59:59Z"],
            "--start_time: expected a year up to 9000, got 9999-12-31",
        ),
        (
            ["--jsonl", "a", "--count", "5", "--malformed_kinds", "empty"],
            "expected --malformed_share above 0, got 0",
        ),
        (
            ["--jsonl", "a", "--count", "5", "--fraud_share", "0", "--fraud_kinds", "x"],
            "--fraud_kinds: expected --fraud_share above 0",
        ),
        (["--jsonl", "a", "--count", "5", "--fraud_kinds", "x"], "no kind x; there are stolen_card"),
        (
            ["--jsonl", "a", "--count", "5", "--fraud_share", "2"],
            "--fraud_share: expected a number from 0 to 0.9, got '2'",
        ),
    ],
)
def test_wrong_options_are_named(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is written for wrong options"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_whole_file_and_a_summary(tmp_path, number, code):
    path = tmp_path / "m.jsonl"
    process = start("--jsonl", path, "--duration", 600, "--malformed_share", 0.01)
    wait_until(lambda: path.exists() and path.stat().st_size > 0, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    summary = json.loads(output)
    assert summary["stopped_by"] == "signal"
    assert path.read_bytes().count(b"\n") == summary["confirmed"] == summary["sent"] > 0


def test_a_service_that_does_not_answer(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start(
            "--topic", "projects/test-project/topics/none", "--count", 10, "--timeout", 1,
            PUBSUB_EMULATOR_HOST=address,
        )  # fmt: skip
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    summary = json.loads(output)
    assert (summary["confirmed"], summary["failed"]) == (0, 10)
    assert "10 messages not published: projects/test-project/topics/none" in errors


def test_no_credentials(tmp_path):
    process = start(
        *("--topic", "projects/test-project/topics/none", "--count", 10),
        PUBSUB_EMULATOR_HOST="",
        GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "none.json"),
    )
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == ""
    assert "No Google credentials: run `gcloud auth application-default login`" in errors
    assert "Traceback" not in errors

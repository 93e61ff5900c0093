"""The command: over the emulator, as a file, as figures, and as a server that strangers talk to."""

import http.client
import json
import re
import socket
import threading

import pytest

from common import clients
from common.command import CommandError
from operations import query
from operations.report import __main__ as report
from operations.report import page, server
from tests.operations.report_figures import HOSTILE, NOON, figures
from tests.operations.test_query import score_row
from transforms import tables

RED = "\x1b[31mNZ"
"""A value of a message that would colour a terminal."""


@pytest.fixture(scope="module")
def filled(bigquery_emulator):
    """A dataset with four scores, one of them twice, two alerts and two dead letters, of hostile texts."""
    client = clients.BigQueryEndpoints(bigquery_emulator.bigquery).client(bigquery_emulator.project)
    dataset = f"{bigquery_emulator.project}.report"
    tables.create_tables(client, dataset)
    scores = [
        score_row(0, 1.0, "normal", NOON),
        score_row(1, 2.0, "normal", NOON),
        score_row(2, 30.0, "high", NOON, HOSTILE[0]) | {"transaction_id": HOSTILE[0]},
        score_row(3, 15.0, "medium", NOON)
        | {"amount": 4312.5, "top_features": [{"feature": "city", "contribution": 7.5, "value": RED}]},
    ]
    scores[1] |= {"shadow_score": 40.0, "shadow_severity": "high", "shadow_version": HOSTILE[0]}
    scores.append(scores[2])
    alerts = [
        {key: value for key, value in row.items() if key != "encoded"}
        | {"threshold": row["anomaly_score"] - 5}
        for row in scores[2:]
    ]
    letters = [
        {
            "timestamp": NOON.isoformat(),
            "payloadString": text,
            "attributes": [],
            "errorMessage": reason,
            "stage": "parse",
            "attempt": 0,
        }
        for text, reason in [("a", "payload: not JSON"), ("b", HOSTILE[1])]
    ]
    for name, rows in (("scores", scores), ("alerts", alerts), ("error_records", letters)):
        assert client.insert_rows_json(f"{dataset}.{name}", rows) == []
    return dataset, f"--bigquery_endpoint={bigquery_emulator.bigquery}"


@pytest.mark.integration
def test_the_figures_and_the_page_of_a_dataset(filled, tmp_path, capsys):
    dataset, endpoint = filled
    path = tmp_path / "new" / "report.html"
    argv = [f"--dataset={dataset}", "--since=2026-03-08", endpoint, f"--html={path}", "--format=json"]
    assert report.main(argv) == 0
    out, err = capsys.readouterr()
    assert f"Wrote {path}" in err
    shown = json.loads(out)
    rows = shown["rows"]
    assert shown["dataset"] == dataset
    assert shown["since"] == "2026-03-08T00:00:00+00:00"
    assert [(row["transactions"], row["p50_ms"]) for row in rows["pace"]] == [(4, 200)]
    assert sorted(
        (row["bin"], row["severity"], row["transactions"]) for row in rows["score_distribution"]
    ) == [
        (0, "normal", 1),
        (3, "normal", 1),
        (11, "medium", 1),
        (14, "high", 1),
    ]
    assert [(row["medium"], row["high"]) for row in rows["alerts_over_time"]] == [(1, 1)]
    assert [row["transaction_id"] for row in rows["last_alerts"]] == [HOSTILE[0], "tx-3"]
    assert rows["last_alerts"][0]["top_features"][0] == {
        "feature": "V14",
        "contribution": 15.0,
        "value": None,
    }
    assert {row["severity"]: row["threshold"] for row in rows["thresholds"]} == {"high": 25.0, "medium": 10.0}
    assert {row["reason"]: row["messages"] for row in rows["dead_letters"]} == {
        "payload: not JSON": 1,
        HOSTILE[1]: 1,
    }
    assert {row["model_version"]: row["transactions"] for row in rows["model_versions"]} == {
        "v1": 3,
        HOSTILE[0]: 1,
    }
    assert {row["model_version"]: row["transactions"] for row in rows["versions_over_time"]} == {
        "v1": 3,
        HOSTILE[0]: 1,
    }
    (shadow,) = rows["shadow_agreement"]
    assert (shadow["shadow_version"], shadow["gained"], shadow["lost"]) == (HOSTILE[0], 1, 0)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<dt>Amount</dt><dd>4,312.5</dd>" in text
    assert r"city: \x1b[31mNZ (+7.50)" in text
    assert r"<bdi>city</bdi> <small><bdi>\x1b[31mNZ</bdi></small>" in text


@pytest.mark.integration
def test_the_figures_for_people(filled, capsys):
    dataset, endpoint = filled
    assert report.main([f"--dataset={dataset}", "--since=2026-03-08", endpoint]) == 0
    out = capsys.readouterr().out
    assert "Last alerts" in out
    assert "payload: not JSON" in out
    (alert,) = [line for line in out.splitlines() if "tx-3" in line]
    assert "4,312.5 " in alert
    assert r"city: \x1b[31mNZ (+7.50)" in alert
    assert "\x1b" not in out


@pytest.mark.integration
def test_since_leaves_out_what_is_older(filled, tmp_path, capsys):
    dataset, endpoint = filled
    argv = [f"--dataset={dataset}", "--since=2026-03-09", endpoint, "--format=json"]
    assert report.main([*argv, f"--html={tmp_path / 'a.html'}"]) == 0
    assert not any(json.loads(capsys.readouterr().out)["rows"].values())


@pytest.mark.integration
def test_a_page_that_scans_too_much_is_refused_before_anything_runs(filled, monkeypatch, capsys):
    dataset, endpoint = filled
    monkeypatch.setattr(query, "scanned_bytes", lambda *_: 200)
    monkeypatch.setattr(query, "run", lambda *_: pytest.fail("it ran"))
    assert report.main([f"--dataset={dataset}", endpoint, "--max_bytes=2199"]) == 1
    assert "would scan 2,200 bytes, over --max_bytes=2199: pass a later --since" in capsys.readouterr().err


@pytest.mark.integration
def test_a_dataset_that_is_not_there_is_named_with_the_command_that_makes_it(filled, capsys):
    assert report.main(["--dataset=local-project.none", filled[1]]) == 1
    assert "anomaly resources create --project local-project --dataset none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--html=a.html", "--serve"], "--serve: expected without --html"),
        (["--html=."], "--html: expected a file, got the directory ."),
        (["--format=csv"], "--format: expected table or json, got csv"),
        (["--format=json", "--serve"], "--format: expected without --serve"),
        (["--since=soon"], "argument --since: expected an age such as"),
        (["--serve", "--port=70000"], "argument --port: expected a whole number from 0 to 65535"),
    ],
)
def test_options_are_checked_before_anything_runs(flags, reason, capsys):
    try:
        status = report.main(["--dataset=my-project.anomaly", *flags])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert reason in capsys.readouterr().err


def test_an_age_is_another_moment_each_time():
    since = report.window("1h")
    assert since() < since()
    fixed = report.window("2026-03-08T12:00:00Z")
    assert fixed() == fixed() == NOON


@pytest.mark.integration
def test_the_command_serves_until_it_is_stopped_and_names_a_port_that_is_taken(filled, capsys):
    dataset, endpoint = filled
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert report.main([f"--dataset={dataset}", endpoint, "--serve", f"--port={port}"]) == 1
    assert re.search(rf"--port={port}: .*in use; pass another, or 0", capsys.readouterr().err)


class Source:
    """Counts how often the figures are read; fails while there is a problem."""

    def __init__(self):
        self.reads, self.problem = 0, ""

    def __call__(self):
        self.reads += 1
        if self.problem:
            raise CommandError(self.problem)
        return figures(HOSTILE)


@pytest.fixture
def served():
    """A running server, and the source of its figures, which are kept for as long as a test lasts."""
    source = Source()
    with server.Server(0, server.Latest(source, 3600), 7) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running, source
        finally:
            running.shutdown()
            thread.join()


def ask(running, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection(*running.server_address)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


def test_the_page_is_served_on_this_machine_alone_and_read_once(served):
    running, source = served
    assert running.server_address[0] == "127.0.0.1"
    answer, text = ask(running)
    assert answer.status == 200
    assert '<meta http-equiv="refresh" content="7">' in text
    policy = answer.getheader("Content-Security-Policy")
    assert policy == f"{page.policy()}; frame-ancestors 'none'"
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    answer, text = ask(running, "/paused?a=b")
    assert answer.status == 200
    assert 'http-equiv="refresh"' not in text
    answer, text = ask(running, method="HEAD")
    assert (answer.status, text) == (200, "")
    assert source.reads == 1


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/page.css", "/%2e%2e/", "/<script>"],
)
def test_no_path_leads_to_a_file(served, path):
    answer, text = ask(served[0], path)
    assert (answer.status, text) == (404, "expected / or /paused\n")
    assert served[1].reads == 0


def test_a_page_of_a_stranger_whose_name_leads_here_reads_nothing(served):
    answer, _ = ask(served[0], Host="evil.example")
    assert answer.status == 421
    assert ask(served[0], Host=f"localhost:{served[0].server_address[1]}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(served, method):
    assert ask(served[0], method=method)[0].status == 501


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01\x00\xff", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70_000]
)
def test_a_broken_client_harms_nobody(served, sent, capfd):
    with socket.create_connection(served[0].server_address) as client:
        client.sendall(sent)
    with socket.create_connection(served[0].server_address) as client:  # leaves without the answer
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert ask(served[0])[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_figures_that_cannot_be_read_are_a_notice_and_the_last_ones_stay(monkeypatch):
    source = Source()
    latest = server.Latest(source, 0)
    source.problem = "no answer"
    assert latest.get() == (None, "no answer")
    source.problem = ""
    shown, problem = latest.get()
    assert (shown.dataset, problem) == ("my-project.anomaly", "")
    source.problem = "no answer again"
    assert latest.get() == (shown, "no answer again")


def test_without_figures_the_status_says_so(served):
    running, source = served
    source.problem = "<b>no</b> answer"
    answer, text = ask(running)
    assert answer.status == 503
    assert "&lt;b&gt;no&lt;/b&gt; answer" in text

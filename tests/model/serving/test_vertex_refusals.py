"""The errors of the Vertex AI commands."""

from __future__ import annotations

import pytest

from model.serving.vertex.__main__ import main
from tests.http_server import Refusal
from tests.model.serving.artifacts import VERSION
from tests.model.serving.vertex_cases import CUSTOM, deploy

pytest_plugins = ("tests.model.serving.fixtures", "tests.model.serving.vertex_fixtures")
pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["deploy", "--name", "nobody", "--endpoint", "e"], "--name nobody: no such model"),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--version", "1.0"],
            f"m has no version 1.0; it has {VERSION}",
        ),
        (["deploy", "--name", "m", "--endpoint", "e", "--traffic", "50"], "takes all of its traffic"),
        (["traffic", "--endpoint", "e", "--split", "v1=100"], "--endpoint e: no such endpoint"),
    ],
)
def test_a_command_that_cannot_be_done_changes_nothing(uploaded, run, vertex, command, text):
    code, _, err = run(*command)
    assert code == 1
    assert text in err
    assert vertex.calls == []


def test_a_split_must_name_deployed_versions_and_add_up(uploaded, run, vertex):
    deploy(run, VERSION)
    sent = len(vertex.calls)
    assert "nobody is not deployed there" in run("traffic", "--endpoint", "e", "--split", "nobody=100")[2]
    code, _, err = run("traffic", "--endpoint", "e", "--split", f"{VERSION}=99")
    assert (code, err) == (2, "error: --split: expected shares of 100 in all, got 99\n")
    assert len(vertex.calls) == sent


def test_a_refusal_of_google_names_the_role(run, vertex):
    vertex.refusal = Refusal(403, "PERMISSION_DENIED", "aiplatform.endpoints.list denied on p")
    code, _, err = run("list")
    assert code == 1
    assert err.startswith(f"error: {vertex.url} (forbidden): ")
    assert "aiplatform.endpoints.list denied on p; gcloud projects add-iam-policy-binding p" in err
    assert "--role=roles/aiplatform.user" in err


def test_an_address_without_an_answer_is_named(capsys):
    assert main(["list", "--project", "p", "--api_endpoint", "http://127.0.0.1:9"]) == 1
    assert "error: http://127.0.0.1:9 (unreachable): " in capsys.readouterr().err


DEPLOY = ["deploy", "--name", "m", "--endpoint", "e"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ([*DEPLOY, "--traffic", "150"], "--traffic: expected a whole number from 0 to 100, got '150'"),
        (
            [*DEPLOY, "--min_replicas", "3", "--max_replicas", "1"],
            "--max_replicas: expected --min_replicas 3 or more, got 1",
        ),
        ([*DEPLOY, "--min_replicas", "-1"], "--min_replicas: expected a whole number of at least 0"),
        ([*DEPLOY, "--max_replicas", "0"], "--max_replicas: expected a whole number of at least 1"),
        ([*DEPLOY, "--accelerators", "1"], "--accelerator_type, --accelerators: expected both or none"),
        ([*DEPLOY, "--cpu_target", "101"], "--cpu_target: expected a whole number from 1 to 100"),
        ([*DEPLOY, "--request_target", "0"], "--request_target: expected a whole number of at least 1"),
        ([*DEPLOY, "--duty_cycle_target", "50"], "expected together with --accelerator_type"),
        ([*DEPLOY, "--label", "Team=x"], "--label: expected KEY=VALUE, got 'Team=x': KEY 'Team' has 'T'"),
        (
            [*DEPLOY, "--dedicated", "--network", "n"],
            "--dedicated, --network, --psc_project: expected at most",
        ),
        (
            ["traffic", "--endpoint", "e", "--split", "v1:100"],
            "--split: expected VERSION=PERCENT, got 'v1:100'",
        ),
        (
            ["traffic", "--endpoint", "e", "--split", "V=60", "--split", "V=40"],
            "each version once, got V twice",
        ),
        (["traffic", "--endpoint", "e", "--split", "V=60", "--split", "W=50"], "of 100 in all, got 110"),
        (["delete"], "--endpoint, --name: expected one of them, or both"),
        (["upload", "--model", "m", "--image", CUSTOM], "--staging: expected gs://BUCKET/DIR"),
        (["upload", "--model", "m", "--image", "prebuilt-tpu"], "got 'prebuilt-tpu'; or pass prebuilt-cpu"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_a_wrong_option_is_refused_before_any_request(run, vertex, command, text, dry):
    vertex.refusal = Refusal(403, "PERMISSION_DENIED", "no request was expected")
    code, _, err = run(*command, *dry)
    assert code == 2
    assert text in err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("{", "expected JSON"),
        ('{"rows": []}', 'expected {"instances": [[30 numbers], ...]}'),
    ],
)
def test_an_input_that_is_no_request_is_named(run, tmp_path, text, reason):
    path = tmp_path / "request.json"
    if text is not None:
        path.write_text(text)
    code, _, err = run("predict", "--endpoint", "e", "--input", str(path))
    assert code == 1
    assert err.startswith("error: --input")
    assert str(path) in err
    assert reason in err


def test_without_a_project_or_https_nothing_is_asked(capsys, monkeypatch):
    assert main(["list", "--project", "p", "--api_endpoint", "http://10.1.2.3"]) == 2
    assert "--api_endpoint: expected https" in capsys.readouterr().err
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert main(["list"]) == 2
    assert "--project: expected a project, here or in GOOGLE_CLOUD_PROJECT" in capsys.readouterr().err

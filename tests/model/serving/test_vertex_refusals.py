"""What the Vertex AI commands say when something is wrong."""

from __future__ import annotations

import pytest

from model.serving.vertex.__main__ import main
from tests.cloud.storage_server import Refusal
from tests.model.serving.artifacts import VERSION
from tests.model.serving.vertex_cases import CUSTOM, deploy

pytest_plugins = ("tests.model.serving.fixtures", "tests.model.serving.vertex_fixtures")
pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["deploy", "--name", "nobody", "--endpoint", "e"], "--name nobody: no such model"),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--version", "1.0"],
            f"m has no version 1.0; it has {VERSION}",
        ),
        (["deploy", "--name", "m", "--endpoint", "e", "--traffic", "50"], "takes all of its traffic"),
        (["deploy", "--name", "m", "--endpoint", "e", "--min_replicas", "3"], "give 1 <= min <= max"),
        (["deploy", "--name", "m", "--endpoint", "e", "--min_replicas", "0"], "give 1 <= min <= max"),
        (["deploy", "--name", "m", "--endpoint", "e", "--accelerators", "1"], "go together"),
        (["deploy", "--name", "m", "--endpoint", "e", "--cpu_target", "101"], "--cpu_target 101"),
        (["deploy", "--name", "m", "--endpoint", "e", "--request_target", "-5"], "--request_target -5: give"),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--accelerator_type", "T4", "--accelerators", "-1"],
            "--accelerators -1: give 0 or more",
        ),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--duty_cycle_target", "50"],
            "needs --accelerator_type",
        ),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--label", "Team=x"],
            "got 'Team=x': KEY 'Team' has 'T'",
        ),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--dedicated", "--network", "n"],
            "give one of --dedicated",
        ),
        (["traffic", "--endpoint", "e", "--split", "v1=100"], "--endpoint e: no such endpoint"),
        (["traffic", "--endpoint", "e", "--split", "v1:100"], "--split v1:100: give VERSION=PERCENT"),
        (["undeploy", "--endpoint", "e", "--all"], "--endpoint e: no such endpoint"),
        (["delete"], "give --endpoint, --name, or both"),
        (["upload", "--model", "ARTIFACT", "--image", CUSTOM], "give --staging gs://"),
        (
            ["upload", "--model", "ARTIFACT", "--image", "prebuilt-tpu"],
            "--image: expected HOST/PATH:TAG or HOST/PATH@sha256:DIGEST, got 'prebuilt-tpu'; or pass",
        ),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_sent(
    uploaded, run, vertex, served_artifact, command, words
):
    code, _, err = run(*(served_artifact.uri if word == "ARTIFACT" else word for word in command))
    assert code == 1
    assert words in err
    assert vertex.calls == []


def test_a_split_must_name_deployed_versions_and_add_up(uploaded, run, vertex):
    deploy(run, VERSION)
    sent = len(vertex.calls)
    assert "nobody is not deployed there" in run("traffic", "--endpoint", "e", "--split", "nobody=100")[2]
    assert "must add up to 100, not 99" in run("traffic", "--endpoint", "e", "--split", f"{VERSION}=99")[2]
    assert len(vertex.calls) == sent


def test_what_google_refuses_is_told(run, vertex):
    vertex.refusal = Refusal(403, "PERMISSION_DENIED", "aiplatform.endpoints.list denied on p")
    code, _, err = run("status")
    assert code == 1
    assert "Google Cloud answers: 403" in err
    assert "aiplatform.endpoints.list denied on p" in err


def test_an_address_where_nobody_answers_is_told(capsys):
    assert main(["status", "--project", "p", "--api_endpoint", "http://127.0.0.1:9"]) == 1
    assert "no answer from http://127.0.0.1:9; is the address right?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["deploy", "--name", "m", "--endpoint", "e", "--traffic", "150"], "--traffic 150: give per cent"),
        (["deploy", "--name", "m", "--endpoint", "e", "--traffic", "-5"], "--traffic -5: give per cent"),
        (["deploy", "--name", "m", "--endpoint", "e", "--request_target", "0"], "--request_target 0: give"),
        (["traffic", "--endpoint", "e", "--split", "V=60", "--split", "V=40"], "V is given twice"),
        (["traffic", "--endpoint", "e", "--split", "V=60", "--split", "W=50"], "add up to 100, not 110"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_numbers_that_cannot_be_are_refused_without_asking_anybody(run, vertex, command, words, dry):
    vertex.refusal = Refusal(403, "PERMISSION_DENIED", "nobody was to be asked")
    code, _, err = run(*command, *dry)
    assert code == 1
    assert words in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file or directory; give a file, or -"),
        ("{", "not JSON"),
        ('{"rows": []}', 'expected {"instances": [[30 numbers], ...]}'),
    ],
)
def test_an_input_that_is_no_request_is_named(run, tmp_path, text, words):
    path = tmp_path / "request.json"
    if text is not None:
        path.write_text(text)
    code, _, err = run("predict", "--endpoint", "e", "--input", str(path))
    assert code == 1
    assert f"--input {path}: {words}" in err


def test_without_a_project_or_https_nothing_is_asked(capsys, monkeypatch):
    assert main(["status", "--project", "p", "--api_endpoint", "http://10.1.2.3"]) == 1
    assert "use https" in capsys.readouterr().err
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert main(["status"]) == 1
    assert "give --project" in capsys.readouterr().err

"""Who may call a TorchServe in a container: given keys, or something in front of it; and its probe."""

from __future__ import annotations

import json
import re
import stat
import tempfile
from pathlib import Path

import orjson
import pytest
import requests

from model.serving.torchserve import grpc_client, keys, process
from model.serving.torchserve.__main__ import main
from model.serving.torchserve.config import (
    Layout,
    Ports,
    TorchServeError,
    profile_path,
    read_properties,
    render,
)
from tests.model.serving.artifacts import transactions
from tests.model.serving.servers import port_flags, torchserve_server

pytest_plugins = ("tests.model.serving.fixtures",)

NAME = "pytorch_autoencoder"
GIVEN = {"inference": {"key": "0123456789abcdef-in"}, "management": {"key": "0123456789abcdef-ma"}}
BODY = orjson.dumps({"instances": transactions(2)}, option=orjson.OPT_SERIALIZE_NUMPY)


def bearer(kind: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {GIVEN[kind]['key']}"}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(GIVEN))
    return path


@pytest.mark.integration
def test_two_servers_take_the_same_given_key_after_each_start(archived_artifact, key_file, capsys):
    with (
        torchserve_server(archived_artifact.uri, "--key_file", str(key_file)) as first,
        torchserve_server(archived_artifact.uri, "--key_file", str(key_file)) as second,
    ):
        answers = []
        for served in (first, second):
            url = f"{served.server.inference}/predictions/{NAME}"
            answers.append(requests.post(url, BODY, headers=bearer("inference"), timeout=60).json())
            by_grpc = grpc_client.predict(served.server.grpc, BODY, NAME, key=GIVEN["inference"]["key"])
            assert orjson.loads(by_grpc) == answers[-1]
            for headers in ({}, bearer("management"), {"Authorization": "Bearer null"}):
                refused = requests.post(url, BODY, headers=headers, timeout=60)
                assert refused.json()["type"] == "InvalidKeyException"
            ping = f"{served.server.inference}/ping"
            assert requests.get(ping, timeout=60).status_code == 400
            assert requests.get(ping, headers=bearer("inference"), timeout=60).ok
            # No server makes a key of its own, which the others would not know.
            token = f"{served.server.management}/token?type=inference"
            for headers in (bearer("management"), {"Authorization": "Bearer null"}):
                assert not requests.get(token, headers=headers, timeout=60).ok
            # The probe of a container needs neither key nor address: both are in its run directory.
            assert main(["status", "--run_dir", str(served.layout.root)]) == 0
            assert stat.S_IMODE(served.layout.key_file.stat().st_mode) == 0o600
            assert json.loads(served.layout.key_file.read_text()) == GIVEN
            assert GIVEN["inference"]["key"] not in served.process.log_text()
        assert answers[0]["predictions"] == answers[1]["predictions"]
        assert len(answers[0]["predictions"]) == 2
    assert not first.layout.given_keys.exists()
    assert GIVEN["inference"]["key"] not in capsys.readouterr().out


@pytest.mark.integration
def test_behind_something_that_authorises_the_probe_and_callers_need_no_key(archived_artifact, capsys):
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        run_dir = ["--run_dir", str(Path(directory) / "run")]
        start = ["start", *run_dir, "--config", "cloud", "--host", "127.0.0.1", "--authorised_elsewhere"]
        assert main([*start, "--model", archived_artifact.uri, "--workers", "1", *port_flags()]) == 0
        try:
            server = process.server_of(Layout(Path(directory).resolve() / "run"))
            assert requests.get(f"{server.inference}/ping", timeout=60).json() == {"status": "Healthy"}
            answer = requests.post(f"{server.inference}/predictions/{NAME}", BODY, timeout=60)
            assert len(answer.json()["predictions"]) == 2
            assert main(["status", *run_dir]) == 0
        finally:
            assert main(["stop", *run_dir]) == 0
            capsys.readouterr()


@pytest.mark.integration
def test_a_server_that_cannot_take_the_given_keys_does_not_start(
    archived_artifact, key_file, monkeypatch, capsys
):
    monkeypatch.setattr(keys, "ENVIRONMENT", "ANOMALY_ANOTHER_NAME")
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory).resolve() / "run")
        start = ["start", "--run_dir", str(layout.root), "--model", archived_artifact.uri, "--workers", "1"]
        assert main([*start, *port_flags(), "--key_file", str(key_file)]) == 1
        assert "GivenKeys" in capsys.readouterr().err
        assert process.find_process(layout) is None


def rendered(profile: str, **changes: str) -> str:
    properties = {**read_properties(profile_path(profile)), "disable_token_authorization": "true", **changes}
    return render(properties, Layout(Path("/srv/ts")), Ports(), [], 1, authorised_elsewhere=True)


def test_something_in_front_authorises_inference_and_never_management():
    text = rendered("cloud")
    assert "inference_address=http://0.0.0.0:8080\n" in text
    assert "management_address=http://127.0.0.1:8081\n" in text
    assert "disable_token_authorization=true\n" in text
    for changes in ({"management_host": "0.0.0.0"}, {"management_host": "10.0.0.7"}):
        with pytest.raises(
            TorchServeError, match=f"management_host={changes['management_host']} can be reached"
        ):
            rendered("cloud", **changes)


def test_without_the_switch_tokens_stay_on_and_the_error_names_it():
    properties = {**read_properties(profile_path("cloud")), "disable_token_authorization": "true"}
    with pytest.raises(TorchServeError, match="pass --authorised_elsewhere if something in front"):
        render(properties, Layout(Path("/srv/ts")), Ports(), [], 1)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--authorised_elsewhere", "--tokens"], "--authorised_elsewhere, --tokens, --key_file: expected"),
        (
            ["--authorised_elsewhere", "--key_file", "k"],
            "--authorised_elsewhere, --tokens, --key_file: expected",
        ),
        (["--key_file", "k", "--no_tokens"], "--key_file, --no_tokens: expected one of them"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(flags, text, capsys):
    assert main(["start", "--model", "m", *flags]) == 2
    assert f"error: {text}" in capsys.readouterr().err


SHORT = {**GIVEN, "inference": {"key": "tooshort"}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        (json.dumps({"inference": GIVEN["inference"]}), "KeyError: 'management'"),
        (json.dumps(SHORT), "inference: expected a key of 16 to 512 letters"),
        (
            json.dumps({**GIVEN, "management": {"key": "with a space in the key"}}),
            "management: expected a key",
        ),
        (json.dumps({**GIVEN, "management": {"key": 1234567890123456}}), "management: expected a key"),
        (json.dumps({**GIVEN, "management": GIVEN["inference"]}), "expected two different keys"),
    ],
)
def test_a_key_file_that_is_none_is_refused_without_showing_a_key(content, reason, tmp_path):
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TorchServeError, match=f"--key_file {re.escape(str(path))}: .*{reason}") as refused:
        keys.read_keys(path)
    assert "tooshort" not in str(refused.value)
    assert GIVEN["inference"]["key"] not in str(refused.value)


def test_without_a_compiler_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TorchServeError, match=r"--key_file needs .*javac.*openjdk-17-jdk-headless"):
        keys.install({"inference": "i", "management": "m"}, Layout(tmp_path))

"""anomaly resources status where nobody is signed in: one line, and no table."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import google.auth
import pytest
from google.auth.exceptions import DefaultCredentialsError

from cloud.resources.__main__ import main

FLAGS = ["status", "--project=my-project", "--region=europe-west1"]


@pytest.fixture
def gcloud(monkeypatch, tmp_path):
    """A PATH whose gcloud notes that it was asked, and answers as if signed out."""
    asked = tmp_path / "asked"
    program = tmp_path / "gcloud"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(asked)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "sys.exit('ERROR: You do not currently have an active account selected.')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return asked


@pytest.fixture
def lookups(monkeypatch):
    """Nobody is signed in; how often this process has looked for credentials."""
    counted: list[str] = []

    def default(*args: object, **kwargs: object) -> None:
        counted.append("default")
        raise DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.delenv("GOOGLE_CLOUD_QUOTA_PROJECT", raising=False)
    monkeypatch.setattr(google.auth, "default", default)
    return counted


@pytest.mark.parametrize("form", ["table", "json"])
def test_it_is_one_line_after_one_look_for_credentials(capsys, gcloud, lookups, form):
    # Where a firewall hides the metadata server, a look takes 12 s; gcloud takes a second or more a command.
    assert main([*FLAGS, f"--format={form}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: no resource can be looked at: no valid credentials: Your default credentials were not found. "
        "To fix it: gcloud auth application-default login\n"
    )
    assert lookups == ["default"]
    assert not gcloud.exists()


@pytest.mark.integration
def test_a_metadata_server_behind_a_firewall_is_tried_once(tmp_path, gcloud):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "CLOUDSDK_CONFIG": str(tmp_path),
            "GCE_METADATA_IP": f"127.0.0.1:{silent.getsockname()[1]}",
        }
        command = [sys.executable, "-m", "common.anomaly", "resources", *FLAGS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: no resource can be looked at: no valid credentials: ")
        assert len(done.stderr.splitlines()) == 1
        silent.settimeout(0)
        tries = 0
        while True:
            try:
                silent.accept()[0].close()
            except BlockingIOError:
                break
            tries += 1
    assert tries == 1
    assert not gcloud.exists()

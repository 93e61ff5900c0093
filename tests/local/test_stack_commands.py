"""The command line of the local stack: anomaly local."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local.__main__ import main
from local.daemon import Daemon
from local.endpoints import Endpoints
from local.process import LocalStackError
from tests.local.stack_cases import listens, local, needs_bigquery, until


@needs_bigquery
@pytest.mark.integration
def test_up_status_down(tmp_path):
    assert local("status", state_dir=tmp_path).returncode == 3
    up = local("up", "--project=from-shell", state_dir=tmp_path, environment={"PATH": str(tmp_path)})
    try:
        assert up.returncode == 0, up.stderr
        assert "Pub/Sub is the embedded one" in up.stderr  # there is no gcloud on that PATH
        exported = dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
        assert exported["GOOGLE_CLOUD_PROJECT"] == "from-shell"
        status = json.loads(local("status", "--format=json", state_dir=tmp_path).stdout)
        assert status["environment"] == exported
        assert status["pubsub_kind"] == "embedded"
        assert listens(status["pubsub"])
        assert listens(status["bigquery_storage"])
        again = local("up", state_dir=tmp_path)
        assert again.stdout == up.stdout
        assert "running already" in again.stderr
        assert json.loads(local("status", "--format=json", state_dir=tmp_path).stdout)["pid"] == status["pid"]
    finally:
        down = local("down", state_dir=tmp_path)
    assert (down.returncode, down.stdout, down.stderr) == (0, "", "The local stack has stopped.\n")
    assert not listens(status["pubsub"])
    assert not Path(exported["GOOGLE_APPLICATION_CREDENTIALS"]).exists()
    assert local("down", state_dir=tmp_path).stderr == "The local stack was not running.\n"


@pytest.mark.integration
def test_down_prints_what_takes_the_exports_back(tmp_path):
    up = local("up", "--no_bigquery", "--pubsub=embedded", state_dir=tmp_path)
    exported = dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
    shell = {**exported, "PUBSUB_PROJECT_ID": "another"}  # set anew by its user: stays
    down = local("down", state_dir=tmp_path, environment=shell)
    first, *names = down.stdout.split()
    assert first == "unset"
    assert set(names) == exported.keys() - {"PUBSUB_PROJECT_ID"}


@needs_bigquery
@pytest.mark.integration
def test_a_killed_stack_is_stale_and_can_be_started_again(tmp_path):
    started = local("up", "--pubsub=none", state_dir=tmp_path)
    assert f"`anomaly local down --state_dir={tmp_path}` stops it." in started.stderr
    first = json.loads(local("status", "--format=json", state_dir=tmp_path).stdout)
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: not listens(first["bigquery"]))
    assert (tmp_path / "default.json").exists()
    stale = local("status", state_dir=tmp_path)
    assert stale.stdout.split() == ["running", "False"]
    assert f"Start it with `anomaly local up --state_dir={tmp_path}`" in stale.stderr
    assert not (tmp_path / "default.json").exists()
    assert local("up", "--pubsub=none", state_dir=tmp_path).returncode == 0
    second = json.loads(local("status", "--format=json", state_dir=tmp_path).stdout)
    assert second["pid"] != first["pid"]
    assert local("down", state_dir=tmp_path).stderr == "The local stack has stopped.\n"


def test_stale_state_never_names_a_process_to_kill(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        endpoints = Endpoints(None, None, None, "local-project").to_dict()
        state = {"pid": bystander.pid, "endpoints": endpoints}
        (tmp_path / "default.json").write_text(json.dumps(state))
        assert Daemon(state_dir=tmp_path).down() is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@needs_bigquery
@pytest.mark.integration
def test_up_reports_why_it_failed(tmp_path, bigquery_emulator):
    port = bigquery_emulator.bigquery.rsplit(":", 1)[1]
    failed = local("up", "--pubsub=none", f"--bigquery_port={port}", state_dir=tmp_path)
    assert failed.returncode == 1
    assert f"--bigquery_port: port {port} on 127.0.0.1 is in use" in failed.stderr
    assert failed.stdout == ""


def test_up_says_what_is_missing(tmp_path):
    failed = local(
        "up", "--no_bigquery", "--pubsub=gcloud", state_dir=tmp_path, environment={"PATH": str(tmp_path)}
    )
    assert failed.returncode == 1
    assert "Google Cloud CLI" in failed.stderr


@pytest.mark.parametrize("port", ["http", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["up", f"--pubsub_port={port}"])
    assert stopped.value.code == 2
    assert (
        f"argument --pubsub_port: expected a whole number from 0 to 65535, got '{port}'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--name=../other"], "--name: expected NAME such as default, got '../other': it has '/'"),
        (["--project=p"], "--project: expected PROJECT such as my-project, got 'p': it has 1 character"),
    ],
)
def test_a_name_that_breaks_a_rule_is_refused(flags, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["up", *flags])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_state_directory_of_others_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(LocalStackError, match="--state_dir: expected a directory that only you can write"):
        Daemon(state_dir=tmp_path).status()

"""Start, stop and clean-up of the local stack, and its command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

from local import bigquery as local_bigquery
from local import pubsub as local_pubsub
from local import topics
from local.__main__ import main
from local.daemon import Daemon
from local.endpoints import Endpoints
from local.process import LocalStackError, ServerProcess
from local.pubsub import GcloudPubSub
from local.stack import LocalStack

ROOT = Path(__file__).resolve().parents[2]
needs_pubsub = pytest.mark.skipif(bool(local_pubsub.missing()), reason=" ".join(local_pubsub.missing()))
needs_bigquery = pytest.mark.skipif(bool(local_bigquery.missing()), reason=" ".join(local_bigquery.missing()))


def until(condition, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def listens(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) == 0


def is_alive(pid):
    """Tests for a process that runs; one that has ended and waits for its parent to notice does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def python(program, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


def local(*arguments, state_dir, environment=None):
    """`anomaly local` with these arguments; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "local", *arguments, f"--state_dir={state_dir}"],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


# One server process --------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A server that starts a child of its own, as launcher scripts do, and notes both process ids."""
    pids = tmp_path / "pids"
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r} + '~', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids)!r} + '~', {str(pids)!r})\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    return [sys.executable, "-c", program], pids


def test_stop_ends_a_server_its_children_and_its_directory(server):
    command, pids = server
    process = ServerProcess("Server", command)
    process.start()
    process.wait_until(lambda: "up" in process.log_text(), timeout=30)
    directory, children = process.directory, [int(pid) for pid in pids.read_text().split()]
    assert process.running
    assert all(is_alive(pid) for pid in children)
    process.stop()
    process.stop()
    assert not process.running
    assert not any(is_alive(pid) for pid in children)
    assert not directory.exists()


def test_a_server_that_ignores_sigterm_is_killed():
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = ServerProcess("Server", [sys.executable, "-c", program], grace=0.5)
    process.start()
    process.wait_until(lambda: "up" in process.log_text(), timeout=30)
    process.stop()
    assert not process.running


@pytest.mark.parametrize("how", ["killed", "exit", "unhandled exception"])
def test_servers_die_with_their_parent(server, how):
    command, pids = server
    end = {
        "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "exit": "raise SystemExit(0)",
        "unhandled exception": "raise RuntimeError('planted')",
    }[how]
    parent = python(
        f"""
        from local.process import ServerProcess
        process = ServerProcess("Server", {command!r})
        process.start()
        process.wait_until(lambda: "up" in process.log_text(), timeout=30)
        print(process.directory, flush=True)
        {end}
        """,
        stderr=subprocess.DEVNULL,
    )
    directory = Path(parent.communicate(timeout=60)[0].strip())
    children = [int(pid) for pid in pids.read_text().split()]
    until(lambda: not any(is_alive(pid) for pid in children) and not directory.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux only")
def test_a_server_dies_with_its_guardian():
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = ServerProcess("Server", [sys.executable, "-c", program])
    process.start()
    process.wait_until(lambda: process.log_text().strip() != "", timeout=30)
    pid = int(process.log_text())
    os.kill(process._guardian.pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))
    assert not process.running
    assert "has ended" in process.ended()
    process.stop()
    assert process.directory is None


def test_a_server_that_ends_is_reported_with_its_log():
    process = ServerProcess("The server", [sys.executable, "-c", "raise SystemExit('no such database')"])
    process.start()
    with pytest.raises(LocalStackError, match=r"server ended while it was starting(.|\n)*no such database"):
        process.wait_until(lambda: False, timeout=60)
    assert process.directory is None


def test_a_server_that_does_not_answer_is_stopped():
    process = ServerProcess("The server", [sys.executable, "-c", "import time; time.sleep(600)"])
    process.start()
    with pytest.raises(LocalStackError, match=r"The server did not answer within 0 s(.|\n)*the log is empty"):
        process.wait_until(lambda: False, timeout=0.1)
    assert not process.running


# Endpoints -----------------------------------------------------------------------------------------------


def test_environment_is_set_and_put_back(monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "before:1")
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    endpoints = Endpoints("127.0.0.1:1", "http://127.0.0.1:2", "127.0.0.1:3", "local-project")
    with endpoints.activate():
        assert os.environ["PUBSUB_EMULATOR_HOST"] == "127.0.0.1:1"
        assert os.environ["BIGQUERY_EMULATOR_HOST"] == "http://127.0.0.1:2"
    assert os.environ["PUBSUB_EMULATOR_HOST"] == "before:1"
    assert "BIGQUERY_EMULATOR_HOST" not in os.environ
    assert endpoints.pipeline_args() == [
        "--project=local-project",
        "--bigquery_endpoint=http://127.0.0.1:2",
        "--bigquery_storage_endpoint=127.0.0.1:3",
    ]


def not_installed(distribution):
    raise PackageNotFoundError(distribution)


def test_requirements_that_are_not_met_are_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gcloud, java = LocalStack(pubsub="gcloud", bigquery=False).missing()
    assert "Google Cloud CLI" in gcloud
    assert "Java" in java
    for pubsub in ("auto", "embedded"):
        assert LocalStack(pubsub=pubsub).missing() == []
    monkeypatch.setattr("local.versions.metadata.version", not_installed)
    assert LocalStack().missing() == [
        "The BigQuery emulator: bqemulator: expected version 1.4.0, of which the local stack uses private "
        "parts, got none. Run `pip install 'bqemulator==1.4.0'`."
    ]
    with pytest.raises(LocalStackError, match="Google Cloud CLI"):
        LocalStack(pubsub="gcloud").start()


def test_a_stack_that_does_not_run_has_no_endpoints():
    with pytest.raises(LocalStackError, match="not running"):
        _ = LocalStack().endpoints
    with pytest.raises(LocalStackError, match="nothing to start"):
        LocalStack(pubsub="none", bigquery=False).start()


# The emulators -------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_publishes_and_pulls(channel):
    PublisherClient().publish(channel.topic, b"payload", kind="x").result(timeout=30)
    with SubscriberClient() as subscriber:
        (message,) = subscriber.pull(subscription=channel.subscription, max_messages=10).received_messages
    assert (message.message.data, dict(message.message.attributes)) == (b"payload", {"kind": "x"})


@pytest.mark.integration
def test_resources_can_be_made_and_deleted_twice(pubsub_emulator):
    project = pubsub_emulator.project
    for _ in range(2):
        topic = topics.create_topic(project, "made-twice")
        subscription = topics.create_subscription(project, "made-twice-sub", topic)
    assert topic == f"projects/{project}/topics/made-twice"
    assert subscription == f"projects/{project}/subscriptions/made-twice-sub"
    for _ in range(2):
        topics.delete(subscription, topic)
    assert topic not in [item.name for item in PublisherClient().list_topics(project=f"projects/{project}")]


@needs_pubsub
@pytest.mark.integration
def test_pubsub_through_gcloud_leaves_nothing_behind():
    emulator = GcloudPubSub(use_gcloud=True)
    emulator.launch()
    address, directory = emulator.wait(), emulator.directory
    assert listens(address)
    emulator.stop()
    assert not listens(address)
    assert not directory.exists()


@pytest.mark.parametrize("choice", ["auto", "gcloud"])
@needs_pubsub
@pytest.mark.integration
def test_gcloud_serves_where_it_is_there(choice):
    with LocalStack(pubsub=choice, bigquery=False) as stack:
        assert stack.endpoints.pubsub_kind == "gcloud"
        assert listens(stack.endpoints.pubsub)


@needs_bigquery
@pytest.mark.integration
def test_two_stacks_side_by_side_and_the_death_of_one(local_stack):
    """A second stack in another process, which is killed: its emulators go, the first one's stay."""
    parent = python(
        """
        import json, time
        from local.stack import LocalStack
        stack = LocalStack(project="other-project", pubsub="embedded")
        print(json.dumps(stack.start().to_dict()), flush=True)
        time.sleep(600)
        """
    )
    try:
        other = Endpoints(**json.loads(parent.stdout.readline()))
        client = bigquery.Client(
            "other-project",
            client_options={"api_endpoint": other.bigquery},
            credentials=AnonymousCredentials(),
        )
        client.create_dataset("only_there")
        here = bigquery.Client("other-project", credentials=AnonymousCredentials())
        assert [item.dataset_id for item in here.list_datasets()] == []
        addresses = [other.pubsub, other.bigquery, other.bigquery_storage]
        assert not set(addresses) & {local_stack.pubsub, local_stack.bigquery, local_stack.bigquery_storage}
        assert all(listens(address) for address in addresses)
    finally:
        parent.kill()
        parent.communicate()
    until(lambda: not any(listens(address) for address in addresses))
    until(lambda: not Path(other.credentials_file).parent.exists())
    assert all(listens(address) for address in (local_stack.pubsub, local_stack.bigquery))


@needs_bigquery
@pytest.mark.integration
def test_a_stopped_stack_can_start_again():
    stack = LocalStack(pubsub="none")
    for _ in range(2):
        with stack:
            assert stack.endpoints.pubsub is None
            assert listens(stack.endpoints.bigquery)
            address = stack.endpoints.bigquery
        assert not listens(address)


# The command line ----------------------------------------------------------------------------------------


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
    assert (down.returncode, down.stdout) == (0, "The local stack has stopped.\n")
    assert not listens(status["pubsub"])
    assert not Path(exported["GOOGLE_APPLICATION_CREDENTIALS"]).exists()
    assert local("down", state_dir=tmp_path).stdout == "The local stack was not running.\n"


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
    assert local("down", state_dir=tmp_path).stdout == "The local stack has stopped.\n"


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

"""Start, stop and clean-up of the local stack, and its command line."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

from local import pubsub as local_pubsub
from local import topics
from local.endpoints import Endpoints
from local.process import LocalStackError, ServerProcess
from local.pubsub import GcloudPubSub
from local.stack import LocalStack
from tests.local.stack_cases import is_alive, listens, needs_bigquery, python, until

needs_pubsub = pytest.mark.skipif(bool(local_pubsub.missing()), reason=" ".join(local_pubsub.missing()))


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

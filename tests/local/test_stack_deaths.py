"""The local stack goes on when one of its emulators is killed."""

import json

import psutil
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.pubsub_v1 import PublisherClient

from local.endpoints import Endpoints
from local.topics import create_subscription, create_topic, take
from tests.local.stack_cases import listens, local, needs_bigquery, until

pytestmark = [pytest.mark.integration, needs_bigquery]

MODULES = {"pubsub": "local.pubsub_server", "bigquery": "local.bqemulator_launcher"}
NAMES = {"pubsub": "The embedded Pub/Sub", "bigquery": "The BigQuery emulator"}


def status(state_dir, environment=None):
    done = local("status", "--format=json", state_dir=state_dir, environment=environment)
    return json.loads(done.stdout), done.stderr, done.returncode


def kill(pid, emulator):
    """Kills the process of one emulator of the stack with this process id."""
    processes = psutil.Process(pid).children(recursive=True)
    (process,) = (process for process in processes if MODULES[emulator] in process.cmdline())
    process.kill()


@pytest.fixture
def stack(tmp_path):
    """A running stack: its record of `status`, its exports and its directory."""
    up = local("up", "--pubsub=embedded", state_dir=tmp_path)
    assert up.returncode == 0, up.stderr
    record, _, _ = status(tmp_path)
    yield record, dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
    local("down", state_dir=tmp_path)


def bigquery_client(endpoints):
    options = {"api_endpoint": endpoints["bigquery"]}
    return bigquery.Client(endpoints["project"], client_options=options, credentials=AnonymousCredentials())


def publish(topic, payload):
    PublisherClient().publish(topic, payload).result(timeout=30)


def endpoints_of(record):
    fields = Endpoints.__dataclass_fields__
    return Endpoints(**{name: value for name, value in record.items() if name in fields})


def test_pubsub_keeps_its_messages_when_bigquery_is_killed(stack, tmp_path):
    record, exports = stack
    with endpoints_of(record).activate():
        topic = create_topic(record["project"], "payments")
        subscription = create_subscription(record["project"], "payments-sub", topic)
        publish(topic, b"before")
        kill(record["pid"], "bigquery")
        until(lambda: status(tmp_path)[0].get("ended"))
        publish(topic, b"after")
        messages = take(subscription, lambda taken: len(taken) == 2)
    assert sorted(message.message.data for message in messages) == [b"after", b"before"]

    left, advice, code = status(tmp_path)
    assert (code, left["ended"]) == (0, NAMES["bigquery"])
    assert (left["bigquery"], left["bigquery_storage"]) == (None, None)
    assert (left["pubsub"], left["pubsub_kind"]) == (record["pubsub"], "embedded")
    gone = {"BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"}
    assert left["environment"] == {name: value for name, value in exports.items() if name not in gone}
    what_to_do = (
        f"{NAMES['bigquery']} ended by itself; the rest of the stack goes on. To start all anew, run "
        f"`anomaly local down --state_dir={tmp_path}` and `anomaly local up --state_dir={tmp_path}`"
    )
    assert what_to_do in advice
    log = (tmp_path / "default.log").read_text()
    assert log.count(what_to_do) == 1
    assert f"{NAMES['bigquery']} has ended. The end of its log:" in log

    # A shell that has all exports loses those that lead nowhere, and at the end all of them.
    again = local("up", state_dir=tmp_path, environment=exports)
    assert what_to_do in again.stderr
    assert set(again.stdout.splitlines()[-1].split()) == {"unset", *gone}
    down = local("down", state_dir=tmp_path, environment=exports)
    assert set(down.stdout.split()) == {"unset", *exports}
    assert not listens(record["pubsub"])


def test_bigquery_keeps_its_tables_when_pubsub_is_killed(stack, tmp_path):
    record, _ = stack
    bigquery_client(record).create_dataset("kept")
    kill(record["pid"], "pubsub")
    until(lambda: status(tmp_path)[0].get("ended") == NAMES["pubsub"])
    left, _, _ = status(tmp_path)
    assert (left["pubsub"], left["pubsub_kind"], left["bigquery"]) == (None, None, record["bigquery"])
    assert [item.dataset_id for item in bigquery_client(left).list_datasets()] == ["kept"]


def test_a_stack_ends_with_its_last_emulator(stack, tmp_path):
    record, _ = stack
    kill(record["pid"], "pubsub")
    until(lambda: status(tmp_path)[0].get("ended"))
    kill(record["pid"], "bigquery")
    until(lambda: status(tmp_path)[2] == 3)
    log = (tmp_path / "default.log").read_text()
    assert log.count(f"{NAMES['pubsub']} has ended") == 1
    assert f"error: {NAMES['bigquery']} has ended" in log

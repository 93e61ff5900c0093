"""The streaming command on this machine: where it writes, what it refuses at launch, how it ends."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import clients
from common.clients import BigQueryEndpoints
from common.options import OptionError
from local import endpoints as local
from local import topics
from local.stack import LocalStack
from model.synthetic.generator import TransactionGenerator
from pipelines import batch, lookups, progress, streaming
from publisher.messages import MessageSource
from publisher.publish import publish
from publisher.pubsub import PubSubTopic
from transforms import tables

ROOT = Path(__file__).resolve().parents[2]


def publish_some(topic, count=50):
    with PubSubTopic(topic) as sink:
        publish(MessageSource(TransactionGenerator(seed=3)), sink, count=count)


def until(condition, process, log, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture
def start(tmp_path):
    """Starts the streaming pipeline, with SIGINT heeded; gives the process and the file of its log."""
    started = []

    def run(*argv):
        log = tmp_path / "log.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.streaming", *argv],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        started.append(process)
        return process, log

    yield run
    for process in started:
        process.kill()
        process.wait()


def count(client, name):
    return next(iter(client.query(f"SELECT COUNT(*) AS n FROM `{name}`").result())).n


def refused(run, argv):
    with pytest.raises(OptionError) as error:
        run(argv)
    return str(error.value)


# Where it writes -----------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_environment_alone_points_a_stream_at_the_stack(
    local_stack, channel, bigquery_client, dataset, model_dir, start
):
    name = f"{local_stack.project}.{dataset}"
    publish_some(channel.topic)
    process, log = start(
        f"--subscription={channel.subscription}", f"--model={model_dir}", f"--output_dataset={name}"
    )
    until(lambda: scored(bigquery_client, dataset) == 50, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143, log.read_text()


@pytest.mark.integration
def test_a_stream_says_how_far_it_is(local_stack, channel, bigquery_client, dataset, model_dir, capfd):
    publish_some(channel.topic)
    name = f"{local_stack.project}.{dataset}"
    argv = [f"--subscription={channel.subscription}", f"--model={model_dir}", f"--output_dataset={name}"]
    result = streaming.run(argv)
    try:
        deadline = time.monotonic() + 120
        with progress.shown(result, seconds=0.1):
            while "rows read: 50, scored: 50, alerts: " not in (text := capfd.readouterr().err):
                assert time.monotonic() < deadline, text
                time.sleep(0.5)
        assert ", dead letters: 0\n" in text
    finally:
        result.cancel()


def scored(client, dataset):
    names = [table.table_id for table in client.list_tables(dataset)]
    return count(client, f"{client.project}.{dataset}.scores_latest") if "scores_latest" in names else 0


def test_what_the_stack_exports_is_what_the_pipelines_read():
    exported = local.Endpoints(None, "http://127.0.0.1:1", "127.0.0.1:2", "p").environment()
    assert exported[clients.REST_VARIABLE] == "http://127.0.0.1:1"
    assert exported[clients.STORAGE_VARIABLE] == "127.0.0.1:2"


@pytest.mark.parametrize(
    ("rest", "storage", "reason"),
    [
        ("http://127.0.0.1:1", "", "--bigquery_storage_endpoint is Google: tables and rows would be"),
        ("", "127.0.0.1:1", "--bigquery_endpoint is Google and --bigquery_storage_endpoint is 127.0.0.1:1"),
        ("127.0.0.1:1", "127.0.0.1:2", "BIGQUERY_EMULATOR_HOST or BIGQUERY_STORAGE_EMULATOR_HOST of the"),
    ],
)
@pytest.mark.parametrize("by_flag", [True, False], ids=["flags", "environment"])
def test_half_a_stack_is_refused(rest, storage, reason, by_flag, monkeypatch, model_dir, tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n")
    argv = [f"--input={tmp_path}/x.jsonl", f"--model={model_dir}", "--output_dataset=my-project.anomaly"]
    monkeypatch.setenv(clients.REST_VARIABLE, "" if by_flag else rest)
    monkeypatch.setenv(clients.STORAGE_VARIABLE, "" if by_flag else storage)
    if by_flag:
        argv += [f"--bigquery_endpoint={rest}"] if rest else []
        argv += [f"--bigquery_storage_endpoint={storage}"] if storage else []
        reason = reason.replace(
            "BIGQUERY_EMULATOR_HOST or BIGQUERY_STORAGE_EMULATOR_HOST of the", "expected a URL"
        )
    assert reason in refused(batch.run, argv)


# What it refuses -----------------------------------------------------------------------------------------


def test_a_bigquery_that_does_not_answer_is_reported_at_launch(monkeypatch, model_dir, tmp_path):
    monkeypatch.setattr(tables, "_RETRY", tables._RETRY.with_timeout(0.5))
    (tmp_path / "x.jsonl").write_text("{}\n")
    argv = [f"--input={tmp_path}/x.jsonl", f"--model={model_dir}", "--output_dataset=my-project.anomaly"]
    argv += ["--bigquery_endpoint=http://127.0.0.1:1", "--bigquery_storage_endpoint=127.0.0.1:1"]
    error = refused(batch.run, argv)
    assert "--bigquery_endpoint: no answer at http://127.0.0.1:1" in error


@pytest.mark.integration
@pytest.mark.parametrize("flag", ["subscription", "topic", "alert_topic"])
def test_what_does_not_exist_in_pubsub_is_reported_at_launch(
    flag, capsys, pubsub_emulator, channel, model_dir
):
    flags = {"subscription": channel.subscription, "alert_topic": channel.topic}
    if flag == "topic":
        del flags["subscription"]
    kind = "subscriptions" if flag == "subscription" else "topics"
    flags[flag] = f"projects/local-project/{kind}/nowhere"
    argv = [f"--{name}={value}" for name, value in flags.items()]
    argv += [f"--model={model_dir}", "--output_dataset=my-project.anomaly"]
    argv += ["--bigquery_endpoint=http://127.0.0.1:1", "--bigquery_storage_endpoint=127.0.0.1:1"]
    error = refused(streaming.run, argv)
    assert f"--{flag}: projects/local-project/{kind}/nowhere does not exist. Create it with: python" in error
    command = error.split("Create it with: ")[1].splitlines()[0].replace("/topics/TOPIC", "/topics/nowhere")
    if kind == "subscriptions":
        topics.create_topic("local-project", "nowhere")
    try:
        subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
        lookups.check_pubsub(f"--{flag}", flags[flag])  # which raises where there is none
    finally:
        topics.delete(flags[flag], "projects/local-project/topics/nowhere")


def test_a_pubsub_that_cannot_be_asked_is_reported_at_launch(monkeypatch, model_dir):
    monkeypatch.setattr("pipelines.lookups.LOOK_SECONDS", 0.5)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    argv = ["--topic=projects/my-project/topics/transactions", f"--model={model_dir}"]
    argv += ["--output_dataset=my-project.anomaly"]
    argv += ["--bigquery_endpoint=http://127.0.0.1:1", "--bigquery_storage_endpoint=127.0.0.1:1"]
    error = refused(streaming.run, argv)
    assert "--topic: cannot look up projects/my-project/topics/transactions" in error


# How it ends ---------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_ctrl_c_is_heeded_while_bigquery_is_out(local_stack, channel, model_dir, start):
    with LocalStack(pubsub="none") as other:
        client = BigQueryEndpoints(other.endpoints.bigquery, other.endpoints.bigquery_storage).client(
            "local-project"
        )
        publish_some(channel.topic, 10)
        process, log = start(
            f"--subscription={channel.subscription}",
            f"--model={model_dir}",
            "--output_dataset=local-project.anomaly",
            *other.endpoints.pipeline_args(),
        )
        until(lambda: has_rows(client), process, log)
    publish_some(channel.topic, 10)
    until(lambda: log.read_text().count("next attempt") >= 3, process, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130, log.read_text()
    assert "its messages come again" in log.read_text()


def has_rows(client):
    names = [dataset.dataset_id for dataset in client.list_datasets()]
    return "anomaly" in names and scored(client, "anomaly") > 0


@pytest.mark.integration
def test_a_stream_that_fails_ends_with_1(local_stack, channel, model_dir, start):
    publish_some(channel.topic, 10)
    process, log = start(
        f"--subscription={channel.subscription}",
        f"--model={model_dir}",
        "--output_dataset=local-project.nowhere",
        "--no_create_tables",
    )
    assert process.wait(timeout=120) == 1, log.read_text()
    assert "nowhere" in log.read_text()

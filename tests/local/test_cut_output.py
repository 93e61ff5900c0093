"""Commands on this machine with their output cut end quietly, with all that they have started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from google.cloud.pubsub_v1 import PublisherClient

from model.synthetic.generator import TransactionGenerator
from publisher.messages import MessageSource
from publisher.publish import publish
from publisher.pubsub import PubSubTopic

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


def start(tmp_path, *arguments, **streams):
    """Starts a command; its processes are known by their directory for temporary files."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    return subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, **streams)


def left(tmp_path):
    """The processes that a command has left behind."""
    commands = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(tmp_path) and process.status() != "zombie":
                commands.append(process.cmdline())
    return commands


def read_until(process, text):
    """Reads the output of a command until it has printed a text."""
    seen = b""
    while text not in seen:
        chunk = os.read(process.stdout.fileno(), 4096)
        assert chunk, seen.decode()
        seen += chunk


def cut_after(process, text):
    """Reads the output of a command until it has printed a text, and no further."""
    read_until(process, text)
    process.stdout.close()


def test_a_demo_that_is_cut_takes_emulators_pipeline_and_publisher_with_it(
    local_stack, model_dir, card_model, tmp_path
):
    flags = [
        f"--model={model_dir}",
        f"--card_model={card_model}",
        f"--output={tmp_path / 'demo'}",
        "--count=5000",
        "--rate=100",
        "--pubsub=embedded",
    ]
    process = start(tmp_path, "local.demo", *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    cut_after(process, b"messages through the stream")
    running = left(tmp_path)
    assert any("publish" in arguments for arguments in running)
    assert any("local.bqemulator_launcher" in arguments for arguments in running)
    assert any("local.pubsub_server" in arguments for arguments in running)
    assert process.wait() == 141
    assert left(tmp_path) == []


def test_a_demo_that_is_terminated_takes_emulators_pipeline_and_publisher_with_it(
    model_dir, card_model, tmp_path
):
    models = [f"--model={model_dir}", f"--card_model={card_model}"]
    flags = [*models, f"--output={tmp_path / 'demo'}", "--count=5000", "--rate=100"]
    process = start(tmp_path, "local.demo", *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    read_until(process, b"messages through the stream")
    process.terminate()
    process.stdout.read()
    assert process.wait() == 143
    assert left(tmp_path) == []


def test_a_report_of_the_demo_that_is_cut_leaves_no_traceback(model_dir, card_model, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    models = [f"--model={model_dir}", f"--card_model={card_model}"]
    flags = [*models, f"--output={tmp_path / 'demo'}", "--count=200", "--pubsub=embedded"]
    process = start(tmp_path, "local.demo", *flags, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    log = process.communicate()[1]
    assert process.returncode == 141
    assert "Query the tables" in log
    assert "Traceback" not in log
    assert "Broken pipe" not in log


def test_a_stream_whose_log_is_cut_takes_its_subscription_away(channel, local_stack, model_dir, tmp_path):
    publisher = PublisherClient()
    flags = [
        f"--topic={channel.topic}",
        f"--model={model_dir}",
        f"--output_dataset={local_stack.project}.nowhere",  # which a worker finds, and logs
        "--no_create_tables",
        *local_stack.pipeline_args(),
    ]
    process = start(tmp_path, "pipelines.streaming", *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while len(list(publisher.list_topic_subscriptions(topic=channel.topic))) < 2:
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.2)
        process.stdout.close()
        with PubSubTopic(channel.topic) as sink:
            publish(MessageSource(TransactionGenerator(seed=3)), sink, count=10)
        assert process.wait() == 141
        assert list(publisher.list_topic_subscriptions(topic=channel.topic)) == [channel.subscription]
    finally:
        process.kill()
        publisher.transport.close()

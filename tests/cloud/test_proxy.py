"""The local stack behind a company's proxy, and Google still behind it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import google.auth
import pytest
import requests
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core.exceptions import GoogleAPIError
from google.auth.credentials import AnonymousCredentials

from cloud import launch, preflight
from cloud.resources.__main__ import main as resources_main
from cloud.resources.base import Clients
from common import pubsub
from common.clients import BigQueryEndpoints
from common.loopback import bypass_proxies
from local import topics
from local.endpoints import Endpoints
from local.runner import LocalStreamingRunner, run_until_drained
from local.stack import LocalStack
from model.serving.torchserve import grpc_client
from model.serving.torchserve.config import TorchServeError
from model.synthetic.generator import TransactionGenerator
from pipelines import lookups
from publisher.messages import MessageSource, default_start_time
from publisher.pubsub import PubSubTopic
from publisher.sink import PublishError
from tests.cloud.google_server import Google
from tests.proxies import Proxy, behind
from transforms.remote_http import TorchServeConnection, VertexConnection
from transforms.remote_protocol import TransientError

pytest_plugins = ("tests.model.serving.vertex_fixtures", "tests.proxy_fixtures")

ROOT = Path(__file__).resolve().parents[2]
needs_stack = pytest.mark.skipif(bool(LocalStack().missing()), reason=" ".join(LocalStack().missing()))


def messages(count: int):
    source = MessageSource(TransactionGenerator(seed=1), 0.0, start_time=default_start_time())
    return source.take(count)


@needs_stack
@pytest.mark.integration
def test_the_demo_runs_whole(model_dir, tmp_path, dead_proxy):
    argv = ["--model", str(model_dir), "--output", str(tmp_path / "demo"), "--count", "500"]
    argv += ["--card_model", str(tmp_path / "cards")]
    done = subprocess.run(
        [sys.executable, "-m", "local.demo", *argv, "--format", "json"],
        cwd=ROOT,
        env=behind(dead_proxy),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    for name, count in (("ulb", 500), ("cards", 250)):
        assert findings[name]["published"] == findings[name]["batch"]["messages"] == count


@pytest.mark.integration
def test_a_stream_reads_the_emulator_directly(channel, dead_proxy):
    """Topic, publisher, runner and subscription, in a process whose environment is not ours to change."""
    with PubSubTopic(channel.topic) as sink:
        receipts = [*sink.send(messages(20)), *sink.flush()]
    assert [receipt.error for receipt in receipts] == [None]
    pipeline = beam.Pipeline(runner=LocalStreamingRunner(), options=PipelineOptions(["--streaming"]))
    _ = pipeline | beam.io.ReadFromPubSub(subscription=channel.subscription) | beam.Map(len)
    result = pipeline.run()
    run_until_drained(result, lambda: result.messages_read >= 20, timeout=60)
    assert topics.take(channel.subscription, lambda found: True) == []
    lookups.check_pubsub("--topic", channel.topic)


GOOGLES_OWN = """
import os
from google.cloud import bigquery, pubsub_v1
project = os.environ["GOOGLE_CLOUD_PROJECT"]
publisher = pubsub_v1.PublisherClient()
once = {"retry": None, "timeout": 30}  # or they would ask a proxy for minutes
topic = publisher.create_topic(name=f"projects/{project}/topics/made-by-google", **once)
rows = bigquery.Client().query_and_wait("SELECT 1 AS n", retry=None, api_timeout=30)
print(topic.name, [row.n for row in rows])
print(os.environ["no_proxy"], os.environ["NO_PROXY"])
"""


@needs_stack
@pytest.mark.integration
def test_up_prints_what_googles_clients_need_in_a_shell(tmp_path, dead_proxy):
    stack = f"{shlex.quote(sys.executable)} -m local"
    place = f"--state_dir={shlex.quote(str(tmp_path))}"
    script = f"""
        set -e
        trap '{stack} down {place} >&2' EXIT
        lines="$({stack} up {place})"
        eval "$lines"
        {shlex.quote(sys.executable)} -c {shlex.quote(GOOGLES_OWN)}
        {stack} up {place} | grep -i no_proxy
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=behind(dead_proxy, NO_PROXY="intranet.example.com"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    extended = "intranet.example.com,localhost,127.0.0.1,::1"
    assert done.stdout.splitlines() == [
        "projects/local-project/topics/made-by-google [1]",
        f"{extended} {extended}",
        f"export no_proxy={extended}",
        f"export NO_PROXY={extended}",
    ]


@needs_stack
@pytest.mark.integration
@pytest.mark.parametrize("program", ["launch", "preflight", "resources", "vertex"])
def test_programs_send_googles_clients_to_this_machine_directly(
    program: str,
    google: Google,
    run: Callable[..., Any],
    local_stack: Endpoints,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("PATH", "/nonexistent")  # gcloud has settings of its own for proxies
    project = "--project=local-project"
    if program == "launch":
        assert launch.main(["list", project, f"--dataflow_endpoint={google.url}"]) == 0
    elif program == "preflight":
        where = f"--bigquery_endpoint={local_stack.bigquery}"
        assert preflight.main(["batch", project, "--input=gs://b/x.parquet", "--dataset=none", where]) == 1
        out = capsys.readouterr().out
        assert "--input=gs://b/x.parquet: matches no file" in out
        assert "dataset local-project.none: does not exist" in out
    elif program == "resources":
        for action in (["create"], ["delete", "--yes"]):
            flags = [project, "--emulators", "--prefix=behind-", "--dataset=behind"]
            assert resources_main([*action, *flags]) == 0
    else:
        assert run("list")[0] == 0
    assert not [each for each in proxy.asked if "127.0.0.1" in each or "localhost" in each]


GOOGLE: dict[str, tuple[Callable[[], Any], str]] = {
    "BigQuery": (
        lambda: BigQueryEndpoints().client("some-project").get_dataset("d", retry=None),
        "CONNECT bigquery.googleapis.com:443",
    ),
    "BigQuery at a private endpoint": (
        lambda: (
            BigQueryEndpoints("https://bigquery-x.p.googleapis.com")
            .client("some-project")
            .get_dataset("d", retry=None)
        ),
        "CONNECT bigquery-x.p.googleapis.com:443",
    ),
    "BigQuery Storage": (
        lambda: BigQueryEndpoints().write_client().get_write_stream(name="s", retry=None, timeout=10),
        "CONNECT bigquerystorage.googleapis.com:443",
    ),
    "Pub/Sub, publisher": (
        lambda: _raise(PubSubTopic("projects/some-project/topics/some-topic", timeout=5)),
        "CONNECT pubsub.googleapis.com:443",
    ),
    "Pub/Sub, topics": (
        lambda: pubsub.publisher_client().get_topic(topic="t", retry=None, timeout=10),
        "CONNECT pubsub.googleapis.com:443",
    ),
    "Pub/Sub, subscriptions": (
        lambda: pubsub.subscriber_client().get_subscription(subscription="s", retry=None, timeout=10),
        "CONNECT pubsub.googleapis.com:443",
    ),
    "Cloud Storage": (
        lambda: Clients("some-project").storage.get_bucket("b", retry=None),
        "CONNECT storage.googleapis.com:443",
    ),
    "Vertex AI": (
        lambda: VertexConnection("projects/p/locations/us-central1/endpoints/1", 1, 10.0),
        "CONNECT us-central1-aiplatform.googleapis.com:443",
    ),
    "TorchServe elsewhere": (
        lambda: _answer(TorchServeConnection("http://model.internal:8080", "m", None, None, 1, 10.0)),
        "POST http://model.internal:8080/predictions/m",
    ),
    "TorchServe elsewhere, gRPC": (
        lambda: grpc_client.predict("model.internal:7070", b"{}", "m", timeout=10),
        "CONNECT model.internal:7070",
    ),
}


def _raise(topic: PubSubTopic) -> None:
    with topic as sink:
        for receipt in (*sink.send(messages(1)), *sink.flush()):
            if receipt.error:
                raise receipt.error


def _answer(connection: TorchServeConnection) -> None:
    if connection.post(b"{}").status == 502:
        raise TransientError("502")


@pytest.mark.parametrize("exceptions", [False, True], ids=["environment as it is", "bypass_proxies"])
@pytest.mark.parametrize(("call", "asked"), GOOGLE.values(), ids=GOOGLE)
def test_what_is_not_this_machine_goes_through_the_proxy(
    call: Callable[[], Any], asked: str, exceptions: bool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PUBSUB_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(google.auth, "default", lambda **_: (AnonymousCredentials(), "some-project"))
    if exceptions:
        bypass_proxies()
    refused = (GoogleAPIError, requests.RequestException, PublishError, TransientError, TorchServeError)
    with pytest.raises(refused):
        call()
    assert set(proxy.asked) == {asked}

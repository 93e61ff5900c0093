"""Fixtures for every test: the local stack, started once and only when a test asks for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# One thread each for Arrow and BLAS: tests run beside each other and beside the emulators.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import grpc
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from local import topics
from local.endpoints import Endpoints
from local.stack import LocalStack
from tests.cloud.google_server import Google, google_server


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[Endpoints]:
    """The embedded Pub/Sub for the whole session, with its environment variables set."""
    with LocalStack(pubsub="embedded", bigquery=False) as stack:
        endpoints = stack.endpoints
        if "GOOGLE_APPLICATION_CREDENTIALS" in os.environ:
            # The key of a stack without BigQuery has no token server; it must not hide one that has.
            endpoints = replace(endpoints, credentials_file=None)
        with endpoints.activate():
            yield endpoints


@pytest.fixture
def gcloud_pubsub() -> Iterator[Endpoints]:
    """Google's own emulator of Pub/Sub, in the place of the embedded one: for what that refuses."""
    own = LocalStack(pubsub="gcloud", bigquery=False)
    if missing := own.missing():
        pytest.skip(" ".join(missing))
    with own as stack, replace(stack.endpoints, credentials_file=None).activate() as endpoints:
        yield endpoints


@pytest.fixture(scope="session")
def gcs_root(tmp_path_factory: pytest.TempPathFactory):
    """The directory that stands for Cloud Storage in the BigQuery emulator's load and extract jobs."""
    return tmp_path_factory.mktemp("gcs")


@pytest.fixture
def cloud_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """A server that speaks Cloud Storage's API and has gs://bucket, for Google's client."""
    with google_server() as google:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "local-project")
        google.storage.buckets["bucket"] = {"name": "bucket"}
        yield google


@pytest.fixture(params=["local", "gs"])
def model_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a model: a local directory, then one on Cloud Storage."""
    if request.param == "local":
        return str(tmp_path / "live")
    request.getfixturevalue("cloud_storage")
    return "gs://bucket/live"


@pytest.fixture(scope="session")
def bigquery_emulator(gcs_root) -> Iterator[Endpoints]:
    """A BigQuery emulator for the whole session, with its environment variables set."""
    own = LocalStack(pubsub="none", gcs_root=gcs_root)
    if missing := own.missing():
        pytest.skip(" ".join(missing))
    with own as stack, stack.endpoints.activate() as endpoints:
        yield endpoints


@pytest.fixture(scope="session")
def local_stack(pubsub_emulator: Endpoints, bigquery_emulator: Endpoints) -> Endpoints:
    """Both emulators, the ones of `pubsub_emulator` and `bigquery_emulator`."""
    return replace(bigquery_emulator, pubsub=pubsub_emulator.pubsub)


@dataclass(frozen=True)
class Channel:
    """A topic with one subscription, as full resource names."""

    topic: str
    subscription: str


@pytest.fixture
def channel(pubsub_emulator: Endpoints) -> Iterator[Channel]:
    """A fresh topic and a fresh subscription to it."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    topic = topics.create_topic(pubsub_emulator.project, name)
    subscription = topics.create_subscription(pubsub_emulator.project, f"{name}-sub", topic)
    yield Channel(topic, subscription)
    topics.delete(topic, subscription)


@pytest.fixture
def bigquery_client(bigquery_emulator: Endpoints) -> bigquery.Client:
    """Google's BigQuery client, pointed at the emulator."""
    return bigquery.Client(
        project=bigquery_emulator.project,
        client_options={"api_endpoint": bigquery_emulator.bigquery},
        credentials=AnonymousCredentials(),
    )


@pytest.fixture
def write_client(bigquery_emulator: Endpoints) -> Iterator[BigQueryWriteClient]:
    """Google's client of the BigQuery Storage Write API, pointed at the emulator."""
    with grpc.insecure_channel(bigquery_emulator.bigquery_storage) as wire:
        yield BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=wire))


@pytest.fixture
def read_client(bigquery_emulator: Endpoints) -> Iterator[BigQueryReadClient]:
    """Google's client of the BigQuery Storage Read API, pointed at the emulator."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(bigquery_emulator.bigquery_storage, options=options) as wire:
        yield BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=wire))


@pytest.fixture
def dataset(bigquery_client: bigquery.Client) -> Iterator[str]:
    """The id of a fresh dataset, without the project."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    bigquery_client.create_dataset(name)
    yield name
    bigquery_client.delete_dataset(name, delete_contents=True, not_found_ok=True)


@pytest.fixture(scope="session")
def ulb_file() -> Path:
    """The real transactions of the ULB data set, for the tests that compare with them."""
    path = Path(__file__).parents[2] / "shared" / "data" / "ulb_transactions.parquet"
    if not path.is_file():
        pytest.skip("the real transactions are not there (../shared/data/ulb_transactions.parquet)")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    # The error that the test looks at holds the file open.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def full_disk(small_disk: Path) -> Path:
    """A file system that takes new files, and not a byte in them."""
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    return small_disk

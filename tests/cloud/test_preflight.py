"""Checks before a launch: each thing that may be missing, and what is shown of it."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from pathlib import Path

import pytest
from google.cloud import bigquery
from google.cloud.pubsub_v1 import SubscriberClient

from cloud import launch, preflight
from cloud.checks import services, storage
from cloud.checks.finding import Finding
from cloud.pipeline import PipelineName
from cloud.request import JobRequest, add_launch_options, read_request
from cloud.resources.base import Clients
from cloud.resources.declared import Names
from common.clients import BigQueryEndpoints
from common.command import Parser
from local import pubsub, topics
from local.endpoints import Endpoints
from local.stack import LocalStack
from model import artifact
from templates import build
from tests.cloud import storage_server
from tests.cloud.google_server import Google
from tests.http_server import Raw, Refusal, serve
from transforms import tables

BUCKET = "local-project-anomaly"
CALLER = "serviceAccount:local@local-project.iam.gserviceaccount.com"
TOPIC = "projects/local-project/topics/transactions"


def job(pipeline: PipelineName, *argv: str) -> JobRequest:
    parser = Parser()
    add_launch_options(parser)
    args, rest = parser.parse_known_args(["--project=local-project", *argv])
    return read_request(pipeline, args, rest, dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC))


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def check_model(uri: str, *flags: str) -> Finding:
    command = job("batch", "--input=gs://b-1/x.parquet", f"--model={uri}", *flags).pipeline
    return only(storage.check_model("local-project", command, f"gs://{BUCKET}"))


def reroute(monkeypatch, server, pattern: str, route) -> None:
    """Has a path of a local server answered by `route`."""
    first = ("GET POST", pattern, route)
    monkeypatch.setattr(server, "ROUTES", (first, *server.ROUTES))


@pytest.fixture
def clients(google: Google) -> Clients:
    return Clients("local-project")


@pytest.fixture
def tables_clients(bigquery_emulator: Endpoints) -> Clients:
    return Clients("local-project", BigQueryEndpoints(bigquery_emulator.bigquery))


# The request


def test_defaults_follow_from_the_project():
    found = job("batch", "--input=gs://b-1/x.parquet")
    assert found.job_name == "transaction-anomaly-batch-20260102-030405"
    assert found.temp_location == f"gs://{BUCKET}/temp"
    assert found.template == f"gs://{BUCKET}/templates/batch.json"
    assert found.pipeline.model == f"gs://{BUCKET}/model"
    assert found.pipeline.output_dataset == "local-project.anomaly"
    to_files = job("batch", "--input=gs://b-1/x.parquet", "--output=gs://b-1/y")
    assert to_files.pipeline.output_dataset is None


# Model


def test_a_sound_model_is_named_with_its_version(google: Google, model_dir: Path):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    for file in model_dir.iterdir():
        google.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())
    finding = check_model(f"gs://{BUCKET}/model")
    assert finding == Finding(f"model gs://{BUCKET}/model, version test-1")

    command = job("batch", "--input=gs://b-1/x.parquet", "--model=m", f"--shadow_model=gs://{BUCKET}/model")
    shadow = command.pipeline.shadow_model
    finding = only(storage.check_model("local-project", command.pipeline, f"gs://{BUCKET}", shadow))
    assert finding == Finding(f"shadow model gs://{BUCKET}/model, version test-1")

    google.storage.put(BUCKET, f"model/{artifact.MODEL_FILE}", b"other")
    finding = check_model(f"gs://{BUCKET}/model")
    assert finding.status == "failed"
    assert "sha256" in finding.problem

    manifest = json.loads((model_dir / artifact.MANIFEST_FILE).read_text())
    manifest["features"].reverse()
    google.storage.put(BUCKET, f"model/{artifact.MANIFEST_FILE}", json.dumps(manifest).encode())
    assert "first difference at position 0" in check_model(f"gs://{BUCKET}/model").problem


def test_a_model_that_no_worker_can_reach_or_that_is_not_there(google: Google, model_dir: Path):
    finding = check_model(str(model_dir))
    assert (finding.status, finding.remedy) == (
        "failed",
        f"gcloud storage cp -r {model_dir}/* gs://{BUCKET}/model/",
    )
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    finding = check_model(f"gs://{BUCKET}/model")
    assert f"No manifest.json in gs://{BUCKET}/model" in finding.problem
    assert finding.remedy == f"anomaly train --output gs://{BUCKET}/model"


def test_thresholds_are_compared_with_those_of_the_model(google: Google, model_dir: Path):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    for file in model_dir.iterdir():
        google.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())
    assert check_model(f"gs://{BUCKET}/model", "--high_threshold=1e9").status == "ok"
    finding = check_model(f"gs://{BUCKET}/model", "--medium_threshold=1e9")
    assert finding.status == "failed"
    assert finding.problem.startswith(
        "--medium_threshold=1000000000.0 is above the model's threshold of high"
    )


def test_a_model_that_may_not_be_read_names_the_role(google: Google, model_dir: Path):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    google.storage.forbidden = f"{BUCKET}/model/"
    finding = check_model(f"gs://{BUCKET}/model")
    assert finding.problem.startswith("you lack storage.objects.get (roles/storage.objectViewer)")
    assert finding.remedy == (
        f"gcloud storage buckets add-iam-policy-binding gs://{BUCKET} --member={CALLER} "
        "--role=roles/storage.objectViewer"
    )


# Pub/Sub


@pytest.mark.integration
def test_topics_and_subscriptions_that_are_not_there(pubsub_emulator: Endpoints):
    clients = Clients("local-project")
    finding = only(services.check_topic(clients, "projects/local-project/topics/none"))
    assert finding == Finding(
        "topic projects/local-project/topics/none",
        "failed",
        "does not exist",
        "gcloud pubsub topics create none --project=local-project",
        "missing",
    )
    finding = only(services.check_subscription(clients, "projects/local-project/subscriptions/none", TOPIC))
    assert finding.remedy == (
        f"gcloud pubsub subscriptions create none --project=local-project --topic={TOPIC}"
    )
    clients.close()


@pytest.mark.integration
def test_a_subscription_that_would_not_do(channel):
    clients = Clients("local-project")
    assert services.check_subscription(clients, channel.subscription, TOPIC) == [
        Finding(f"subscription {channel.subscription}")
    ]
    assert services.check_topic(clients, channel.topic) == [Finding(f"topic {channel.topic}")]
    with SubscriberClient() as subscriber:
        subscriber.update_subscription(
            request={
                "subscription": {
                    "name": channel.subscription,
                    "enable_exactly_once_delivery": True,
                    "dead_letter_policy": {"dead_letter_topic": channel.topic, "max_delivery_attempts": 5},
                },
                "update_mask": {"paths": ["enable_exactly_once_delivery", "dead_letter_policy"]},
            }
        )
        notes = services.check_subscription(clients, channel.subscription, TOPIC)
        assert [note.status for note in notes] == ["note", "note"]
        assert "--no-enable-exactly-once-delivery" in notes[0].remedy
        assert "--clear-dead-letter-policy" in notes[1].remedy
    topics.delete(channel.topic)
    finding = only(services.check_subscription(clients, channel.subscription, TOPIC))
    assert "its topic was deleted" in finding.problem
    clients.close()


@pytest.mark.skipif(bool(pubsub.missing()), reason=" ".join(pubsub.missing()))
@pytest.mark.integration
def test_a_subscription_that_pushes():
    """On gcloud's emulator: the embedded server refuses to push."""
    with LocalStack(pubsub="gcloud", bigquery=False) as stack, stack.endpoints.activate():
        topic = topics.create_topic("local-project", "topic")
        subscription = topics.create_subscription("local-project", "subscription", topic)
        with SubscriberClient() as subscriber:
            subscriber.modify_push_config(
                subscription=subscription, push_config={"push_endpoint": "https://example.com/x"}
            )
        clients = Clients("local-project")
        finding = only(services.check_subscription(clients, subscription, TOPIC))
        assert (finding.status, finding.remedy.split()[-1]) == ("failed", "--push-endpoint=")
        clients.close()


# BigQuery


@pytest.mark.integration
def test_dataset_and_tables(tables_clients: Clients, dataset: str, bigquery_client: bigquery.Client):
    name = f"local-project.{dataset}"
    finding = only(services.check_dataset(tables_clients, f"{name}_none", full=False, create=True))
    assert finding.problem == "does not exist"
    assert finding.remedy.endswith(
        f"create --project local-project --region us-central1 --dataset {dataset}_none"
    )

    found = services.check_dataset(tables_clients, name, full=False, create=False)
    assert [finding.status for finding in found] == ["ok", *["failed"] * len(tables.TABLES)]
    found = services.check_dataset(tables_clients, name, full=False, create=True)
    assert [finding.status for finding in found] == ["ok", *["note"] * len(tables.TABLES)]
    tables.create_tables(bigquery_client, name)
    found = services.check_dataset(tables_clients, name, full=False, create=False)
    assert [finding.status for finding in found] == ["ok"] * (1 + len(tables.TABLES))

    found = services.check_dataset(tables_clients, name, full=True, create=False)
    assert "column normalized_MAE is none, declared FLOAT64" in found[1].problem
    found = services.check_dataset(tables_clients, name, full=True, create=True)
    assert found[1].status == "note"

    bigquery_client.query_and_wait(f"CREATE OR REPLACE VIEW `{name}.scores_latest` AS SELECT 1 AS one")
    bigquery_client.delete_table(f"{name}.alerts_latest")
    found = services.check_dataset(tables_clients, name, full=False, create=True, by_caller=True)
    rights = f", for which you need roles/bigquery.dataEditor on {name} and roles/bigquery.jobUser"
    assert [finding.problem for finding in found if finding.status == "note"] == [
        f"query, description, missing columns: not as declared; the launch replaces it{rights}",
        f"does not exist; the launch makes it{rights}",
    ]
    tables.create_tables(bigquery_client, name)

    bigquery_client.delete_table(f"{name}.alerts")
    bigquery_client.create_table(
        bigquery.Table(f"{name}.alerts", [bigquery.SchemaField("anomaly_score", "STRING")])
    )
    failed = services.check_dataset(tables_clients, name, full=False, create=True)[2]
    assert failed.status == "failed"
    assert "column anomaly_score is STRING, declared FLOAT64; it cannot be changed" in failed.problem


# Cloud Storage, template, project


def test_locations(clients: Clients, google: Google):
    assert only(storage.check_location(clients, "/tmp/x", "--output")).status == "failed"
    finding = only(storage.check_location(clients, f"gs://{BUCKET}/temp", "--temp_location"))
    assert (finding.problem, finding.remedy) == (
        "does not exist",
        f"anomaly resources create --project local-project --region us-central1 --bucket {BUCKET}",
    )
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    assert only(storage.check_location(clients, f"gs://{BUCKET}/temp", "--temp_location")).status == "ok"
    google.storage.granted = {"storage.objects.get"}
    finding = only(storage.check_location(clients, f"gs://{BUCKET}/temp", "--temp_location"))
    assert (
        finding.problem == "you lack storage.objects.create, storage.objects.list (roles/storage.objectAdmin)"
    )
    assert finding.remedy == (
        f"gcloud storage buckets add-iam-policy-binding gs://{BUCKET} --member={CALLER} "
        "--role=roles/storage.objectAdmin"
    )


def test_input_files(clients: Clients, google: Google):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    google.storage.put(BUCKET, "in/a.parquet", b"x" * 2**20)
    assert only(storage.check_files(clients, f"gs://{BUCKET}/in/*.parquet", "--input")).subject.endswith(
        "1 files, 1.0 MiB"
    )
    assert (
        only(storage.check_files(clients, f"gs://{BUCKET}/in/*.json", "--input")).problem == "matches no file"
    )
    assert only(storage.check_files(clients, "in/*.json", "--input")).status == "failed"


def test_what_the_workers_alone_read_and_write_is_a_note_to_who_may_not(
    clients: Clients, google: Google, monkeypatch
):
    def refuse(*_: object) -> None:
        raise Refusal(403, "PERMISSION_DENIED", "storage.objects.list is missing")

    reroute(monkeypatch, storage_server, r"/storage/v1/b/[^/]+/o", refuse)
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    google.storage.granted = set()
    found = [
        only(storage.check_location(clients, f"gs://{BUCKET}/out", "--output")),
        only(storage.check_files(clients, f"gs://{BUCKET}/in/*.json", "--input")),
    ]
    assert [finding.status for finding in found] == ["note", "note"], found
    assert all("not checked, the workers must be able to: you lack storage." in f.problem for f in found)
    assert all("--role=roles/storage.object" in finding.remedy for finding in found)


def test_templates(clients: Clients, google: Google):
    uri = f"gs://{BUCKET}/templates/batch.json"
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    finding = only(storage.check_template(clients, uri, ["input"]))
    assert (finding.problem, finding.remedy) == (
        "does not exist",
        f"anomaly templates --project local-project --bucket {BUCKET}",
    )
    build.upload(clients, Names("local-project"), "h/p/r/i:1")
    assert only(storage.check_template(clients, uri, ["input"])).subject.endswith("image h/p/r/i:1")
    finding = only(storage.check_template(clients, uri, ["input", "new_option"]))
    assert finding.problem == "does not know new_option: it was built from another version"
    google.storage.put(BUCKET, "templates/batch.json", b"{}")
    assert only(storage.check_template(clients, uri, [])).problem == "is no container spec"


# Servers of the model


def test_endpoints(google: Google):
    name = "projects/local-project/locations/us-central1/endpoints/77"
    finding = only(services.check_vertex(name, google.url))
    assert (finding.problem, finding.remedy) == (
        "does not exist",
        "anomaly vertex list --project local-project --region us-central1",
    )
    google.endpoints[name] = {"name": name}
    assert only(services.check_vertex(name, google.url)).problem == "has no deployed model"
    google.endpoints[name] = {"name": name, "deployedModels": [{"id": "1"}]}
    assert only(services.check_vertex(name, google.url)).subject.endswith("endpoints/77, 1 models")


def test_torchserve_is_asked_for_its_health():
    with serve(lambda request: Raw(code=200 if request.path == "/ping" else 404)) as port:
        url = f"http://127.0.0.1:{port}"
        assert only(services.check_torchserve(url)).status == "ok"
    finding = only(services.check_torchserve(url))
    assert (finding.status, finding.remedy) == ("note", f"curl {url}/ping")


# All together


@pytest.mark.integration
def test_launch_refuses_with_everything_that_is_missing_at_once(
    google: Google, local_stack: Endpoints, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", "/nonexistent")  # gcloud's part has its own test
    name = f"p-{uuid.uuid4().hex[:8]}-"
    flags = ["--project=local-project", f"--prefix={name}", f"--dataset={name.replace('-', '_')}"]
    flags += [f"--bigquery_endpoint={local_stack.bigquery}", f"--dataflow_endpoint={google.url}"]
    assert launch.main(["streaming", *flags]) == 1
    shown = capsys.readouterr().err
    for missing in ("temp_location", "template gs://", "model gs://", "subscription ", "topic ", "dataset "):
        assert f"failed  {missing}" in shown.replace("--", "")
    assert shown.rstrip().endswith(
        "error: not launched: fix the checks that failed, or pass --skip_preflight"
    )
    assert google.jobs == {}


@pytest.mark.integration
def test_launch_goes_on_when_everything_is_there(
    google: Google, local_stack: Endpoints, dataset, channel, model_dir, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", "/nonexistent")
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    for file in model_dir.iterdir():
        google.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())
    build.upload(Clients("local-project"), Names("local-project"), "h/p/r/i:1")
    flags = ["--project=local-project", f"--dataset={dataset}", f"--subscription={channel.subscription}"]
    flags += [f"--alert_topic={channel.topic}", f"--dataflow_endpoint={google.url}"]
    flags += [f"--bigquery_endpoint={local_stack.bigquery}"]
    assert preflight.main(["streaming", *flags, "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f["subject"] for f in found if f["status"] == "ok"][-1].startswith("dataset ")
    assert launch.main(["streaming", *flags]) == 0
    assert [job["name"] for job in google.jobs.values()] == ["transaction-anomaly-streaming"]

"""Each identity runs its commands with the roles that are declared or documented for it, and no others."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from google.cloud import bigquery

from cloud import launch, versions
from cloud.resources import __main__ as resources
from cloud.resources.declared import Names, declare, roles
from cloud.resources.tables import Dataset
from common.clients import BigQueryEndpoints
from features.ulb import FEATURES
from local import topics
from local.endpoints import Endpoints
from local.runner import LocalStreamingRunner, run_until_drained
from model.bigquery_table import read_table
from operations import query, replay
from pipelines import streaming
from publisher import __main__ as publisher
from templates import main as launcher
from tests.cloud.google_server import Google
from tests.cloud.guard import Identity, guarded
from tests.pipelines.test_end_to_end import rows
from transforms import metrics, tables

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "google-cloud.md").read_text(encoding="utf-8")
PROJECT = "local-project"

As = Callable[[Identity], Endpoints]


@pytest.fixture
def names(dataset: str, pubsub_emulator: Endpoints) -> Iterator[Names]:
    """An installation of its own on the emulators, with topics and an empty dataset."""
    made = Names(PROJECT, dataset=dataset, prefix=f"g{uuid.uuid4().hex[:8]}-")
    for topic in ("transactions", "alerts"):
        topics.create_topic(PROJECT, made.topic(topic).rpartition("/")[2])
    subscription = made.subscription("transactions-pipeline")
    topics.create_subscription(PROJECT, subscription.rpartition("/")[2], made.topic("transactions"))
    yield made
    with pubsub_emulator.activate():  # not as whom the test left
        topics.delete(made.topic("transactions"), subscription)
        topics.delete(made.topic("alerts"))


@pytest.fixture
def installed(names: Names, bigquery_client: bigquery.Client) -> Names:
    """The same with its tables, as `anomaly resources create` leaves it."""
    tables.create_tables(bigquery_client, names.dataset_name)
    return names


@pytest.fixture
def run_as(local_stack: Endpoints) -> Iterator[As]:
    """Sends this process to the stack as an identity; gives the addresses."""
    with ExitStack() as guards:

        def become(identity: Identity) -> Endpoints:
            return guards.enter_context(guards.enter_context(guarded(local_stack, identity)).activate())

        yield become


def worker(names: Names) -> Identity:
    """The workers' account, as `anomaly resources create` makes it."""
    places = {
        "project": f"projects/{PROJECT}",
        "topic": f"projects/{PROJECT}/topics/",
        "subscription": f"projects/{PROJECT}/subscriptions/",
    }
    grants = [
        (role.name, places[role.target] + ("" if role.target == "project" else role.target_name))
        for role in roles(names)
        if role.member == f"serviceAccount:{names.account}" and role.target in places
    ]
    (dataset,) = (resource for resource in declare(names) if isinstance(resource, Dataset))
    assert dataset.writer == names.account
    return Identity([*grants, ("roles/bigquery.dataEditor", _dataset(names))])


def person(names: Names, task: str, with_options: bool = False) -> Identity:
    """Somebody with the roles that the page gives for a task; behind a semicolon are those of an option."""
    (row,) = re.findall(rf"^\| {task} \| (.+) \|$", PAGE, re.M)
    row = row if with_options else row.partition(";")[0]
    granted = re.findall(r"`(roles/[\w.]+)`(?: on (?:(the \w+)|topic `([\w-]+)`|(`[\w-]+`)))?", row)
    grants = []
    for role, thing, topic, account in granted:
        place = (
            names.topic(topic) if topic else _dataset(names) if thing in ("the dataset", "the table") else ""
        )
        if not (account or thing == "the bucket"):
            grants.append((role, place or f"projects/{PROJECT}"))
    assert grants
    return Identity(grants)


def _dataset(names: Names) -> str:
    return f"projects/{PROJECT}/datasets/{names.dataset}"


def test_the_launcher_and_the_workers_of_a_batch(
    run_as: As, installed: Names, bigquery_client: bigquery.Client, model_dir: Path
):
    fields = [bigquery.SchemaField(feature, "FLOAT64") for feature in FEATURES]
    source = f"{installed.dataset_name}.source"
    bigquery_client.create_table(bigquery.Table(source, fields))
    bigquery_client.insert_rows_json(source, [dict.fromkeys(FEATURES, float(i)) for i in range(5)])
    identity = worker(installed)
    run_as(identity)
    flags = [f"--model={model_dir}", f"--output_dataset={installed.dataset_name}", f"--project={PROJECT}"]
    assert launcher.main([f"--input_table={source}", *flags]) == 0
    assert launcher.main([f"--input_query=SELECT * FROM `{source}`", *flags]) == 0
    assert identity.denied == []
    assert rows(bigquery_client, installed.dataset, "scores").num_rows == 10
    assert {"bigquery.readsessions.create", "bigquery.jobs.create"} <= identity.used
    assert "bigquery.datasets.create" not in identity.used


def test_the_launcher_and_the_workers_of_a_stream_that_makes_its_tables(
    run_as: As, names: Names, bigquery_client: bigquery.Client, model_dir: Path
):
    publishing, identity = person(names, "publish"), worker(names)
    run_as(publishing)
    topic = names.topic("transactions")
    assert (
        publisher.main([f"--topic={topic}", "--count=40", "--malformed_share=0.2", "--seed=1", "--quiet"])
        == 0
    )
    run_as(identity)
    argv = [
        f"--subscription={names.subscription('transactions-pipeline')}",
        f"--alert_topic={names.topic('alerts')}",
        f"--output_dataset={names.dataset_name}",
        f"--model={model_dir}",
        "--medium_threshold=0.0",
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())

    def is_done() -> bool:
        totals = metrics.totals(result)
        return totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0) >= 40

    run_until_drained(result, is_done, timeout=120)
    assert (publishing.denied, identity.denied) == ([], [])
    stored = [rows(bigquery_client, names.dataset, table).num_rows for table in ("scores", "error_records")]
    assert sum(stored) == 40
    assert rows(bigquery_client, names.dataset, "alerts_latest").num_rows == stored[0]
    assert {"bigquery.tables.create", "pubsub.topics.publish"} <= identity.used


@pytest.fixture
def submit(google: Google, run_as: As, model_dir: Path, monkeypatch) -> Callable[[Names, Identity], int]:
    """Submits a stream from this machine, as a person, with the checks."""

    def run(names: Names, identity: Identity) -> int:
        bucket = names.bucket_url.removeprefix("gs://")
        google.storage.buckets[bucket] = {"name": bucket}
        for file in model_dir.iterdir():
            google.storage.put(bucket, f"model/{file.name}", file.read_bytes())
        monkeypatch.setenv("PATH", "/nonexistent")  # gcloud's part has its own test
        monkeypatch.setattr(versions, "here", versions.of_image)  # whatever Python runs the test
        run_as(identity)
        flags = [f"--project={PROJECT}", f"--prefix={names.prefix}", f"--dataset={names.dataset}"]
        flags += [f"--dataflow_endpoint={google.url}", "--image=h/p/r/i:1"]
        return launch.main(["streaming", "--via=direct", *flags])

    return run


def test_a_person_who_submits_a_job(submit, google: Google, installed: Names):
    identity = person(installed, "launch, update, drain, cancel")
    assert submit(installed, identity) == 0
    assert identity.denied == []
    assert len(google.jobs) == 1
    assert identity.used == {
        *("bigquery.datasets.get", "bigquery.tables.get"),
        *("pubsub.topics.get", "pubsub.subscriptions.get"),
    }


def test_a_person_who_would_have_to_make_tables_is_told_the_roles(
    submit, google: Google, names: Names, capsys
):
    identity = person(names, "launch, update, drain, cancel")
    assert submit(names, identity) == 2
    assert identity.denied == [("bigquery.tables.create", _dataset(names))]
    said = capsys.readouterr().err
    assert (
        f"table {names.dataset_name}.scores does not exist, and making it takes roles/bigquery.dataEditor on "
        "the dataset: " in said
    )
    assert f"anomaly resources create --project={PROJECT} --dataset={names.dataset}" in said
    assert f"'GRANT `roles/bigquery.dataEditor` ON SCHEMA `{names.dataset_name}` TO \"user:EMAIL\"'" in said
    assert google.jobs == {}


def test_a_view_of_an_earlier_version_is_replaced_by_those_who_may(
    run_as: As, installed: Names, bigquery_client: bigquery.Client, submit, google: Google, capsys
):
    view = f"{installed.dataset_name}.scores_latest"
    bigquery_client.query_and_wait(f"CREATE OR REPLACE VIEW `{view}` AS SELECT 1 AS one")
    assert submit(installed, person(installed, "launch, update, drain, cancel")) == 2
    assert (
        f"view {view} is not the declared one, and replacing it takes roles/bigquery.dataEditor on the "
        "dataset and roles/bigquery.jobUser on the project" in capsys.readouterr().err
    )
    identity = worker(installed)
    rest = run_as(identity).bigquery
    client = bigquery.Client(PROJECT, client_options={"api_endpoint": rest})
    tables.create_tables(client, installed.dataset_name)
    assert identity.denied == []
    declared = tables.scores_table().view_sql(installed.dataset_name)
    assert bigquery_client.get_table(view).view_query == declared


def test_a_dataset_that_is_not_there_is_not_made_by_those_who_may_not(
    run_as: As, names: Names, bigquery_client: bigquery.Client, model_dir: Path, capsys
):
    bigquery_client.delete_dataset(names.dataset_name)
    identity = worker(names)
    # Google hides what is not there from those who have no role on it; a role on the project shows it.
    identity.grants = [*identity.grants, ("roles/bigquery.metadataViewer", f"projects/{PROJECT}")]
    run_as(identity)
    (lines := model_dir.parent / f"{uuid.uuid4().hex}.jsonl").write_text("{}\n")
    flags = [f"--model={model_dir}", f"--output_dataset={names.dataset_name}"]
    assert launcher.main([f"--input={lines}", *flags]) == 2
    said = capsys.readouterr().err
    assert f"dataset {names.dataset_name} does not exist, and making it takes roles/bigquery.user on" in said
    assert f"anomaly resources create --project={PROJECT} --dataset={names.dataset}" in said


def test_who_may_makes_the_dataset_in_the_region_of_the_job(
    run_as: As, names: Names, bigquery_client: bigquery.Client, model_dir: Path
):
    bigquery_client.delete_dataset(names.dataset_name)
    run_as(Identity([("roles/bigquery.admin", f"projects/{PROJECT}")]))
    (lines := model_dir.parent / f"{uuid.uuid4().hex}.jsonl").write_text("{}\n")
    flags = [f"--model={model_dir}", f"--output_dataset={names.dataset_name}", "--region=europe-west1"]
    assert launcher.main([f"--input={lines}", *flags]) == 0
    assert bigquery_client.get_dataset(names.dataset_name).location == "europe-west1"
    assert rows(bigquery_client, names.dataset, "error_records").num_rows == 1


def test_a_person_who_makes_and_removes_the_resources(
    run_as: As, names: Names, bigquery_client: bigquery.Client, capsys
):
    made = Names(PROJECT, dataset=f"{names.dataset}_made", prefix=f"m{uuid.uuid4().hex[:8]}-")
    identity = person(made, "create and delete the resources")
    run_as(identity)
    flags = [f"--project={PROJECT}", "--emulators", f"--dataset={made.dataset}", f"--prefix={made.prefix}"]
    assert [resources.main([action, *flags]) for action in ("create", "status")] == [0, 0]
    listed = {table.table_id for table in bigquery_client.list_tables(made.dataset_name)}
    assert listed == {name for spec in tables.TABLES for name in (spec.name, spec.view)}
    assert resources.main(["delete", *flags, "--yes"]) == 0
    assert identity.denied == []


def letters(client: bigquery.Client, dataset: str) -> None:
    row = {
        "timestamp": "2026-01-01T00:00:00Z",
        "payloadBytes": "e30=",
        "attributes": [],
        "errorMessage": "features: absent",
        "stage": "parse",
        "attempt": 0,
    }
    assert client.insert_rows_json(f"{dataset}.error_records", [row]) == []


def test_a_person_who_looks(run_as: As, installed: Names, bigquery_client: bigquery.Client, capsys):
    letters(bigquery_client, installed.dataset_name)
    identity = person(installed, "look")
    run_as(identity)
    flags = [f"--dataset={installed.dataset_name}", "--since=2000-01-01T00:00:00Z", "--format=json"]
    for name in query.names():
        assert query.main([name, *flags]) == 0
    assert replay.main([*flags, f"--topic={installed.topic('transactions')}", "--dry_run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["would_send"] == 1
    assert identity.denied == []


def test_a_person_who_trains_on_a_table(run_as: As, names: Names, bigquery_client: bigquery.Client):
    source = f"{names.dataset_name}.source"
    bigquery_client.create_table(bigquery.Table(source, [bigquery.SchemaField("V1", "FLOAT64")]))
    bigquery_client.insert_rows_json(source, [{"V1": 1.0}])
    identity = person(names, "train into the bucket", with_options=True)
    stack = run_as(identity)
    client = BigQueryEndpoints(stack.bigquery, stack.bigquery_storage).read_client()
    assert read_table(source, list, client=client, billing_project=PROJECT).num_rows == 1
    assert identity.denied == []


def test_a_person_who_replays(run_as: As, installed: Names, bigquery_client: bigquery.Client, capsys):
    letters(bigquery_client, installed.dataset_name)
    identity = person(installed, "replay")
    run_as(identity)
    flags = [
        f"--dataset={installed.dataset_name}",
        "--since=2000-01-01T00:00:00Z",
        "--format=json",
        "--quiet",
    ]
    for sent in (1, 0):
        assert replay.main([*flags, f"--topic={installed.topic('transactions')}"]) == 0
        assert json.loads(capsys.readouterr().out)["sent"] == sent
    assert identity.denied == []


def test_who_may_not_replay_is_told_the_roles(run_as: As, installed: Names, capsys):
    identity = person(installed, "look")
    run_as(identity)
    flags = [f"--dataset={installed.dataset_name}", f"--topic={installed.topic('transactions')}"]
    assert replay.main(flags) == 1
    assert (
        "replayed_records does not exist, and making it takes roles/bigquery.dataEditor"
        in capsys.readouterr().err
    )

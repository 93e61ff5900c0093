"""The resources of a project: on the local stack, and in a project behind the real clients."""

from __future__ import annotations

import json

import pytest
from google.api_core.exceptions import NotFound
from google.cloud import bigquery
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

from cloud.jobs import DATASET_LABEL, JobInfo
from cloud.resources.__main__ import main
from cloud.resources.base import LABEL, Clients, Difference, ResourceError
from cloud.resources.declared import Names, declare, roles
from cloud.resources.gcloud import Gcloud, GcloudError
from cloud.resources.storage import Bucket
from cloud.resources.tables import _cloud_differences, table_differences
from local.endpoints import Endpoints
from tests.cloud.google_server import Google
from transforms import tables

NAMES = Names("local-project", prefix="it-", dataset="resources")
FLAGS = ["--project=local-project", "--prefix=it-", "--dataset=resources"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[dict[str, object]]]:
    code = main([*argv, *FLAGS, "--format=json"])
    return code, json.loads(capsys.readouterr().out)


def statuses(rows: list[dict[str, object]]) -> dict[object, object]:
    return {row["name"]: row["status"] for row in rows}


# The local stack


@pytest.fixture
def stack(local_stack: Endpoints, capsys):
    yield local_stack
    main(["delete", *FLAGS, "--emulators", "--yes"])


@pytest.mark.integration
def test_create_is_idempotent_and_status_agrees(stack, capsys):
    assert run(capsys, "status", "--emulators")[0] == 1
    code, rows = run(capsys, "create", "--emulators", "--dry_run")
    assert {row["done"] for row in rows} == {"would create"}
    assert set(statuses(run(capsys, "status", "--emulators")[1]).values()) == {"missing"}

    code, rows = run(capsys, "create", "--emulators")
    assert code == 0
    assert {row["done"] for row in rows} == {"created"}
    code, rows = run(capsys, "create", "--emulators")
    assert {(row["status"], row["done"]) for row in rows} == {("ok", "")}
    assert run(capsys, "status", "--emulators")[0] == 0

    client = bigquery.Client("local-project", client_options={"api_endpoint": stack.bigquery})
    views = {table.table_id for table in client.list_tables("resources") if table.table_type == "VIEW"}
    names = ("scores", "alerts", "error_records", "score_windows", "feature_profiles")
    assert views == {f"{name}_latest" for name in names}


@pytest.mark.integration
@pytest.mark.usefixtures("gcloud_pubsub")
def test_status_shows_drift_and_create_repairs_it(stack, capsys):
    """On gcloud's emulator: the embedded server refuses to push."""
    run(capsys, "create", "--emulators")
    name = NAMES.subscription("alerts-review")
    with SubscriberClient() as subscriber:
        changed = {"name": name, "ack_deadline_seconds": 33, "enable_exactly_once_delivery": False}
        changed["retry_policy"] = {"minimum_backoff": {"seconds": 1}, "maximum_backoff": {"seconds": 60}}
        changed["dead_letter_policy"] = {
            "dead_letter_topic": NAMES.topic("alerts-dead-letter"),
            "max_delivery_attempts": 9,
        }
        changed["push_config"] = {"push_endpoint": "https://example.com/push"}
        mask = {"paths": sorted(set(changed) - {"name"})}
        subscriber.update_subscription(request={"subscription": changed, "update_mask": mask})
    client = bigquery.Client("local-project", client_options={"api_endpoint": stack.bigquery})
    client.delete_table("resources.alerts_latest")

    code, rows = run(capsys, "status", "--emulators")
    assert code == 1
    drifted = {row["name"]: row["details"] for row in rows if row["status"] == "drift"}
    assert drifted == {
        name: [
            "ack_deadline_seconds is 33, declared 60",
            "enable_exactly_once_delivery is False, declared True",
            f"dead_letter_policy is {NAMES.topic('alerts-dead-letter')} after 9 attempts, declared "
            f"{NAMES.topic('alerts-dead-letter')} after 5 attempts",
            "retry_policy is 1 to 60 s, declared 10 to 600 s",
            "push_config is https://example.com/push, declared none",
        ],
        "local-project.resources.alerts": ["view alerts_latest is none, declared a view"],
    }
    code, rows = run(capsys, "create", "--emulators")
    assert {row["name"] for row in rows if row["done"] == "repaired"} == set(drifted)
    assert run(capsys, "status", "--emulators")[0] == 0


@pytest.mark.integration
def test_a_subscription_of_another_topic_is_not_touched(stack, capsys):
    publisher = PublisherClient()
    other = "projects/local-project/topics/it-other"
    publisher.create_topic(name=other)
    with SubscriberClient() as subscriber:
        subscriber.create_subscription(name=NAMES.subscription("transactions-pipeline"), topic=other)
        assert main(["create", *FLAGS, "--emulators"]) == 1
        error = capsys.readouterr().err
        assert f"topic is {other}, declared {NAMES.topic('transactions')}; it cannot be changed" in error
        assert "Stop the emulators, which keep no messages" in error
        # What stands behind it in the list is there all the same.
        _, rows = run(capsys, "status", "--emulators")
        assert [row["name"] for row in rows if row["status"] != "ok"] == [
            NAMES.subscription("transactions-pipeline")
        ]
        subscriber.delete_subscription(subscription=NAMES.subscription("transactions-pipeline"))
    publisher.delete_topic(topic=other)
    publisher.transport.close()


@pytest.mark.integration
def test_delete_keeps_the_tables_when_asked_and_leaves_what_others_made(stack, capsys):
    publisher = PublisherClient()
    publisher.create_topic(name=NAMES.topic("alerts"))  # without the label
    run(capsys, "create", "--emulators")
    assert main(["delete", *FLAGS, "--emulators"]) == 1  # nobody to ask
    capsys.readouterr()

    _, rows = run(capsys, "delete", "--emulators", "--yes", "--keep_tables")
    done = {row["name"]: row["done"] for row in rows}
    assert done.pop(NAMES.topic("alerts")) == "kept"
    assert set(done.values()) == {"deleted"}
    found = statuses(run(capsys, "status", "--emulators")[1])
    assert found["local-project.resources.scores"] == "ok"
    assert found[NAMES.topic("transactions")] == "missing"

    _, rows = run(capsys, "delete", "--emulators", "--yes")
    assert {row["name"]: row["done"] for row in rows}["local-project.resources.scores"] == "deleted"
    publisher.delete_topic(topic=NAMES.topic("alerts"))
    publisher.transport.close()
    assert set(statuses(run(capsys, "status", "--emulators")[1]).values()) == {"missing"}


def test_emulators_without_a_local_stack_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    assert main(["create", *FLAGS, "--emulators"]) == 2
    assert "anomaly local up" in capsys.readouterr().err


# Tables


def test_every_difference_of_a_table_is_found():
    spec = tables.alerts_table()
    found = spec.table("p-123456.d")
    assert table_differences(found, spec) == []
    found.schema = [
        bigquery.SchemaField("transaction_id", "STRING", mode="REQUIRED", description="something else"),
        *[field for field in found.schema if field.name not in ("transaction_id", "severity")],
    ]
    found.clustering_fields = ["account_id"]
    found.time_partitioning = None
    description = next(f.description for f in tables.alerts_table().table("p-123456.d").schema)
    assert table_differences(found, spec) == [
        Difference("column severity", None, "STRING"),
        Difference("partitioning", None, "event_time by DAY", fixable=False),
        Difference("clustering", "account_id", "event_time_derived, severity, account_id"),
        Difference("description of column transaction_id", "something else", description),
    ]


def test_another_partition_type_is_a_difference_that_stays():
    spec = tables.alerts_table()
    found = spec.table("p-123456.d")
    found.time_partitioning = bigquery.TimePartitioning(
        type_="HOUR", field="event_time", expiration_ms=86_400_000
    )
    found.require_partition_filter = True
    found.description = "changed"
    assert table_differences(found, spec) == [
        Difference("partitioning", "event_time by HOUR", "event_time by DAY", fixable=False)
    ]
    assert _cloud_differences(found, spec) == [
        Difference("days until partitions expire", 1.0, None),
        Difference("required partition filter", True, None),
        Difference("description", "changed", spec.description),
        Difference("label app", None, "transaction-anomaly"),
    ]


@pytest.mark.integration
def test_delete_goes_on_past_a_dataset_that_holds_other_tables(stack, capsys):
    run(capsys, "create", "--emulators")
    client = bigquery.Client("local-project", client_options={"api_endpoint": stack.bigquery})
    client.create_table(
        bigquery.Table("local-project.resources.theirs", [bigquery.SchemaField("a", "INT64")])
    )
    code = main(["delete", *FLAGS, "--format=json", "--emulators", "--yes"])
    shown = capsys.readouterr()
    assert code == 1
    done = {row["name"]: row["done"] for row in json.loads(shown.out)}
    assert done.pop("local-project.resources") == "not deleted"
    assert set(done.values()) == {"deleted"}
    assert "Not deleted: dataset local-project.resources: it holds other tables" in shown.err
    client.delete_table("local-project.resources.theirs")


@pytest.mark.integration
def test_delete_finds_the_topic_of_scores_that_an_earlier_run_made(stack, capsys):
    assert run(capsys, "create", "--emulators", "--scores_topic")[0] == 0
    _, rows = run(capsys, "delete", "--emulators", "--yes")
    done = {row["name"]: row["done"] for row in rows}
    assert done[NAMES.topic("scores")] == "deleted"
    assert set(done.values()) == {"deleted"}


@pytest.mark.integration
def test_delete_takes_the_notes_of_replays_along(stack, capsys):
    run(capsys, "create", "--emulators")
    client = bigquery.Client("local-project", client_options={"api_endpoint": stack.bigquery})
    tables.create_tables(client, "local-project.resources", [tables.replayed_records_table()])
    assert main(["delete", *FLAGS, "--format=json", "--emulators", "--yes"]) == 0
    with pytest.raises(NotFound):
        client.get_dataset("local-project.resources")


# A project


def test_the_bucket_is_private_and_empties_its_temp_directory(google: Google):
    clients, bucket = Clients("local-project"), Bucket("gs://local-bucket", location="europe-west1")
    assert bucket.inspect(clients).status == "missing"
    bucket.create(clients)
    assert bucket.inspect(clients).status == "ok"
    sent = google.storage.buckets["local-bucket"]
    assert sent["iamConfiguration"]["publicAccessPrevention"] == "enforced"
    assert sent["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"] is True
    assert sent["softDeletePolicy"]["retentionDurationSeconds"] == 0
    assert sent["lifecycle"]["rule"] == [
        {"action": {"type": "Delete"}, "condition": {"age": 7, "matchesPrefix": ["temp/"]}}
    ]

    sent["iamConfiguration"]["publicAccessPrevention"] = "inherited"
    sent["lifecycle"] = {"rule": []}
    state = bucket.inspect(clients)
    assert state.differences == (
        Difference("public access prevention", "inherited", "enforced"),
        Difference("days in temp/", None, 7),
    )
    bucket.repair(clients, state)
    assert bucket.inspect(clients).status == "ok"

    elsewhere = Bucket("gs://local-bucket", location="us-east1")
    with pytest.raises(ResourceError, match="location is europe-west1"):
        elsewhere.repair(clients, elsewhere.inspect(clients))
    with pytest.raises(ResourceError, match="the name is taken"):
        elsewhere.create(clients)

    google.storage.put("local-bucket", "temp/x", b"1")
    bucket.delete(clients)
    assert bucket.inspect(clients).status == "missing"


@pytest.mark.integration
def test_gcloud_makes_the_account_and_gives_it_a_role(google: Google, gcloud):
    # The whole of it runs with the steps of docs/google-cloud.md.
    clients = Clients("local-project", gcloud=Gcloud())
    account = next(resource for resource in declare(NAMES) if resource.kind == "service account")
    assert account.inspect(clients).status == "missing"
    for resource in (account, roles(NAMES)[0]):
        resource.create(clients)
    assert clients.gcloud.printed[0] == (
        "gcloud iam service-accounts create it-anomaly-worker '--display-name=Transaction anomaly pipelines' "
        "--project=local-project"
    )
    assert google.accounts == {NAMES.account}
    worker = {"role": "roles/dataflow.worker", "members": [f"serviceAccount:{NAMES.account}"]}
    assert google.policies["projects/local-project"]["bindings"] == [worker]


@pytest.mark.integration
def test_without_the_right_to_change_roles_the_commands_are_printed(google: Google, gcloud, capsys):
    clients = Clients("local-project", gcloud=Gcloud(print_only=True))
    role = roles(NAMES)[0]
    role.create(clients)
    assert google.policies == {}
    assert capsys.readouterr().err == (
        "$ gcloud projects add-iam-policy-binding local-project "
        f"--member=serviceAccount:{NAMES.account} --role=roles/dataflow.worker --condition=None\n"
    )


def test_without_gcloud_the_error_says_what_to_run(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GcloudError, match=r"install it from .* gcloud projects describe local-project"):
        Gcloud().read("projects", "describe", "local-project")


# Jobs that stand in the way


def job(**changes: object) -> JobInfo:
    given: dict[str, object] = {
        "id": "1",
        "name": "n",
        "kind": "streaming",
        "state": "RUNNING",
        "created": None,
    }
    return JobInfo(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (job(), False),
        (job(reads=frozenset([NAMES.subscription("transactions-pipeline")])), True),
        (job(reads=frozenset(["projects/local-project/subscriptions/transactions-pipeline"])), False),
        (job(reads=frozenset(["local-project.resources"])), True),
        (job(labels={**LABEL, DATASET_LABEL: "local-project-resources"}), True),
        (job(labels={**LABEL, DATASET_LABEL: "local-project-other"}), False),
        (job(labels={DATASET_LABEL: "local-project-resources"}), False),
    ],
)
def test_a_job_uses_the_installation_whose_names_it_has(candidate, expected):
    assert candidate.uses("local-project", "resources", "it-") is expected


@pytest.mark.integration
def test_delete_cancels_the_jobs_that_read_the_subscription(stack, google: Google, capsys):
    run(capsys, "create", "--emulators")
    details = {"pubsubDetails": [{"subscription": NAMES.subscription("transactions-pipeline")}]}
    ours = google.add_job(
        {
            "name": "mine",
            "jobMetadata": details,
            "currentState": "JOB_STATE_RUNNING",
            "type": "JOB_TYPE_STREAMING",
        }
    )
    # A batch job in another region, known by its label and by the bucket that it writes.
    files = google.add_job(
        {
            "name": "files",
            "labels": LABEL,
            "environment": {"tempStoragePrefix": "gs://it-local-project-anomaly/temp"},
            "currentState": "JOB_STATE_RUNNING",
        },
        "asia-east1",
    )
    other = google.add_job({"name": "other", "currentState": "JOB_STATE_RUNNING"})
    flag = f"--dataflow_endpoint={google.url}"
    assert main(["delete", *FLAGS, "--emulators", "--yes", flag]) == 0
    shown = capsys.readouterr().err
    assert "and cancels job mine" in shown
    assert "Waiting for job files to end" in shown
    assert files["currentState"] == "JOB_STATE_CANCELLED"
    assert ours["currentState"] == "JOB_STATE_CANCELLED"
    assert other["currentState"] == "JOB_STATE_RUNNING"

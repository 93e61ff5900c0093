"""The workers' service account: which roles a job needs, and which of them are missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from google.api_core.exceptions import Forbidden
from google.api_core.iam import Policy
from google.cloud import bigquery

from cloud.checks import workers
from cloud.resources.base import Clients
from cloud.resources.declared import Names
from common.bigquery import table_reference
from templates import build
from tests.cloud.google_server import Google
from tests.cloud.test_preflight import BUCKET, job, only


def test_the_workers_need_roles_for_what_the_job_touches_and_no_more():
    needed = {(r.name, r.target, r.target_name) for r in workers.needed_roles(job("streaming"))}
    assert needed == {
        ("roles/dataflow.worker", "project", "local-project"),
        ("roles/pubsub.subscriber", "subscription", "transactions-pipeline"),
        ("roles/pubsub.viewer", "subscription", "transactions-pipeline"),
        ("roles/pubsub.publisher", "topic", "alerts"),
        ("roles/pubsub.viewer", "topic", "alerts"),
        ("roles/storage.objectAdmin", "bucket", f"gs://{BUCKET}"),
    }
    image = "--image=europe-west1-docker.pkg.dev/other-project/images/pipelines:1"
    found = workers.needed_roles(job("batch", "--input_query=SELECT 1", "--model=gs://models/m", image))
    needed = {(r.name, r.target_name, r.project) for r in found}
    assert needed >= {
        ("roles/storage.objectViewer", "gs://models", "local-project"),
        ("roles/bigquery.readSessionUser", "local-project", "local-project"),
        ("roles/bigquery.jobUser", "local-project", "local-project"),
        ("roles/artifactregistry.reader", "images", "other-project"),
    }
    image = "--image=europe-west1-docker.pkg.dev/example.com/other-project/images/pipelines:1"
    found = workers.needed_roles(job("batch", "--input=gs://b-1/x.parquet", image))
    assert [(r.target_name, r.project) for r in found if r.target == "repository"] == [
        ("images", "example.com:other-project")
    ]


@pytest.mark.integration
def test_roles_of_the_workers_are_read_from_the_policies(google: Google, gcloud, monkeypatch):
    # The emulator does not tell who may write a dataset, so with one it is not asked.
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:1")
    stream = job("streaming")
    member = f"serviceAccount:{stream.account}"
    finding = only(workers.check_worker(Clients("local-project"), stream))
    assert (finding.problem, finding.remedy) == (
        "does not exist",
        "anomaly resources create --project local-project",
    )
    google.accounts.add(stream.account)
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    image = "us-central1-docker.pkg.dev/local-project/anomaly/pipelines:v1"
    build.upload(Clients("local-project"), Names("local-project"), image)
    google.policies["projects/local-project"] = {
        "bindings": [{"role": "roles/dataflow.worker", "members": [member]}]
    }
    google.storage.policies[BUCKET] = {"bindings": [{"role": "roles/storage.admin", "members": [member]}]}
    google.policies["projects/local-project/topics/alerts"] = {
        "bindings": [{"role": "roles/pubsub.publisher", "members": ["serviceAccount:other"]}]
    }
    found = {f.subject: f for f in workers.check_worker(Clients("local-project"), stream)}
    assert found.pop("roles/dataflow.worker on project local-project for the workers").status == "ok"
    assert found.pop(f"roles/storage.objectAdmin on bucket gs://{BUCKET} for the workers").status == "ok"
    assert found.pop(f"service account {stream.account}").status == "ok"
    assert [finding.status for finding in found.values()] == ["failed"] * 5
    assert "roles/artifactregistry.reader on repository anomaly for the workers" in found
    assert found["roles/pubsub.publisher on topic alerts for the workers"].remedy == (
        "gcloud pubsub topics add-iam-policy-binding alerts --project=local-project "
        f"--member={member} --role=roles/pubsub.publisher"
    )


def test_without_gcloud_the_roles_are_not_checked_and_that_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    finding = only(workers.check_worker(Clients("local-project"), job("streaming")))
    assert (finding.status, "no gcloud on the PATH" in finding.problem) == ("note", True)


class Datasets:
    """BigQuery with one dataset, of which the emulator would not tell who may write it."""

    def __init__(self, *entries: bigquery.AccessEntry) -> None:
        self.found = bigquery.Dataset("local-project.anomaly")
        self.found.access_entries = list(entries)

    def get_dataset(self, name: str, **patience: object) -> bigquery.Dataset:
        assert name == "local-project.anomaly"
        return self.found


@pytest.mark.integration
def test_the_workers_must_be_able_to_write_the_dataset(google: Google, gcloud, monkeypatch):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    stream = job("streaming")
    account = stream.account

    def check(*entries: bigquery.AccessEntry):
        clients = Clients("local-project")
        clients.bigquery = Datasets(*entries)
        return only(workers._check_dataset(clients, stream))

    found = check(bigquery.AccessEntry("READER", "userByEmail", account))
    assert (found.status, found.problem) == (
        "failed",
        "is not granted there, nor a wider one on the project",
    )
    assert found.remedy == (
        "bq query --use_legacy_sql=false 'GRANT `roles/bigquery.dataEditor` ON SCHEMA "
        f'`local-project.anomaly` TO "serviceAccount:{account}"\''
    )
    assert check(bigquery.AccessEntry("WRITER", "userByEmail", account)).status == "ok"
    google.policies["projects/local-project"] = {
        "bindings": [{"role": "roles/bigquery.admin", "members": [f"serviceAccount:{account}"]}]
    }
    assert check().status == "ok"


class Sources:
    """BigQuery with one table of somebody else's: its dataset's access list, its own policy."""

    def __init__(
        self, entries: list[bigquery.AccessEntry], bindings: list[dict], denied: bool = False
    ) -> None:
        self.dataset = bigquery.Dataset("other-project.history")
        self.dataset.access_entries = entries
        self.policy = Policy()
        self.policy.bindings = bindings
        self.denied = denied

    def get_dataset(self, name: str, **patience: object) -> bigquery.Dataset:
        assert name == "other-project.history"
        if self.denied:
            raise Forbidden("Access Denied: Permission bigquery.datasets.get denied")
        return self.dataset

    def get_iam_policy(self, table: bigquery.TableReference, **patience: object) -> Policy:
        assert str(table) == "other-project.history.transactions"
        return self.policy

    def query(self, sql: str, job_config: bigquery.QueryJobConfig) -> object:
        assert job_config.dry_run
        return SimpleNamespace(referenced_tables=[table_reference("other-project.history.transactions")])


@pytest.mark.integration
@pytest.mark.parametrize(
    "flag",
    [
        "--input_table=other-project.history.transactions",
        "--input_query=SELECT * FROM `other-project.history.transactions`",
    ],
)
def test_the_workers_must_be_able_to_read_the_source(flag, google: Google, gcloud, monkeypatch):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    batch = job("batch", flag)
    account = batch.account

    def check(entries=(), bindings=(), denied=False):
        clients = Clients("local-project")
        clients.bigquery = Sources(list(entries), list(bindings), denied)
        return only(workers._check_sources(clients, batch))

    other = bigquery.AccessEntry("READER", "userByEmail", "somebody@example.com")
    found = check([other], [{"role": "roles/bigquery.dataEditor", "members": ["user:somebody@example.com"]}])
    assert found.subject == (
        "roles/bigquery.dataViewer on table other-project.history.transactions for the workers"
    )
    assert (found.status, found.problem) == (
        "failed",
        "is not granted there, nor a wider one on the project",
    )
    assert found.remedy == (
        "bq query --use_legacy_sql=false 'GRANT `roles/bigquery.dataViewer` ON SCHEMA "
        f'`other-project.history` TO "serviceAccount:{account}"\''
    )
    for entry in (
        bigquery.AccessEntry("READER", "userByEmail", account),
        bigquery.AccessEntry("READER", "specialGroup", "allAuthenticatedUsers"),
        bigquery.AccessEntry("roles/bigquery.dataViewer", "iamMember", "allUsers"),
    ):
        assert check([entry]).status == "ok"
    bound = {"role": "roles/bigquery.dataViewer", "members": [f"serviceAccount:{account}"]}
    assert check([], [bound]).status == "ok"
    assert check([], [{**bound, "condition": {"expression": "false"}}]).status == "failed"
    assert (check(denied=True).status, "not checked" in check(denied=True).problem) == ("note", True)
    google.policies["projects/other-project"] = {
        "bindings": [{"role": "roles/bigquery.dataViewer", "members": [f"serviceAccount:{account}"]}]
    }
    assert check().status == "ok"

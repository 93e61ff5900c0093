"""Resources under a key of Cloud KMS: who may use it, and what is encrypted with it."""

from __future__ import annotations

from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from cloud.resources import changes
from cloud.resources.accounts import Repository, Role
from cloud.resources.base import LABEL, Clients, Difference, ResourceError
from cloud.resources.declared import KEY_USERS, Names, declare
from cloud.resources.gcloud import GcloudError
from cloud.resources.storage import Bucket
from cloud.resources.tables import Dataset
from cloud.resources.topics import Topic
from common.options import OptionError
from tests.cloud.google_server import Google
from tests.http_server import Refusal, Request, serve

KEY = "projects/my-keys/locations/us-central1/keyRings/data/cryptoKeys/anomaly"
OTHER = f"{KEY}-2"
NAMES = Names("local-project", kms_key=KEY)


def test_whoever_encrypts_may_use_the_key_before_anything_is_made_under_it():
    resources = declare(NAMES)
    users = [r for r in resources if isinstance(r, Role) and r.target == "key"]
    assert [user.member for user in users] == [
        f"serviceAccount:{name}.iam.gserviceaccount.com" for name in KEY_USERS
    ]
    encrypted = [r for r in resources if getattr(r, "kms_key", "")]
    assert {r.kind for r in encrypted} == {"bucket", "repository", "topic", "dataset"}
    assert sum(r.kind == "topic" for r in encrypted) == 3
    assert max(map(resources.index, users)) < min(map(resources.index, encrypted))
    assert not [r for r in declare(Names("local-project")) if getattr(r, "kms_key", "")]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"region": "europe-west1"}, "expected a key in --region=europe-west1, got one in us-central1"),
        ({"dataset_location": "US"}, "expected a key in --dataset_location=US, got one in us-central1"),
        ({"kms_key": "anomaly"}, "--kms_key: expected projects/PROJECT/locations/LOCATION/keyRings/RING/cr"),
    ],
)
def test_a_key_elsewhere_is_refused(more, reason):
    with pytest.raises(OptionError, match=reason):
        Names(**{"project": "local-project", "kms_key": KEY, **more})


def test_the_bucket_gets_the_key_and_another_is_replaced(google: Google):
    clients, bucket = Clients("local-project"), Bucket("gs://local-bucket", kms_key=KEY)
    bucket.create(clients)
    assert google.storage.buckets["local-bucket"]["encryption"] == {"defaultKmsKeyName": KEY}
    assert bucket.inspect(clients).status == "ok"
    google.storage.buckets["local-bucket"]["encryption"] = {"defaultKmsKeyName": OTHER}
    state = bucket.inspect(clients)
    assert state.differences == (Difference("key", OTHER, KEY),)
    bucket.repair(clients, state)
    assert bucket.inspect(clients).status == "ok"
    # Without --kms_key nobody's choice is changed.
    assert Bucket("gs://local-bucket").inspect(clients).status == "ok"


@pytest.mark.integration
@pytest.mark.usefixtures("gcloud_pubsub")
def test_a_topic_keeps_its_key():
    clients = Clients("local-project")
    name = "projects/local-project/topics/encrypted"
    made = Topic(name)
    made.create(clients)
    topic = Topic(name, kms_key=KEY)
    state = topic.inspect(clients)
    assert state.differences == (Difference("key", None, KEY, fixable=False),)
    with pytest.raises(ResourceError, match=r"key is none, declared .* Delete it with `gcloud pubsub topics"):
        topic.repair(clients, state)
    made.delete(clients)
    topic.create(clients)
    assert topic.inspect(clients).status == "ok"
    topic.delete(clients)
    clients.close()


def test_the_dataset_gets_the_key(monkeypatch):
    stored: dict[str, Any] = {}

    def answer(request: Request) -> Any:
        if request.method == "GET" and not stored:
            raise Refusal(404, "NOT_FOUND", "not found: dataset")
        if request.method in ("POST", "PATCH"):
            stored.update(request.json)
        return stored

    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    with serve(answer) as port:
        clients = Clients("local-project")
        # Not by `endpoints`: an address of this machine counts as the emulator, which has no keys.
        clients.__dict__["bigquery"] = bigquery.Client(
            "local-project",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": f"http://127.0.0.1:{port}"},
        )
        dataset = Dataset("local-project.anomaly", location="us-central1", kms_key=KEY)
        assert dataset.inspect(clients).status == "missing"
        dataset.create(clients)
        assert stored["defaultEncryptionConfiguration"] == {"kmsKeyName": KEY}
        assert dataset.inspect(clients).status == "ok"
        stored.update({"defaultEncryptionConfiguration": {"kmsKeyName": OTHER}, "labels": LABEL})
        state = dataset.inspect(clients)
        assert state.differences == (Difference("key", OTHER, KEY),)
        dataset.repair(clients, state)
        assert dataset.inspect(clients).status == "ok"


@pytest.mark.integration
def test_gcloud_makes_the_repository_under_the_key_and_lets_the_agents_in(google: Google, gcloud):
    repository = Repository("anomaly", project="local-project", kms_key=KEY)
    clients = Clients("local-project")
    users = [r for r in declare(NAMES) if isinstance(r, Role) and r.target == "key"]
    # BigQuery's agent is asked of BigQuery itself, not of gcloud.
    some = [user for user in users if "bigquery" not in user.member]
    done = changes.create([*some, repository], clients, dry_run=False)
    assert [change.action for change in done] == ["created"] * 6
    (binding,) = google.policies[KEY]["bindings"]
    assert binding["role"] == "roles/cloudkms.cryptoKeyEncrypterDecrypter"
    assert sorted(binding["members"]) == sorted(user.member.format(number="123456") for user in some)
    (body,) = google.bodies("POST", r"/v1/projects/local-project/locations/us-central1/repositories")
    assert body["kmsKeyName"] == KEY
    assert repository.inspect(Clients("local-project")).status == "ok"
    other = Repository("anomaly", project="local-project", kms_key=OTHER)
    state = other.inspect(Clients("local-project"))
    assert state.differences == (Difference("kmsKeyName", KEY, OTHER, fixable=False),)
    with pytest.raises((ResourceError, GcloudError), match=r"kmsKeyName is .* it cannot be changed"):
        other.repair(clients, state)

"""Creating and deleting the declared resources: what is asked, what is left alone, what is printed."""

from __future__ import annotations

import pytest
from google.cloud import bigquery

from cloud.resources import changes, propagation
from cloud.resources.base import MISSING, Clients, Difference, Key, Resource, State
from cloud.resources.declared import Names, declare, roles
from cloud.resources.gcloud import Gcloud, GcloudError
from cloud.resources.storage import Bucket
from cloud.resources.tables import with_description
from common.clients import BigQueryEndpoints
from common.retry import Patience
from tests.cloud.google_server import Google

NAMES = Names("local-project", prefix="it-", dataset="resources")


def actions(done: list[changes.Change]) -> set[str]:
    return {change.action for change in done}


class Thing(Resource):
    """A resource in a dictionary, which counts what it is asked."""

    kind = "bucket"

    def __init__(self, name: str, there: dict[str, bool], part_of: Key | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "there", there)
        object.__setattr__(self, "_part_of", part_of)

    @property
    def part_of(self) -> Key | None:
        return self._part_of

    @property
    def needs(self) -> tuple[Key, ...]:
        return (self._part_of,) if self._part_of else ()

    def inspect(self, clients: Clients) -> State:
        self.there[f"asked {self.name}"] = True
        return State("ok") if self.name in self.there else MISSING

    def owned(self, clients: Clients) -> bool:
        return self.there[self.name]

    def delete(self, clients: Clients) -> None:
        del self.there[self.name]


@pytest.mark.parametrize(
    ("there", "asked", "done"),
    [
        ({}, False, {"thing": "", "part": ""}),
        ({"thing": True, "part": True}, False, {"thing": "deleted", "part": "deleted with its thing"}),
        ({"thing": False, "part": True}, True, {"thing": "kept", "part": "deleted"}),
    ],
)
def test_what_is_on_a_thing_is_looked_up_only_where_the_thing_stays(there, asked, done):
    thing = Thing("thing", there)
    part = Thing("part", there, part_of=thing.key)
    clients = Clients("local-project")
    found = changes.delete([thing, part], clients, dry_run=False)
    assert {change.resource.name: change.action for change in found} == done
    assert ("asked part" in there) is asked


def test_what_needs_a_missing_thing_is_missing_and_nobody_is_asked():
    there: dict[str, bool] = {}
    thing = Thing("thing", there)
    part = Thing("part", there, part_of=thing.key)
    assert changes.inspect_all([part, thing], Clients("local-project")) == [MISSING, MISSING]
    assert "asked part" not in there


def test_a_role_stands_on_its_thing_and_needs_its_account():
    declared = {resource.key for resource in declare(NAMES)}
    for role in roles(NAMES):
        assert role.key in declared
        assert role.part_of is None or role.part_of in declared
        assert (role.part_of is None) is (role.target == "project")
    worker = ("service account", NAMES.account)
    assert sum(worker in role.needs for role in roles(NAMES)) == len(roles(NAMES)) - 5


@pytest.mark.integration
def test_a_repository_and_an_account_that_somebody_else_made_are_kept(google: Google, gcloud):
    clients = Clients("local-project")
    mine = [r for r in declare(NAMES) if r.kind in ("service account", "repository")]
    google.accounts.update((NAMES.account, NAMES.builder))
    google.repositories.add(NAMES.repository)
    assert actions(changes.create(mine, clients, dry_run=False)) == {""}
    assert actions(changes.delete(mine, clients, dry_run=False)) == {"kept"}

    google.accounts.clear()
    google.repositories.clear()
    assert actions(changes.create(mine, Clients("local-project"), dry_run=False)) == {"created"}
    assert actions(changes.delete(mine, Clients("local-project"), dry_run=False)) == {"deleted"}
    assert (google.accounts, google.repositories) == (set(), set())


def test_a_bucket_that_somebody_else_made_is_used_and_never_emptied(google: Google):
    clients, bucket = Clients("local-project"), Bucket("gs://theirs", location="europe-west1")
    google.storage.buckets["theirs"] = {"name": "theirs", "location": "EUROPE-WEST1"}
    google.storage.put("theirs", "precious", b"1")
    assert actions(changes.create([bucket], clients, dry_run=False)) == {"repaired"}
    assert bucket.inspect(clients).status == "ok"
    assert actions(changes.delete([bucket], clients, dry_run=False)) == {"kept"}
    assert google.storage.names("theirs") == ["precious"]


def test_without_credentials_the_error_says_how_to_get_some(monkeypatch, capsys):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    for name in ("STORAGE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    for resource in declare(NAMES):
        if not resource.by_gcloud and resource.kind != "table":
            state = changes.inspect(resource, Clients("local-project"))
            assert state.status == "unknown"
            assert "To fix it: gcloud auth application-default login" in state.lines[0]


def test_the_administrators_commands_are_printed_where_nobody_is_signed_in(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    clients = Clients("local-project", gcloud=Gcloud(print_only=True))
    mine = [resource for resource in declare(NAMES) if resource.by_gcloud]
    done = changes.create(mine, clients, dry_run=True)
    assert actions(done) == {"printed"}
    shown = capsys.readouterr().err
    assert shown.startswith("$ gcloud services enable artifactregistry.googleapis.com bigquery")
    assert shown.count("\n$ gcloud") == len(mine)  # one more than resources: the account of Pub/Sub
    assert shown.index("services identity create --service=pubsub") < shown.index("service-PROJECT_NUMBER")
    assert "service-PROJECT_NUMBER@gcp-sa-pubsub" in shown


@pytest.mark.integration
def test_a_table_that_somebody_else_made_is_kept(bigquery_emulator, bigquery_client, dataset):
    name = f"local-project.{dataset}"
    table = next(r for r in declare(Names("local-project", dataset=dataset)) if r.kind == "table")
    clients = Clients("local-project", BigQueryEndpoints(bigquery_emulator.bigquery))
    table.create(clients)
    clients.__class__ = type("InTheCloud", (Clients,), {"local_bigquery": False})
    assert table.owned(clients)
    assert Difference("label app", None, "transaction-anomaly") in table.inspect(clients).differences
    found = bigquery_client.get_table(f"{name}.scores")
    found.description = "Scores of the other team"
    bigquery_client.update_table(found, ["description"])
    assert not table.owned(clients)


class Settling(Thing):
    """A resource of which Google says for a while that it may not be made."""

    def create(self, clients: Clients) -> None:
        self.there["tried"] = self.there.get("tried", 0) + 1
        if self.there["tried"] <= 2:
            raise GcloudError("gcloud ended with 1", self.there["error"])
        self.there[self.name] = True


@pytest.mark.parametrize(
    ("error", "through"),
    [
        ("INVALID_ARGUMENT: Service account a@p.iam.gserviceaccount.com does not exist.", True),
        ("Cloud Pub/Sub API has not been used in project 1 before or it is disabled", True),
        ("HTTPError 409: There were concurrent policy changes.", True),
        ("PERMISSION_DENIED: you may not", False),
    ],
)
def test_what_google_has_not_settled_is_tried_again(monkeypatch, capsys, error, through):
    monkeypatch.setattr(propagation, "PATIENCE", Patience(10, 0.01, 0.01))
    there: dict = {"error": error}
    thing = Settling("thing", there)
    if not through:
        with pytest.raises(GcloudError):
            changes.create([thing], Clients("local-project"), dry_run=False)
        assert there["tried"] == 1
        return
    assert actions(changes.create([thing], Clients("local-project"), dry_run=False)) == {"created"}
    assert capsys.readouterr().err.count("Google has not settled yet") == 2


def test_a_repaired_description_leaves_the_rest_of_a_column():
    column = {
        "name": "account_id",
        "type": "STRING",
        "mode": "NULLABLE",
        "description": "old",
        "policyTags": {"names": ["projects/p/locations/us/taxonomies/1/policyTags/2"]},
        "defaultValueExpression": "'none'",
        "collation": "und:ci",
        "maxLength": "64",
    }
    declared = bigquery.SchemaField("account_id", "STRING", description="new")
    repaired = with_description(bigquery.SchemaField.from_api_repr(column), declared)
    assert repaired.to_api_repr() == column | {"description": "new"}

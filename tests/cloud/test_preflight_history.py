"""The check of --history before a launch: histories in Cloud Storage, of the model and its buckets."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud import preflight
from cloud.checks import storage, workers
from cloud.checks.finding import Finding
from cloud.resources.base import Clients
from features.declaration import FeatureSpec
from features.history.plan import plans
from features.learnt import NOTHING
from tests.cloud.google_server import Google
from tests.cloud.test_preflight import BUCKET, clients, job, only
from tests.model.serving.artifacts import build_own_artifact
from tests.transforms.history_cases import SPEC
from transforms.history_files import HistoryFiles, Keys

__all__ = ["clients"]

URI = f"gs://{BUCKET}/history"


def index(tmp_path: Path, spec: FeatureSpec, buckets: int = 16, until: int = 0) -> bytes:
    keys = tuple(Keys(plan.key or "account", plan.version, "d", 0, ()) for plan in plans(spec))
    HistoryFiles(str(tmp_path), buckets, until, rows=1234, keys=keys).write()
    return (tmp_path / "history.json").read_bytes()


def check(clients: Clients, uri: str = URI) -> Finding:
    command = job("streaming", f"--model=gs://{BUCKET}/model", f"--history={uri}").pipeline
    return only(storage.check_history(clients, command, uri))


@pytest.fixture
def stored(google: Google, tmp_path: Path) -> Google:
    """A bucket with a model that has history features, and with its histories."""
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    for file in build_own_artifact(tmp_path / "model", SPEC, NOTHING).local_dir.iterdir():
        google.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())
    google.storage.put(BUCKET, "history/history.json", index(tmp_path, SPEC))
    return google


def test_histories_of_the_model_are_named_with_their_rows(stored: Google, clients: Clients):
    assert check(clients) == Finding(f"--history={URI}, 1,234 transactions")
    assert check(clients, f"{URI}/").status == "ok"


def test_histories_that_do_not_fit_or_are_not_there(stored: Google, clients: Clients, tmp_path: Path):
    other = FeatureSpec.from_json(SPEC.to_json() | {"features": SPEC.to_json()["features"][:2]})
    build = f"anomaly history build --model gs://{BUCKET}/model --output {URI}"
    for content, problem in (
        (index(tmp_path, other), "expected the histories by account"),
        (index(tmp_path, SPEC, 32), "is divided into 32 buckets, got --history_buckets=16"),
        (index(tmp_path, SPEC, until=2**52), "expected histories that end before now, got 2112-09-17"),
        (b"{", "Expecting property name"),
    ):
        stored.storage.put(BUCKET, "history/history.json", content)
        finding = check(clients)
        assert (finding.status, finding.remedy) == ("failed", build)
        assert problem in finding.problem
    finding = check(clients, f"gs://{BUCKET}/none")
    assert (finding.status, finding.problem) == ("failed", "does not exist")
    finding = check(clients, "out/history")
    assert (finding.status, finding.problem) == ("failed", "is on this machine, where no worker finds it")
    assert finding.remedy.endswith("--output gs://BUCKET/PATH")


def test_a_model_without_history_features_has_no_histories(stored: Google, clients: Clients, model_dir: Path):
    for file in model_dir.iterdir():
        stored.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())
    assert "the model of --model has no history features" in check(clients).problem


def test_a_model_that_cannot_be_read_is_left_to_its_own_check(stored: Google, clients: Clients):
    stored.storage.put(BUCKET, "model/manifest.json", b"{")
    assert check(clients).status == "note"


def test_a_launch_checks_the_histories_and_the_role_to_read_them(google: Google, clients: Clients):
    request = job("streaming", f"--model=gs://{BUCKET}/model", "--history=gs://histories/h")
    planned = list(preflight.plan_checks(request, clients))
    assert [each.args[-1] for each in planned if each.func is storage.check_history] == ["gs://histories/h"]
    needed = {(role.name, role.target_name) for role in workers.needed_roles(request)}
    assert ("roles/storage.objectViewer", "gs://histories") in needed

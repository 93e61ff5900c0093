"""A model that follows its artifact: taken over, refused, left alone, freed."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest

from features.declaration import FeatureSpec
from model import artifact
from model.artifact import PREVIOUS, Artifact, ArtifactError, ArtifactUnavailableError
from model.live import Follower, ForeignError, Live, check_spec, first
from model.manifest import MANIFEST_FILE, MODEL_FILE


class Model:
    """Stands for a loaded model: its version."""

    def __init__(self, found: Artifact) -> None:
        self.version = found.manifest.model_version
        if self.version == "foreign":
            raise ForeignError(f"{found.uri}: is of another bank")
        if self.version == "broken":
            raise RuntimeError("the warm-up failed")


@pytest.fixture
def uri(model_place):
    return model_place


@pytest.fixture
def write(uri, trained, tmp_path):
    def run(version: str, text: str = "network") -> artifact.Manifest:
        file = tmp_path / MODEL_FILE
        file.write_text(text)
        versioned = dataclasses.replace(trained.manifest, model_version=version)
        return artifact.write(uri, versioned, [file]).manifest

    run("1")
    return run


@pytest.fixture
def live(uri, write):
    return Live(Model(artifact.read(uri)))


@pytest.fixture
def follower(uri, write):
    return Follower(uri, Model, artifact.verify(uri).digest)


def test_an_artifact_that_did_not_change_is_read_once_at_most(live, follower, monkeypatch):
    live.take(follower.look())
    monkeypatch.setattr(artifact, "read", None)
    live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("1", {})


def test_a_new_artifact_takes_the_place_of_the_old_one(live, follower, write):
    write("2")
    live.take(follower.look())
    live.take(follower.look())
    assert (live.current.version, live.take_events(), live.take_events()) == ("2", {"refreshed": 1}, {})


def test_a_torn_artifact_leaves_the_old_one_and_says_so_once(live, follower, write, uri, tmp_path, caplog):
    write("2", "another network")
    whole = tmp_path / "whole"
    artifact.place(uri).fetch(MODEL_FILE, whole)
    torn = tmp_path / "torn"
    torn.write_text("half of a netw")
    artifact.place(uri).put(MODEL_FILE, torn)
    for _ in range(3):
        live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("1", {"refused": 1})
    (line,) = [record.message for record in caplog.records if record.name == "model.live"]
    assert line.startswith(f"The model in use stays. {uri}: {MODEL_FILE} has sha256")
    # An upload that was under way: the manifest does not change any more, and the file comes.
    artifact.place(uri).put(MODEL_FILE, whole)
    live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("2", {"refreshed": 1})


def test_a_foreign_artifact_leaves_the_old_one_and_is_read_once(live, follower, write, caplog, monkeypatch):
    write("foreign")
    live.take(follower.look())
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "read", None)
        live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("1", {"refused": 1})
    assert "is of another bank" in caplog.text
    write("1")  # the way back: it is the one in use
    live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("1", {})


def test_a_model_that_fails_its_warm_up_leaves_the_old_one(live, follower, write, caplog):
    write("broken")
    live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("1", {"refused": 1})
    assert "the warm-up failed" in caplog.text


def test_an_artifact_that_is_gone_leaves_the_model(live, uri, caplog):
    place = artifact.place(uri)
    missing = place.child("elsewhere")
    follower = Follower(missing.uri, Model, "")
    for _ in range(2):
        live.take(follower.look())
    assert (live.current.version, live.take_events()) == ("1", {"refused": 1})
    assert f"No {MANIFEST_FILE} in {missing.uri}" in caplog.text


def test_cloud_storage_that_does_not_answer_is_a_warning_until_it_does(trained, cloud_storage, caplog):
    live = Live("model")
    cloud_storage.storage.forbidden = "bucket/live"
    digest = artifact.write("gs://bucket/live", trained.manifest, [trained.model_path]).manifest.digest
    follower = Follower("gs://bucket/live", lambda found: "other", digest)
    for _ in range(2):
        live.take(follower.look())
    assert live.take_events() == {"refused": 1}
    (record,) = [record for record in caplog.records if record.name == "model.live"]
    assert record.levelno == logging.WARNING
    assert "storage.objects.get is missing" in record.message
    cloud_storage.storage.forbidden = ""
    live.take(follower.look())
    assert (live.current, live.take_events()) == ("model", {})


@pytest.mark.parametrize("model_place", ["local"], indirect=True)
def test_the_thread_takes_a_new_artifact_over_and_frees_the_old_model(live, uri, write):
    live.follow(Follower(uri, Model, artifact.verify(uri).digest), 0.01)
    old = weakref.ref(live.current)
    write("2")
    deadline = time.monotonic() + 60
    while live.current.version != "2":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert old() is None


def test_the_thread_ends_with_its_owner(tmp_path):
    live: Live[str] = Live("model")
    before = {*threading.enumerate()}
    live.follow(Follower(str(tmp_path), lambda found: "other", ""), 0.01)
    (thread,) = {*threading.enumerate()} - before
    del live
    thread.join(timeout=60)
    assert not thread.is_alive()


def spec(*features: dict) -> FeatureSpec:
    return FeatureSpec.from_json({"features": list(features)})


A, B = {"name": "a", "kind": "number"}, {"name": "b", "kind": "number"}


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (spec(A, B | {"scale": "log"}), "feature b"),
        (spec(A), "1 features for 2"),
        (FeatureSpec.from_json({"transaction_id": "key", "features": [A, B]}), "its roles"),
    ],
)
def test_another_feature_spec_is_named(trained, other, text):
    found = dataclasses.replace(trained, manifest=dataclasses.replace(trained.manifest, spec=other))
    with pytest.raises(ForeignError) as refused:
        check_spec(found, spec(A, B), "the running job")
    assert str(refused.value) == (
        f"{trained.uri}: version test-1 has another feature spec ({text}) than the running job"
    )
    check_spec(found, other, "the running job")


def test_the_same_outage_is_told_again_when_it_comes_again(live, follower, monkeypatch, caplog):
    live.take(follower.look())
    place, down = follower._place, ArtifactUnavailableError("Cloud Storage does not answer")

    def refuse(name: str) -> str:
        raise down

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(place, "stamp", refuse)
            live.take(follower.look())
            live.take(follower.look())
        live.take(follower.look())
    told = [each for each in caplog.messages if "Cloud Storage does not answer" in each]
    assert len(told) == 2


def test_a_whole_model_that_cannot_be_loaded_is_read_once(live, write, uri, monkeypatch):
    """Its files are those of the manifest, and would be downloaded again at each look."""

    def load(found: Artifact) -> Model:
        raise ArtifactError(f"{found.uri}: the graph has 3 inputs")

    follower = Follower(uri, load, "another")
    live.take(follower.look())
    assert live.take_events() == {"refused": 1}
    monkeypatch.setattr(artifact, "read", None)
    live.take(follower.look())
    assert live.take_events() == {}


@pytest.mark.parametrize("damage", ["foreign", "torn", "gone"])
def test_a_process_that_starts_beside_a_model_that_is_no_use_takes_the_one_before(write, uri, damage, caplog):
    write("foreign", "another network")
    broken, name = Path(__file__), MANIFEST_FILE if damage == "gone" else MODEL_FILE
    if damage != "foreign":
        artifact.place(uri).put(name, broken)
    with pytest.raises(ArtifactError):
        first(uri, Model)
    model, digest = first(uri, Model, is_followed=True)
    assert (model.version, digest) == ("1", artifact.peek(f"{uri}/{PREVIOUS}").digest)
    assert "the one before is in use, version 1" in caplog.text
    write("2")
    look = Follower(uri, Model, digest).look()
    assert look.model is not None
    assert look.model.version == "2"


def test_an_outage_at_the_start_is_no_reason_for_the_model_before(write, uri, monkeypatch):
    write("2")
    down = ArtifactUnavailableError("Cloud Storage does not answer")

    def refuse(*args: object) -> None:
        raise down

    monkeypatch.setattr(type(artifact.place(uri)), "fetch", refuse)
    with pytest.raises(ArtifactUnavailableError):
        first(uri, Model, is_followed=True)


def test_a_file_that_was_replaced_in_place_with_its_times_is_seen(tmp_path):
    """As `cp --preserve` of one of the same length does."""
    one, other = tmp_path / MANIFEST_FILE, tmp_path / "other"
    one.write_text("a")
    other.write_text("b")
    shutil.copystat(one, other)
    before = artifact.place(tmp_path).stamp(MANIFEST_FILE)
    shutil.copy2(other, one)
    assert artifact.place(tmp_path).stamp(MANIFEST_FILE) != before

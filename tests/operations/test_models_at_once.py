"""Promotions to one place at the same time: one is done, the others are refused and change nothing."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from model import artifact
from model.artifact import PREVIOUS
from model.places import LOCK_FILE, BusyError, Place, place
from model.rollout import Change, go_back, promote
from tests.model.serving.artifacts import build_models

Start = Callable[[Callable[[], Change]], "Future[Change]"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A directory with the models a, b, c and d."""
    return build_models(tmp_path_factory.mktemp("models"), "abcd")


@pytest.fixture
def to(models, model_place) -> str:
    """A place with b, and with a before it."""
    for version in "ab":
        promote(str(models / version), model_place)
    return model_place


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets the writer go on that `held` has stopped."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def held(to, gate, monkeypatch) -> Iterator[Start]:
    """Starts a promotion, and returns when it has replaced its first file at the place."""
    kind, is_held = type(place(to)), threading.Event()
    put = kind.put

    def stop(self: Place, name: str, source: Path) -> None:
        put(self, name, source)
        if self.uri == to and not is_held.is_set():
            is_held.set()
            assert gate.wait(60)

    def start(promotion: Callable[[], Change]) -> Future[Change]:
        monkeypatch.setattr(kind, "put", stop)
        first = pool.submit(promotion)
        assert is_held.wait(60)
        return first

    with ThreadPoolExecutor() as pool:
        yield start
        gate.set()


def versions(to: str) -> tuple[str, str]:
    return artifact.read(to).manifest.model_version, artifact.read(f"{to}/{PREVIOUS}").manifest.model_version


@pytest.mark.parametrize("first", ["promote", "back"])
@pytest.mark.parametrize("second", ["promote", "back"])
def test_the_second_of_two_is_refused_and_changes_nothing(models, to, held, gate, first, second):
    def run(which: str, version: str) -> Change:
        return promote(str(models / version), to) if which == "promote" else go_back(to)

    at_work = held(lambda: run(first, "c"))
    with pytest.raises(BusyError, match=f"{to}: expected no other promotion .* try again when it has ended"):
        run(second, "d")
    assert artifact.read(to).manifest.model_version == "b"  # readers have the old one until the new is whole
    gate.set()
    assert at_work.result(60).after.model_version == ("c" if first == "promote" else "a")
    assert versions(to) == (at_work.result().after.model_version, "b")
    assert run(second, "d").before == at_work.result().after
    assert versions(to) == ("d" if second == "promote" else "b", at_work.result().after.model_version)


def test_of_many_that_begin_at_once_each_is_done_or_refused_and_the_place_is_whole(models, to):
    barrier = threading.Barrier(3)

    def run(version: str) -> str:
        barrier.wait(60)
        try:
            return promote(str(models / version), to).after.model_version
        except BusyError:
            return ""

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            done = {version for version in pool.map(run, "acd") if version}
            assert done
            assert artifact.read(to).manifest.model_version in done
            assert artifact.verify(f"{to}/{PREVIOUS}")


def test_a_promotion_that_fails_keeps_nobody_out(models, to, monkeypatch):
    def fail(*args: object) -> None:
        raise artifact.ArtifactUnavailableError("a 503")

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "copy", fail)
        with pytest.raises(artifact.ArtifactUnavailableError):
            promote(str(models / "c"), to)
    assert promote(str(models / "c"), to).after.model_version == "c"


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_promotion_to_cloud_storage_that_was_killed_keeps_others_out_for_two_minutes(
    hours, models, cloud_storage, monkeypatch
):
    """Two minutes by the clock of Cloud Storage, whatever that of this machine says."""
    monkeypatch.setattr(cloud_storage.storage, "ahead", datetime.timedelta(hours=hours))
    to = "gs://bucket/live"
    promote(str(models / "a"), to)
    assert cloud_storage.storage.names("bucket", f"live/{LOCK_FILE}") == []
    cloud_storage.storage.put("bucket", f"live/{LOCK_FILE}", b"of a process that was killed")
    with pytest.raises(BusyError, match="one that was killed counts for 120 s"):
        promote(str(models / "b"), to)
    lock = cloud_storage.storage.objects["bucket", f"live/{LOCK_FILE}"]
    lock.created -= datetime.timedelta(seconds=121)
    assert promote(str(models / "b"), to).after.model_version == "b"
    assert cloud_storage.storage.names("bucket", f"live/{LOCK_FILE}") == []


def test_a_lock_whose_first_answer_was_lost_is_ones_own(models, cloud_storage, monkeypatch):
    storage = cloud_storage.storage
    put = storage.put

    def lose(bucket: str, name: str, *rest: str) -> object:
        answer = put(bucket, name, *rest)
        return put(bucket, name, *rest) if name.endswith(LOCK_FILE) else answer  # sent again: a 412

    monkeypatch.setattr(storage, "put", lose)
    assert promote(str(models / "a"), "gs://bucket/live").after.model_version == "a"
    assert storage.names("bucket", f"live/{LOCK_FILE}") == []


def test_a_way_back_from_nowhere_makes_no_directory(tmp_path):
    with pytest.raises(artifact.ArtifactError, match="expected a previous model"):
        go_back(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []

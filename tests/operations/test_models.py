"""anomaly model: promote, go back, list; on directories, and on Cloud Storage's API."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from features.declaration import FeatureSpec
from model import artifact
from model.artifact import PREVIOUS
from model.manifest import MANIFEST_FILE, MODEL_FILE
from model.places import LocalPlace
from operations.models.__main__ import main
from tests.model.serving.artifacts import build_artifact, build_models


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A directory with the models a, b and c."""
    return build_models(tmp_path_factory.mktemp("models"), "abc")


@pytest.fixture
def to(model_place):
    return model_place


def test_promote_and_back(models, to, capsys):
    assert main(["promote", str(models / "a"), "--to", to]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{to}: version a"
    assert main(["promote", str(models / "b"), "--to", to]) == 0
    out = capsys.readouterr().out.splitlines()
    assert (out[0], out[-1]) == (
        f"{to}: version b instead of a",
        f"To go back to version a: anomaly model promote --back --to {to}",
    )
    # The same model, by its digest: a job that is pinned to it goes on.
    assert artifact.verify(to).digest == artifact.verify(models / "b").digest
    assert main(["promote", "--to", to, "--back"]) == 0
    assert artifact.verify(to).digest == artifact.verify(models / "a").digest
    assert artifact.verify(f"{to}/{PREVIOUS}").digest == artifact.verify(models / "b").digest
    assert main(["promote", "--to", to, "--back"]) == 0
    assert artifact.verify(to).model_version == "b"
    artifact.read(to).load_model()


def test_the_same_model_again_keeps_the_way_back(models, to, capsys):
    for version in "abb":
        assert main(["promote", str(models / version), "--to", to]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{to}: version b was there already"
    assert artifact.verify(f"{to}/{PREVIOUS}").model_version == "a"


def test_without_a_previous_model_there_is_no_way_back(models, to, capsys):
    assert main(["promote", "--back", "--to", to]) == 1
    assert f"error: {to}: expected a previous model in {to}/{PREVIOUS}, got none" in capsys.readouterr().err
    main(["promote", str(models / "a"), "--to", to])
    assert main(["promote", "--back", "--to", to]) == 1


def test_another_feature_spec_is_refused(models, to, tmp_path, capsys):
    main(["promote", str(models / "a"), "--to", to])
    own = artifact.verify(models / "b")
    spec = FeatureSpec.from_json({**own.spec.to_json(), "transaction_id": "key"})
    other = dataclasses.replace(own, spec=spec, model_version="foreign")
    artifact.write(tmp_path / "foreign", other, [models / "b" / MODEL_FILE])
    assert main(["promote", str(tmp_path / "foreign"), "--to", to]) == 1
    assert "version foreign has another feature spec (its roles) than version a at" in capsys.readouterr().err
    assert artifact.verify(to).model_version == "a"


def test_a_damaged_model_does_not_leave_its_directory(models, to, tmp_path, capsys):
    main(["promote", str(models / "a"), "--to", to])
    own = artifact.verify(models / "b")
    (tmp_path / MODEL_FILE).write_text("no TorchScript")
    artifact.write(tmp_path / "damaged", own, [tmp_path / MODEL_FILE])
    assert main(["promote", str(tmp_path / "damaged"), "--to", to]) == 1
    assert f"{MODEL_FILE} is no TorchScript module" in capsys.readouterr().err
    assert artifact.verify(to).model_version == "a"


def test_a_place_with_a_damaged_model_is_repaired(models, to, tmp_path):
    main(["promote", str(models / "a"), "--to", to])
    (tmp_path / "half").write_text("half a network")
    artifact.place(to).put(MODEL_FILE, tmp_path / "half")
    assert main(["promote", str(models / "b"), "--to", to]) == 0
    assert artifact.verify(to).model_version == "b"


@pytest.mark.parametrize("before", ["", "a", "b"])
def test_a_way_back_is_named_only_where_there_is_one(models, to, tmp_path, capsys, before):
    for version in (before, "c") if before else ("c",):
        assert main(["promote", str(models / version), "--to", to]) == 0
    (tmp_path / "half").write_text("half a network")
    artifact.place(to).put(MODEL_FILE, tmp_path / "half")
    capsys.readouterr()
    assert main(["promote", str(models / "b"), "--to", to]) == 0
    back = f"To go back to version a: anomaly model promote --back --to {to}"
    assert capsys.readouterr().out.splitlines() == [
        f"{to}: version b instead of c",
        "Streams and servers with --model_refresh_seconds take it; others keep theirs.",
        "Version c could not be read whole, and is not kept.",
        *([back] if before == "a" else []),
    ]


def test_list(models, to, capsys):
    main(["promote", str(models / "a"), "--to", to])
    main(["promote", str(models / "b"), "--to", to])
    capsys.readouterr()
    assert main(["list", to, str(models), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["version"], row["problem"]) for row in rows] == [
        (to, "b", None),
        (f"{to}/{PREVIOUS}", "a", None),
        (f"{models}/a", "a", None),
        (f"{models}/b", "b", None),
        (f"{models}/c", "c", None),
    ]
    manifest = artifact.verify(models / "b")
    assert rows[0]["medium"] == manifest.thresholds["medium"]
    assert rows[0]["sha256"] == rows[3]["sha256"] == manifest.digest[:12]


def test_list_shows_what_is_wrong_with_a_model(models, tmp_path, capsys):
    main(["promote", str(models / "a"), "--to", str(tmp_path / "live")])
    (tmp_path / "live" / MODEL_FILE).write_text("half")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST_FILE).write_text("{")
    capsys.readouterr()
    assert main(["list", str(tmp_path), "--format", "json"]) == 0
    live, other = json.loads(capsys.readouterr().out)
    assert (live["version"], live["problem"].partition(" has sha256")[0]) == (
        None,
        f"{tmp_path}/live: {MODEL_FILE}",
    )
    assert "not valid JSON" in other["problem"]
    assert main(["list", str(tmp_path / "nowhere")]) == 1
    assert "expected an artifact, or directories with one, got none" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["out/model", "--back"]])
def test_promote_needs_a_model_or_the_way_back(flags, capsys):
    assert main(["promote", *flags, "--to", "out/live"]) == 2
    assert "expected either the directory of a model, or --back" in capsys.readouterr().err


def test_cloud_storage_that_refuses_is_an_error(models, cloud_storage, capsys):
    cloud_storage.storage.forbidden = "bucket/live"
    artifact.write("gs://bucket/live", artifact.verify(models / "a"), [models / "a" / MODEL_FILE])
    assert main(["promote", str(models / "b"), "--to", "gs://bucket/live"]) == 1
    assert "gs://bucket/live: Cloud Storage" in capsys.readouterr().err


@pytest.mark.parametrize("name", [MODEL_FILE, MANIFEST_FILE])
def test_a_copy_that_was_cut_off_is_repaired_by_the_same_promotion(models, tmp_path, capsys, name):
    live = tmp_path / "live"
    for version in "ab":
        assert main(["promote", str(models / version), "--to", str(live)]) == 0
    (live / name).write_bytes((live / name).read_bytes()[:100])
    capsys.readouterr()
    assert main(["promote", str(models / "b"), "--to", str(live)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{live}: version b"
    assert artifact.read(live).manifest.model_version == "b"
    assert artifact.read(live / PREVIOUS).manifest.model_version == "a"


def test_a_model_that_cannot_be_read_now_is_not_written_over(models, tmp_path, monkeypatch, capsys):
    live = str(tmp_path / "live")
    assert main(["promote", str(models / "a"), "--to", live]) == 0
    read = artifact.read

    def refuse(uri: str, *args: str, **more: bool) -> artifact.Artifact:
        if str(uri) == live:
            raise artifact.ArtifactUnavailableError(f"{uri}: a 503")
        return read(uri, *args, **more)

    monkeypatch.setattr(artifact, "read", refuse)
    assert main(["promote", str(models / "b"), "--to", live]) == 1
    assert "a 503" in capsys.readouterr().err
    assert read(live).manifest.model_version == "a"


class _Killed(BaseException):
    """The process ends here, without any of its own steps after it."""


@pytest.mark.parametrize("at", range(13))
def test_a_way_back_that_is_killed_is_continued_by_the_same_command(models, tmp_path, monkeypatch, at):
    live = str(tmp_path / "live")
    for version in "ab":
        assert main(["promote", str(models / version), "--to", live]) == 0
    put, written = LocalPlace.put, []

    def stop(self: LocalPlace, name: str, source: Path) -> None:
        if len(written) == at:
            raise _Killed
        written.append(name)
        put(self, name, source)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "put", stop)
        try:
            main(["promote", "--back", "--to", live])
        except _Killed:
            is_killed = True
        else:
            is_killed = False
    # All files of the model that comes, of the one that goes, and of the one in place.
    assert is_killed == (at < 3 * (len(artifact.peek(models / "a").files) + 1))
    assert artifact.read(live).manifest.model_version == ("b" if is_killed else "a")
    if is_killed:
        assert main(["promote", "--back", "--to", live]) == 0
    assert artifact.read(live).manifest.model_version == "a"
    assert artifact.read(f"{live}/{PREVIOUS}").manifest.model_version == "b"
    assert not list(Path(live).rglob("spare/*"))
    assert main(["promote", "--back", "--to", live]) == 0
    assert artifact.read(live).manifest.model_version == "b"


def test_a_promotion_drops_the_rest_of_a_way_back_that_was_killed(models, to, monkeypatch):
    for version in "ab":
        assert main(["promote", str(models / version), "--to", to]) == 0
    with monkeypatch.context() as patch:

        def stop(*args: object) -> None:
            raise _Killed

        patch.setattr(artifact, "copy", stop)
        with pytest.raises(_Killed):
            main(["promote", "--back", "--to", to])
    assert artifact.verify(f"{to}/{PREVIOUS}/spare").model_version == "a"
    assert main(["promote", str(models / "a"), "--to", to]) == 0
    assert not artifact.place(f"{to}/{PREVIOUS}/spare").stamp(MANIFEST_FILE)
    assert main(["promote", "--back", "--to", to]) == 0
    assert artifact.verify(to).model_version == "b"


def test_two_promotions_at_once_do_not_both_say_that_they_are_done(models, to, monkeypatch, capsys):
    assert main(["promote", str(models / "a"), "--to", to]) == 0
    kind = type(artifact.place(to))
    put = kind.put

    def beside(self: artifact.Place, name: str, source: Path) -> None:
        put(self, name, source)
        if (self.uri, name) == (to, MANIFEST_FILE):
            put(self, MODEL_FILE, models / "a" / MODEL_FILE)  # by the other, whose manifest was there before

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "put", beside)
        assert main(["promote", str(models / "b"), "--to", to]) == 1
    said = capsys.readouterr()
    assert f"error: {to}: expected version b, which was written just now, got files of another" in said.err
    assert not said.out


def test_list_asks_cloud_storage_for_manifests_alone(models, cloud_storage):
    for version in "ab":
        assert main(["promote", str(models / version), "--to", f"gs://bucket/models/{version}"]) == 0
    assert artifact.place("gs://bucket/models").artifacts() == ["a", "b"]
    assert cloud_storage.storage.listed == [[f"models/{version}/{MANIFEST_FILE}" for version in "ab"]]


def test_another_model_of_the_same_version_is_refused(models, to, tmp_path, capsys):
    assert main(["promote", str(models / "a"), "--to", to]) == 0
    build_artifact(tmp_path / "again", "a", seed=5)
    assert main(["promote", str(tmp_path / "again"), "--to", to]) == 1
    assert "expected another version than a, which another model there has" in capsys.readouterr().err
    assert artifact.verify(to).digest == artifact.verify(models / "a").digest


def test_a_full_disk_leaves_both_models_and_no_rest(models, tmp_path, small_disk, capsys):
    live = small_disk / "live"
    own = artifact.read(models / "a")
    for version in "ab":  # the network alone: an archive would not fit twice
        manifest = dataclasses.replace(own.manifest, model_version=version)
        artifact.write(tmp_path / version, manifest, [own.model_path])
        assert main(["promote", str(tmp_path / version), "--to", str(live)]) == 0
    room = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(room - 45_000))
    before = shutil.disk_usage(small_disk).free
    assert main(["promote", "--back", "--to", str(live)]) == 1
    assert "No space left on device; make room there" in capsys.readouterr().err
    assert artifact.read(live).manifest.model_version == "b"
    assert artifact.read(live / PREVIOUS).manifest.model_version == "a"
    assert shutil.disk_usage(small_disk).free >= before - 4096  # a directory is made
    (small_disk / "filler").unlink()
    assert main(["promote", "--back", "--to", str(live)]) == 0
    assert artifact.read(live).manifest.model_version == "a"

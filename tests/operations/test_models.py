"""anomaly model: promote, go back, list; on directories, and on Cloud Storage's API."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from features.declaration import FeatureSpec
from model import artifact
from model.artifact import PREVIOUS
from model.manifest import MANIFEST_FILE, MODEL_FILE
from operations.models.__main__ import main
from tests.cloud.google_server import google_server
from tests.model.serving.artifacts import build_artifact


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A directory with the models a and b."""
    root = tmp_path_factory.mktemp("models")
    for seed, version in enumerate("ab"):
        build_artifact(root / version, version, seed=seed)
    return root


@pytest.fixture(params=["local", "gs"])
def to(request, tmp_path, monkeypatch):
    if request.param == "local":
        yield str(tmp_path / "live")
        return
    with google_server() as google:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "local-project")
        google.storage.buckets["bucket"] = {"name": "bucket"}
        yield "gs://bucket/live"


def test_promote_and_back(models, to, capsys):
    assert main(["promote", str(models / "a"), "--to", to]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{to}: version a"
    assert main(["promote", str(models / "b"), "--to", to]) == 0
    out = capsys.readouterr().out.splitlines()
    assert (out[0], out[-1]) == (
        f"{to}: version b instead of a",
        f"To go back: anomaly model promote --back --to {to}",
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


def test_cloud_storage_that_refuses_is_an_error(models, monkeypatch, capsys):
    with google_server() as google:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "local-project")
        google.storage.buckets["bucket"] = {"name": "bucket"}
        google.storage.forbidden = "bucket/live"
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

    def refuse(uri: str, *args: str) -> artifact.Artifact:
        if str(uri) == live:
            raise artifact.ArtifactUnavailableError(f"{uri}: a 503")
        return read(uri, *args)

    monkeypatch.setattr(artifact, "read", refuse)
    assert main(["promote", str(models / "b"), "--to", live]) == 1
    assert "a 503" in capsys.readouterr().err
    assert read(live).manifest.model_version == "a"

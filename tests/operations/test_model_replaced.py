"""Commands that take a model from a place where another one comes at the same time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from model import artifact, package
from model.manifest import MODEL_FILE
from model.rollout import promote
from model.serving.torchserve import archives
from model.serving.torchserve.config import Layout
from model.serving.vertex import registry
from model.serving.vertex.session import Actions
from operations.models import __main__ as models
from operations.models import recalibrate
from tests.model.serving.artifacts import build_artifact

needs_archiver = pytest.mark.skipif(
    not package.archive_available(), reason="the archive needs torch-model-archiver"
)


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> dict[str, artifact.Artifact]:
    root = tmp_path_factory.mktemp("models")
    return {version: build_artifact(root / version, version, seed=seed) for seed, version in enumerate("ab")}


@pytest.fixture
def live(versions, tmp_path, monkeypatch) -> str:
    """A place with version "a", which is that of "b" from the end of the first reading on."""
    uri = str(tmp_path / "live")
    promote(versions["a"].uri, uri)
    read = artifact.read

    def replaced(source: str | Path, *rest: str, **more: bool) -> artifact.Artifact:
        found = read(source, *rest, **more)
        if str(source) == uri:
            monkeypatch.setattr(artifact, "read", read)
            promote(versions["b"].uri, uri)
        return found

    monkeypatch.setattr(artifact, "read", replaced)
    return uri


def network_of(archive: Path) -> bytes:
    with zipfile.ZipFile(archive) as packed:
        return packed.read(MODEL_FILE)


def test_recalibrate_keeps_the_network_whose_scores_it_has(versions, live, tmp_path, monkeypatch, capsys):
    scores = [{"transactions": 30_000, "least": score, "most": score} for score in (1.0, 2.0)]
    monkeypatch.setattr(recalibrate, "_ask", lambda *args: scores)
    output = tmp_path / "recalibrated"
    flags = ["recalibrate", "--dataset=local-project.d", f"--model={live}", f"--output={output}"]
    assert models.main(flags) == 0
    made = artifact.read(output)
    assert made.manifest.training["recalibrated"]["from"] == "a"
    assert made.module == versions["a"].module
    if package.archive_available():
        assert network_of(output / artifact.ARCHIVE_FILE) == versions["a"].module


@needs_archiver
def test_package_packs_the_network_whose_version_it_names(versions, live, tmp_path, capsys):
    assert package.main([f"--model={live}", f"--output={tmp_path}", "--formats=mar"]) == 0
    assert network_of(tmp_path / artifact.ARCHIVE_FILE) == versions["a"].module


@needs_archiver
def test_torchserve_gets_the_archive_whose_version_it_names(versions, live, tmp_path):
    layout = Layout(tmp_path / "run")
    layout.model_store.mkdir(parents=True)
    name = archives.add_archive(live, layout)
    assert name.endswith("-a.mar")
    assert network_of(layout.model_store / name) == versions["a"].module


@needs_archiver
def test_the_registry_gets_the_files_whose_version_it_names(versions, live, cloud_storage):
    source = artifact.read(live, copied=True)
    uri, _ = registry._stage(source, "gs://bucket/staging", True, Actions(dry_run=False))
    assert uri == "gs://bucket/staging/pytorch_autoencoder/a"
    assert artifact.read(uri).module == versions["a"].module


@pytest.mark.parametrize("name", ["live/", "./live", "other/../live", "link"])
def test_recalibrate_knows_its_model_by_another_name(versions, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    promote(versions["a"].uri, "live")
    Path("link").symlink_to("live")
    flags = ["recalibrate", "--dataset=local-project.d", "--model=live", f"--output={name}"]
    assert models.main(flags) == 1
    assert "--output: expected another directory than --model" in capsys.readouterr().err

"""Readers of an artifact that is being written: they see the old one or the new one, and nothing between."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from model import artifact
from model.artifact import PREVIOUS, ArtifactError, Manifest
from model.manifest import MANIFEST_FILE, MODEL_FILE

WRITER = """
import dataclasses, sys
from pathlib import Path
from model import artifact
directory, files = sys.argv[1], [Path(path) for path in sys.argv[2:]]
manifest = artifact.peek(directory)
for i in range(10**6):
    versioned = dataclasses.replace(manifest, model_version=files[i % 2].parent.name)
    artifact.write(directory, versioned, [files[i % 2]])
"""


@pytest.fixture
def contents(tmp_path: Path) -> list[Path]:
    """Two files of a model, each in a directory with the name of its version."""
    paths = [tmp_path / version / MODEL_FILE for version in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode() * 20_000)
    return paths


def check_whole(found: artifact.Artifact) -> str:
    version = found.manifest.model_version
    assert found.module == version.encode() * 20_000
    assert artifact.sha256(found.model_path) == found.manifest.files[MODEL_FILE]
    return version


@pytest.mark.integration
def test_readers_beside_a_writer_in_a_loop_read_whole_artifacts(contents, tmp_path, trained):
    place = tmp_path / "live"
    artifact.write(place, dataclasses.replace(trained.manifest, model_version="a"), contents[:1])
    arguments = [sys.executable, "-c", WRITER, str(place), *map(str, contents)]
    writer = subprocess.Popen(arguments, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    versions: set[str] = set()
    errors: list[Exception] = []
    reads = []

    def read() -> None:
        while len(reads) < 200 or len(versions) < 2:
            try:
                found = artifact.read(place)
                # The directory itself goes on changing; the content that was verified does not.
                version = found.manifest.model_version
                assert found.module == version.encode() * 20_000
                versions.add(version)
            except Exception as error:
                errors.append(error)
                return
            reads.append(1)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=300)
    is_alive = writer.poll() is None
    writer.kill()
    _, log = writer.communicate()
    assert is_alive, log
    assert not errors
    assert versions == {"a", "b"}


class _Killed(BaseException):
    pass


def killed_at(
    monkeypatch: pytest.MonkeyPatch, kind: type, place: str, name: str, write: Callable[[], None]
) -> None:
    """Ends a writer before it puts this file into this place."""
    put = kind.put

    def stop(self: artifact.Place, written: str, source: Path) -> None:
        if (self.uri, written) == (place, name):
            raise _Killed
        put(self, written, source)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "put", stop)
        with pytest.raises(_Killed):
            write()


@pytest.fixture
def live(model_place, contents, trained):
    """A place that holds version "a", local or on Cloud Storage, and a function that writes a version."""
    manifest, uri = trained.manifest, model_place

    def write(version: str) -> None:
        files = [path for path in contents if path.parent.name == version]
        artifact.write(uri, dataclasses.replace(manifest, model_version=version), files)

    write("a")
    return uri, write, type(artifact.place(uri))


def test_a_writer_that_is_killed_before_its_manifest_leaves_the_old_artifact_whole(live, monkeypatch):
    uri, write, kind = live
    killed_at(monkeypatch, kind, uri, MANIFEST_FILE, lambda: write("b"))
    found = artifact.read(uri)
    assert check_whole(found) == "a"
    # The directory holds a file of "b", so the reader has a copy of its own, which goes with it.
    copy = found.local_dir
    assert copy.is_dir()
    del found
    assert not copy.exists()
    write("b")
    assert check_whole(artifact.read(uri)) == "b"
    assert check_whole(artifact.read(f"{uri}/{PREVIOUS}")) == "a"


def test_a_writer_that_is_killed_in_the_copy_of_the_old_one_leaves_it_whole(live, monkeypatch):
    uri, write, kind = live
    write("b")
    killed_at(monkeypatch, kind, f"{uri}/{PREVIOUS}", MANIFEST_FILE, lambda: write("a"))
    assert check_whole(artifact.read(uri)) == "b"
    write("a")
    assert check_whole(artifact.read(f"{uri}/{PREVIOUS}")) == "b"


def test_the_same_artifact_again_keeps_the_previous_one(live):
    uri, write, _ = live
    write("b")
    write("b")
    assert check_whole(artifact.read(f"{uri}/{PREVIOUS}")) == "a"


def test_a_file_that_neither_place_has_is_an_error_that_names_it(live, monkeypatch):
    uri, write, kind = live
    killed_at(monkeypatch, kind, uri, MANIFEST_FILE, lambda: write("b"))
    for directory in (uri, f"{uri}/{PREVIOUS}"):
        artifact.place(directory).put(MODEL_FILE, Path(__file__))
    with pytest.raises(ArtifactError, match=rf"live: {MODEL_FILE} has sha256 .*copy or train it again"):
        artifact.read(uri)


def test_a_reader_whose_manifest_is_gone_starts_again(contents, tmp_path, trained, monkeypatch):
    uri = str(tmp_path / "live")
    versions = {path.parent.name: path for path in contents}

    def write(version: str) -> None:
        artifact.write(uri, dataclasses.replace(trained.manifest, model_version=version), [versions[version]])

    write("a")
    read = artifact._manifest
    seen: list[str] = []

    def slow(source: artifact.Place, digest: str = "") -> tuple[Manifest, bytes]:
        manifest, text = read(source, digest)
        if source.uri == uri and not seen:
            seen.append(manifest.model_version)
            monkeypatch.setattr(artifact, "_manifest", read)
            write("b")
            # As the next writer does, which keeps "b".
            artifact.place(uri).child(PREVIOUS).put(MODEL_FILE, versions["b"])
        return manifest, text

    monkeypatch.setattr(artifact, "_manifest", slow)
    assert check_whole(artifact.read(uri)) == "b"
    assert seen == ["a"]


def test_a_manifest_that_comes_back_while_it_is_read_is_no_damage(live, monkeypatch):
    """From "a" to "b" and back: the reader has seen files of "b" beside the manifest of "a"."""
    uri, write, _ = live
    fetch, turns = artifact._fetch, []

    def slow(source: artifact.Place, name: str, *more: object) -> None:
        if not turns:
            turns.append(1)
            write("b")
            # A third writer keeps its own.
            artifact.place(uri).child(PREVIOUS).put(MODEL_FILE, Path(__file__))
            try:
                fetch(source, name, *more)
            finally:
                write("a")
            return
        fetch(source, name, *more)

    monkeypatch.setattr(artifact, "_fetch", slow)
    found = artifact.read(uri, copied=True)
    assert turns
    assert check_whole(found) == "a"


def test_a_copy_stays_when_another_model_comes(live):
    uri, write, _ = live
    found = artifact.read(uri, copied=True)
    write("b")
    assert check_whole(found) == "a"

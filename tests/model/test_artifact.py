from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
import torch

from common.writing import FileWriteError
from features.ulb import FEATURES
from model import artifact, places
from model.artifact import (
    ARCHIVE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SCHEMA_FILE,
    ArtifactError,
    Manifest,
    ReplacedError,
)


@pytest.fixture
def copy(trained_dir: Path, tmp_path: Path) -> Path:
    """A copy of the trained artifact that a test may damage."""
    return Path(shutil.copytree(trained_dir, tmp_path / "copy"))


def edit(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        manifest.pop(key) if value is None else manifest.update({key: value})
    path.write_text(json.dumps(manifest))


def test_the_trained_artifact_holds_what_the_design_names(trained):
    assert set(trained.manifest.files) == {MODEL_FILE, ARCHIVE_FILE, SCHEMA_FILE}
    assert trained.manifest.features == FEATURES
    assert trained.manifest.model_name == "pytorch_autoencoder"
    assert trained.manifest.model_version == "test-1"
    assert 0 < trained.manifest.thresholds["medium"] <= trained.manifest.thresholds["high"]
    assert trained.manifest.training["seed"] == 0
    assert trained.manifest.provenance["source"] == "synthetic"
    assert trained.manifest.versions["torch"] == torch.__version__
    assert trained.manifest.figures["scores"]["anomaly_score"]["auroc"] > 0.5


def test_manifest_survives_json(trained):
    again = Manifest.from_json(trained.manifest.to_json())
    assert again == trained.manifest
    assert again.to_json() == trained.manifest.to_json()


def test_the_digest_names_the_manifest_and_is_no_part_of_it(copy):
    digest = hashlib.sha256((copy / MANIFEST_FILE).read_bytes()).hexdigest()
    manifest = artifact.verify(copy)
    assert manifest.digest == digest
    assert "digest" not in json.loads(manifest.to_json())
    assert artifact.read(copy, digest).manifest == manifest


def test_an_artifact_that_was_replaced_is_refused(copy):
    digest = artifact.verify(copy).digest
    edit(copy, model_version="of-another-day")
    with pytest.raises(ReplacedError) as refused:
        artifact.read(copy, digest)
    assert str(refused.value) == (
        f"{copy}: expected the model that was there at launch (manifest.json with sha256 {digest}), got "
        f"version of-another-day (sha256 {artifact.verify(copy).digest}); launch the job again to score with "
        "it, or put the old model back"
    )


def test_an_altered_file_is_refused(copy):
    with (copy / MODEL_FILE).open("ab") as f:
        f.write(b"\0")
    with pytest.raises(ArtifactError, match=f"{MODEL_FILE} has sha256"):
        artifact.read(copy)


@pytest.mark.parametrize("name", [MODEL_FILE, ARCHIVE_FILE])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is listed"):
        artifact.verify(copy)


def test_a_directory_without_manifest_says_how_to_train(tmp_path):
    with pytest.raises(ArtifactError, match=r"anomaly train --output"):
        artifact.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"features": [*FEATURES[:-2], "Amount", "V28"]}, "first difference at position 28"),
        ({"features": list(FEATURES[:-1])}, "29 of them"),
        ({"features": None}, "'features' is missing"),
        ({"thresholds": {"medium": 1.0}}, "no threshold for severity 'high'"),
        ({"thresholds": {"medium": "low", "high": 2.0}}, "could not convert"),
        ({"files": {}}, f"does not list {MODEL_FILE}"),
        ({"files": {MODEL_FILE: "0" * 64, "../secret": "0" * 64}}, "not a plain file name"),
        ({"files": {MODEL_FILE: "0" * 64, "a\0b": "0" * 64}}, "not a plain file name"),
        ({"files": {MODEL_FILE: "0" * 64, "\x1b[2J": "0" * 64}}, "not a plain file name"),
        ({"files": {MODEL_FILE: "\x1b[2J"}}, "sha256 of final_model_traced.pt: expected DIGEST"),
        ({"quantiles": {"probabilities": [0.0, 1.0], "scores": [2.0, 1.0]}}, "must not decrease"),
        ({"quantiles": {"probabilities": [0.0, 1.5], "scores": [1.0, 2.0]}}, "between 0 and 1"),
        ({"quantiles": {"probabilities": [0.0, 1.0], "scores": [1.0, float("inf")]}}, "must be finite"),
        ({"quantiles": {"probabilities": [[0.0], [1.0]], "scores": [1.0, 2.0]}}, "float"),
        ({"thresholds": {"medium": 2.0, "high": 1.0}}, "must ascend"),
        ({"thresholds": {"medium": float("nan"), "high": 1.0}}, "must be finite"),
        ({"thresholds": {"medium": 1.0, "high": int("9" * 400)}}, "too large"),
        ({"format": 99}, "format 2"),
        ({"model_version": None}, "'model_version' is missing"),
        ({"model_name": "../../x"}, "model_name: expected NAME .*, got '../../x'"),
        ({"model_version": "a" * 64}, "model_version: .* has 64 characters"),
    ],
)
def test_a_wrong_manifest_is_refused(copy, changes, text):
    edit(copy, **changes)
    with pytest.raises(ArtifactError, match=text):
        artifact.read(copy)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_manifest_that_is_not_an_object_is_refused(copy, text):
    (copy / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(ArtifactError, match=MANIFEST_FILE):
        artifact.read(copy)


def test_a_manifest_that_is_far_too_large_is_not_read(copy):
    with (copy / MANIFEST_FILE).open("ab") as f:
        f.truncate(600 * 1024**2)
    with pytest.raises(ArtifactError, match=r"has 629,145,600 bytes, expected at most 16,777,216"):
        artifact.read(copy)


class _ReadsFiles(torch.nn.Module):
    """A model that maps a file of the machine that loads it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", False, 1, dtype=torch.uint8)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_a_model_that_does_more_than_score_is_not_loaded(trained, tmp_path):
    """Whoever can write the files can write their sha256 too."""
    example = {"forward": torch.zeros(1, 30), "score": torch.zeros(1, 30)}
    torch.jit.save(torch.jit.trace_module(_ReadsFiles(), example), tmp_path / MODEL_FILE)
    written = artifact.write(tmp_path / "out", trained.manifest, [tmp_path / MODEL_FILE])
    with pytest.raises(ArtifactError, match=r"final_model_traced.pt uses aten::from_file, which no model"):
        written.load_model()


def test_a_pickle_inside_the_archive_is_not_run(trained, tmp_path):
    """The archive of a module holds data.pkl, which could name any function."""
    source = trained.model_path
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(tmp_path / MODEL_FILE, "w") as spoiled:
        for entry in whole.namelist():
            content = whole.read(entry)
            if entry.endswith("data.pkl"):
                content = pickle.dumps(_Runs(tmp_path / "run"), protocol=2)
            spoiled.writestr(entry, content)
    written = artifact.write(tmp_path / "out", trained.manifest, [tmp_path / MODEL_FILE])
    with pytest.raises(ArtifactError, match=f"{MODEL_FILE} is no TorchScript module"):
        written.load_model()
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass
class _Runs:
    path: Path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_file_that_is_no_module_is_named(trained, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(b"garbage")
    written = artifact.write(tmp_path / "out", trained.manifest, [tmp_path / MODEL_FILE])
    with pytest.raises(ArtifactError, match=f"{MODEL_FILE} is no TorchScript module"):
        written.load_model()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_a_foreign_module_is_named(trained, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(30, 1)), tmp_path / MODEL_FILE)
    written = artifact.write(tmp_path / "out", trained.manifest, [tmp_path / MODEL_FILE])
    with pytest.raises(ArtifactError, match=f"module in {MODEL_FILE} has no method score"):
        written.load_model()


def test_write_needs_the_model_file(trained, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("x")
    with pytest.raises(ArtifactError, match=MODEL_FILE):
        artifact.write(tmp_path / "out", trained.manifest, [other])
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_an_output_that_is_no_directory_is_named(trained, tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"file.*: cannot be written: .*name a directory"):
        artifact.write(f"{tmp_path}/file{below}", trained.manifest, [trained.model_path])


def test_a_full_or_broken_disk_names_the_file(trained, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(FileWriteError, match=r"cannot write .*out.*No space left"):
        artifact.write(tmp_path / "out", trained.manifest, [trained.model_path])


def test_writing_into_the_same_directory_renews_the_manifest(copy):
    loaded = artifact.read(copy)
    renamed = dataclasses.replace(loaded.manifest, model_version="2")
    artifact.write(copy, renamed, [copy / MODEL_FILE])
    again = artifact.read(copy)
    assert again.manifest.model_version == "2"
    assert set(again.manifest.files) == {MODEL_FILE, SCHEMA_FILE}


class _Storage(BaseHTTPRequestHandler):
    """Just enough of Cloud Storage's JSON API for the real client's uploads and downloads."""

    objects: dict[str, bytes]

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        body = self.objects.get(unquote(urlsplit(self.path).path.split("/b/", 1)[1]))
        self._answer(404 if body is None else 200, body or b"{}", "application/octet-stream")

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = self.headers["Content-Type"].split("boundary=")[1].strip('"').strip("'").encode()
        meta, content = raw.split(b"--" + boundary)[1:3]
        name = json.loads(meta.split(b"\r\n\r\n", 1)[1])["name"] if b"\r\n\r\n" in meta else None
        name = name or parse_qs(url.query)["name"][0]
        bucket = url.path.split("/b/", 1)[1].split("/", 1)[0]
        self.objects[f"{bucket}/o/{name}"] = content.split(b"\r\n\r\n", 1)[1][:-2]
        self._answer(200, json.dumps({"name": name, "bucket": bucket}).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def storage(monkeypatch) -> dict[str, bytes]:
    objects: dict[str, bytes] = {}
    handler = type("Handler", (_Storage,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "local-project")
    yield objects
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_artifact_on_cloud_storage_is_written_read_and_scored(trained, storage):
    uri = "gs://some-bucket/models/v1"
    artifact.write(uri, trained.manifest, [trained.model_path, trained.local_dir / ARCHIVE_FILE])
    assert set(storage) == {
        f"some-bucket/o/models/v1/{name}" for name in (MANIFEST_FILE, MODEL_FILE, ARCHIVE_FILE, SCHEMA_FILE)
    }
    loaded = artifact.read(uri)
    assert loaded.uri == uri
    assert loaded.manifest == trained.manifest
    rows = torch.from_numpy(np.zeros((2, 30), np.float32))
    with torch.no_grad():
        assert torch.equal(loaded.load_model().score(rows)[0], trained.load_model().score(rows)[0])


def test_an_artifact_that_was_replaced_on_cloud_storage_is_refused_before_its_model_is_read(trained, storage):
    uri = "gs://some-bucket/models/v1"
    files = [trained.model_path, trained.local_dir / ARCHIVE_FILE]
    artifact.write(uri, trained.manifest, files)
    digest = artifact.verify(uri).digest
    artifact.write(uri, dataclasses.replace(trained.manifest, model_version="2"), files)
    del storage[f"some-bucket/o/models/v1/{MODEL_FILE}"]
    with pytest.raises(ReplacedError, match="got version 2 "):
        artifact.read(uri, digest)


def test_a_missing_object_on_cloud_storage_is_named(trained, storage):
    with pytest.raises(ArtifactError, match=f"No {MANIFEST_FILE} in gs://some-bucket/none; train"):
        artifact.read("gs://some-bucket/none")
    artifact.write("gs://some-bucket", trained.manifest, [trained.model_path])
    del storage[f"some-bucket/o/{MODEL_FILE}"]
    with pytest.raises(ArtifactError, match=f"{MODEL_FILE} .*is missing"):
        artifact.read("gs://some-bucket")
    with pytest.raises(ArtifactError, match="expected gs://bucket"):
        artifact.read("gs:///x")


def test_a_failed_upload_keeps_the_artifact(trained, storage, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refuse(*args: object) -> None:
        raise artifact.ArtifactUnavailableError("gs://some-bucket/m: Cloud Storage: 403")

    monkeypatch.setattr(places.CloudPlace, "put", refuse)
    with pytest.raises(artifact.ArtifactUnavailableError, match=r"403; the artifact is kept in ") as caught:
        artifact.write("gs://some-bucket/m", trained.manifest, [trained.model_path])
    kept = str(caught.value).split("kept in ")[1].split(":")[0]
    assert str(caught.value).endswith(f"run anomaly model promote {kept} --to gs://some-bucket/m")
    assert artifact.verify(kept).model_version == trained.manifest.model_version


def test_a_cloud_output_is_checked_before_anything_is_written(storage, monkeypatch):
    artifact.check_writable("gs://some-bucket/models")
    with pytest.raises(ArtifactError, match="expected gs://bucket"):
        artifact.check_writable("gs://")
    with pytest.raises(ArtifactError, match=r"gs://_x_/m: .*name a bucket"):
        artifact.check_writable("gs://_x_/m")

    def none(*args: object, **kwargs: object) -> None:
        from google.auth.exceptions import DefaultCredentialsError

        raise DefaultCredentialsError("no credentials")

    monkeypatch.setattr("google.cloud.storage.Client", none)
    with pytest.raises(artifact.ArtifactUnavailableError, match=r"gs://some-bucket/models: .*no credentials"):
        artifact.check_writable("gs://some-bucket/models")
    assert not storage

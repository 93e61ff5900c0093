"""The model artifact: a directory, local or gs://, that every pipeline and server loads.

    final_model_traced.pt     TorchScript with `forward` and `score`
    pytorch_autoencoder.mar   the same model packed for TorchServe
    instance_schema.yaml      the instances that it takes, for the registry of Vertex AI
    manifest.json             what the model is, its thresholds, and the sha256 of the files

`read` checks every listed file and the feature order before anything is loaded. So a damaged or foreign
artifact is a clear error at the start, and never a wrong score.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from features.schema import openapi_3_0
from model.manifest import MANIFEST_FILE, MODEL_FILE, ArtifactError, Manifest

if TYPE_CHECKING:
    import torch

ARCHIVE_FILE: Final = "pytorch_autoencoder.mar"
SCHEMA_FILE: Final = "instance_schema.yaml"
"""A Schema Object of OpenAPI 3.0.2 in YAML, for Vertex AI, in the form of JSON, which YAML reads."""
MODEL_NAME: Final = "pytorch_autoencoder"
MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024


class ReplacedError(ArtifactError):
    """Another artifact took the place of the one that was there before."""


class ArtifactUnavailableError(ArtifactError):
    """Cloud Storage refuses or does not answer, or credentials are missing; this may pass."""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact.

    Attributes:
      uri: where it was read from.
      manifest: its manifest.
      local_dir: a local directory with the files; the artifact's own, or a copy of the one on Cloud Storage.
    """

    uri: str
    manifest: Manifest
    local_dir: Path

    @property
    def model_path(self) -> Path:
        """The TorchScript file."""
        return self.local_dir / MODEL_FILE

    def load_model(self, freeze: bool = True, device: str = "cpu") -> torch.jit.ScriptModule:
        """Loads the TorchScript module in eval mode; see `model.torchscript.load`.

        Raises:
          ArtifactError: the file is no TorchScript module with `forward` and `score`, or one that does more
        than the network of this package: an artifact is code, and a foreign one could read files.
        """
        # Deferred: reading a manifest must not cost the import of torch.
        from model import torchscript

        try:
            # Frozen below: the error of freezing a module without `score` names no cause.
            module = torchscript.load(self.model_path, freeze=False, device=device)
        except Exception as e:  # torch's errors, and those of the pickle inside
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise ArtifactError(f"{self.uri}: {MODEL_FILE} is no TorchScript module: {reason}") from e
        if foreign := torchscript.foreign_operators(module):
            raise ArtifactError(
                f"{self.uri}: {MODEL_FILE} uses {', '.join(foreign)}, which no model of this package does; "
                "it is not loaded. Train it with anomaly train"
            )
        missing = [name for name in torchscript.METHODS if not hasattr(module, name)]
        if missing:
            raise ArtifactError(
                f"{self.uri}: the module in {MODEL_FILE} has no method {' and no '.join(missing)}; train it "
                "with anomaly train"
            )
        width, expected = len(getattr(module, "mean", ())), len(self.manifest.spec.inputs)
        if width != expected:
            raise ArtifactError(
                f"{self.uri}: the graph in {MODEL_FILE} has {width} inputs, and the feature spec in "
                f"{MANIFEST_FILE} makes {expected}: they are of different models; copy or train it again"
            )
        return torchscript.frozen(module) if freeze else module


def sha256(path: Path) -> str:
    """The sha256 of a file, lower-case hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def is_gcs(uri: str) -> bool:
    """Tells whether `uri` names an object or directory on Cloud Storage."""
    return uri.startswith("gs://")


def read(uri: str | Path, digest: str = "") -> Artifact:
    """Reads and verifies the artifact at `uri`, a local directory or gs://bucket/prefix.

    An artifact on Cloud Storage is downloaded to a temporary directory, which lasts as long as the process.

    Args:
      uri: the place.
      digest: of the manifest that must be there, as `Manifest.digest` gave it earlier; "" takes any.

    Raises:
      ReplacedError: there is another manifest than the one of `digest`.
      ArtifactError: the manifest or a listed file is missing, a sha256 or the feature order differs.
    """
    uri = str(uri)
    local_dir = _download(uri, digest) if is_gcs(uri) else Path(uri)
    path = local_dir / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError(f"No {MANIFEST_FILE} in {uri}; train a model with anomaly train --output {uri}")
    manifest = _manifest(uri, path, digest)
    for name, expected in manifest.files.items():
        file = local_dir / name
        if not file.is_file():
            raise ArtifactError(f"{uri}: {name} is listed in {MANIFEST_FILE} and is missing")
        actual = sha256(file)
        if actual != expected:
            raise ArtifactError(
                f"{uri}: {name} has sha256 {actual}, {MANIFEST_FILE} says {expected}; copy or train it again"
            )
    return Artifact(uri=uri, manifest=manifest, local_dir=local_dir)


def _manifest(uri: str, path: Path, digest: str) -> Manifest:
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        most = f"expected at most {MAX_MANIFEST_BYTES:,}"
        raise ArtifactError(f"{uri}: {MANIFEST_FILE} has {size:,} bytes, {most}")
    manifest = Manifest.from_json(path.read_bytes())
    if digest and manifest.digest != digest:
        raise ReplacedError(
            f"{uri}: expected the model that was there at launch ({MANIFEST_FILE} with sha256 {digest}), got "
            f"version {manifest.model_version} (sha256 {manifest.digest}); launch the job again to score "
            "with it, or put the old model back"
        )
    return manifest


def verify(uri: str | Path) -> Manifest:
    """Checks the artifact at `uri` as `read` does, and returns its manifest."""
    return read(uri).manifest


def write(uri: str | Path, manifest: Manifest, files: Iterable[Path]) -> Artifact:
    """Writes an artifact: copies `files` under their names, then the manifest with their sha256.

    SCHEMA_FILE is made anew. The manifest goes last, so that a reader never sees one before its files.

    Args:
      uri: a local directory, made when missing, or gs://bucket/prefix.
      manifest: its `files` are replaced.
      files: local files; MODEL_FILE must be among them.

    Raises:
      ArtifactError: MODEL_FILE is not among the files, the manifest is not consistent, or `uri` cannot be
        written to; where an upload failed it names the local directory in which the artifact is kept.
    """
    uri = str(uri)
    local_dir = _temporary_directory() if is_gcs(uri) else Path(uri)
    paths = [path for path in map(Path, files) if path.name != SCHEMA_FILE]
    schema = json.dumps(openapi_3_0(manifest.spec), indent=1).encode()
    sums = {path.name: sha256(path) for path in paths} | {SCHEMA_FILE: hashlib.sha256(schema).hexdigest()}
    manifest = dataclasses.replace(manifest, files=sums)
    manifest.check()
    check_writable(local_dir)
    try:
        for path in paths:
            if path.resolve() != (local_dir / path.name).resolve():
                shutil.copyfile(path, local_dir / path.name)
        (local_dir / SCHEMA_FILE).write_bytes(schema)
        (local_dir / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    except OSError as e:
        raise ArtifactError(f"{uri}: cannot be written: {e}") from e
    if is_gcs(uri):
        try:
            _upload(local_dir, uri, [*manifest.files, MANIFEST_FILE])
        except Exception as e:
            # Whatever went wrong, a training must not be lost with it.
            kept = _keep(local_dir)
            raise ArtifactUnavailableError(
                f"{e}; the artifact is kept in {kept}: copy it with gcloud storage cp {kept}/* "
                f"{uri.rstrip('/')}/"
            ) from e
    return Artifact(uri=uri, manifest=manifest, local_dir=local_dir)


def check_writable(uri: str | Path) -> None:
    """Makes the local directory `uri` when it is missing, and checks that files can be made in it.

    Of gs:// only the form and the credentials are checked: whoever may write an object need not be allowed to
    ask about its bucket.

    Raises:
      ArtifactError: it is no directory, cannot be written to, or names no bucket; there are no credentials.
    """
    if is_gcs(str(uri)):
        with _storage_errors(str(uri)):
            _bucket(str(uri))
        return
    try:
        Path(uri).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=uri):
            pass
    except OSError as e:
        raise ArtifactError(f"{uri}: cannot be written: {e}; name a directory that you may write to") from e


def _temporary_directory() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="model-artifact-")
    _TEMPORARY.append(holder)
    return Path(holder.name)


_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []
"""Kept alive until the interpreter ends, which removes them."""


def _keep(local_dir: Path) -> Path:
    """Moves the files of a temporary directory to one that nothing removes."""
    kept = Path(tempfile.mkdtemp(prefix="model-artifact-kept-"))
    for file in local_dir.iterdir():
        shutil.move(file, kept / file.name)
    return kept


def _bucket(uri: str) -> tuple[Any, str]:
    """Bucket and prefix (without a slash at its end) of a gs:// URI."""
    # Deferred: a local artifact needs neither the client nor credentials.
    import google.cloud.storage as storage

    from common.connections import direct

    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    if not bucket:
        raise ArtifactError(f"{uri}: expected gs://bucket/prefix")
    try:
        client = storage.Client()
        direct(client._http)
    except OSError as e:
        raise ArtifactUnavailableError(f"{uri}: {e}; set GOOGLE_CLOUD_PROJECT") from e
    try:
        return client.bucket(bucket), prefix.strip("/")
    except ValueError as e:
        raise ArtifactError(f"{uri}: {e}; name a bucket as gs://bucket/prefix") from e


def _blob_name(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


@contextlib.contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    """Turns refusals of Cloud Storage, and missing credentials, into ArtifactUnavailableError."""
    from common.google import ERRORS, explain

    try:
        yield
    except ERRORS as error:
        problem = explain(error)
        raise ArtifactUnavailableError(f"{uri}: Cloud Storage ({problem.kind}): {problem.text}") from error


def _download(uri: str, digest: str) -> Path:
    from google.api_core.exceptions import NotFound

    local_dir = _temporary_directory()
    with _storage_errors(uri):
        bucket, prefix = _bucket(uri)

        def fetch(name: str) -> None:
            try:
                bucket.blob(_blob_name(prefix, name)).download_to_filename(str(local_dir / name))
            except NotFound as e:
                raise ArtifactError(f"{uri}: {name} is missing") from e

        fetch(MANIFEST_FILE)
        for name in _manifest(uri, local_dir / MANIFEST_FILE, digest).files:
            fetch(name)
    return local_dir


def _upload(local_dir: Path, uri: str, names: Iterable[str]) -> None:
    with _storage_errors(uri):
        bucket, prefix = _bucket(uri)
        for name in names:
            bucket.blob(_blob_name(prefix, name)).upload_from_filename(str(local_dir / name))

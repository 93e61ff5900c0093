"""The model artifact: a directory, local or gs://, that every pipeline and server loads.

    final_model_traced.pt     TorchScript with `forward` and `score`
    pytorch_autoencoder.mar   the same model packed for TorchServe
    instance_schema.yaml      the instances that it takes, for the registry of Vertex AI
    manifest.json             what the model is, its thresholds, and the sha256 of the files
    previous/                 the artifact that was there before, whole

`read` checks every listed file and the feature order before anything is loaded. So a damaged or foreign
artifact is a clear error at the start, and never a wrong score.

A reader never sees half of an artifact. `write` first keeps a copy of the old one in `previous/`, then
replaces its files one after the other, the manifest last. A reader that still has the old manifest, and finds
a new file, takes the old file from `previous/`; so it does after a writer that was killed in between.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.writing import FileWriteError, writing
from features.schema import openapi_3_0
from model import places
from model.manifest import MANIFEST_FILE, MODEL_FILE, ArtifactError, Manifest
from model.places import ArtifactUnavailableError, CloudPlace, Place, is_gcs, place

if TYPE_CHECKING:
    import torch

ARCHIVE_FILE: Final = "pytorch_autoencoder.mar"
SCHEMA_FILE: Final = "instance_schema.yaml"
"""A Schema Object of OpenAPI 3.0.2 in YAML, for Vertex AI, in the form of JSON, which YAML reads."""
MODEL_NAME: Final = "pytorch_autoencoder"
PREVIOUS: Final = "previous"
MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
_READS: Final = 20
"""A reader starts again when an artifact is replaced twice while it reads; so often at most."""

__all__ = ["ArtifactError", "ArtifactUnavailableError", "Manifest", "is_gcs"]


class ReplacedError(ArtifactError):
    """Another artifact took the place of the one that was there before."""


class _TornError(ArtifactError):
    """A file is not the one that the manifest lists, and `previous/` does not have it."""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact.

    Attributes:
      uri: where it was read from.
      manifest: its manifest.
      local_dir: a local directory with the files; the artifact's own, or a copy that is removed together with
        this object.
      module: the content of the TorchScript file, as it was verified.
    """

    uri: str
    manifest: Manifest
    local_dir: Path
    module: bytes = field(repr=False, compare=False)

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
            module = torchscript.load(io.BytesIO(self.module), freeze=False, device=device)
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


def read(uri: str | Path, digest: str = "", copied: bool = False) -> Artifact:
    """Reads and verifies the artifact at `uri`, a local directory or gs://bucket/prefix.

    Args:
      uri: the place.
      digest: of the manifest that must be there, as `Manifest.digest` gave it earlier; "" takes any.
      copied: takes a copy of local files as well: a directory that jobs read may hold another model soon.

    Raises:
      ReplacedError: there is another manifest than the one of `digest`.
      ArtifactError: the manifest or a listed file is missing, a sha256 or the feature order differs.
    """
    source = place(uri)
    before = ""
    for _ in range(_READS):
        manifest, text = _manifest(source, digest)
        try:
            return _verified(source, manifest, text, copied)
        except _TornError as error:
            # Twice the same manifest: once it may have come back while another was there in between.
            if manifest.digest == before:
                raise
            torn, before = error, manifest.digest
    raise torn


def _manifest(source: Place, digest: str = "") -> tuple[Manifest, bytes]:
    """Reads a manifest, also as it stands."""
    with tempfile.TemporaryDirectory(prefix="model-manifest-") as directory:
        path = Path(directory) / MANIFEST_FILE
        try:
            source.fetch(MANIFEST_FILE, path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactError(
                f"No {MANIFEST_FILE} in {source.uri}; train a model with anomaly train --output {source.uri}"
            ) from error
        if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
            most = f"expected at most {MAX_MANIFEST_BYTES:,}"
            raise ArtifactError(f"{source.uri}: {MANIFEST_FILE} has {size:,} bytes, {most}")
        text = path.read_bytes()
    manifest = Manifest.from_json(text)
    if digest and manifest.digest != digest:
        raise ReplacedError(
            f"{source.uri}: expected the model that was there at launch ({MANIFEST_FILE} with sha256 "
            f"{digest}), got version {manifest.model_version} (sha256 {manifest.digest}); launch the job "
            "again to score with it, or put the old model back"
        )
    return manifest, text


def _verified(source: Place, manifest: Manifest, text: bytes, copied: bool) -> Artifact:
    """Returns the artifact of a manifest, in its own directory where that is local and has all files."""
    if not copied and not isinstance(source, CloudPlace):
        own = Path(source.uri)
        contents = {name: _content(own / name) for name in manifest.files}
        if all(_is(contents[name], sha) for name, sha in manifest.files.items()):
            return Artifact(source.uri, manifest, own, contents[MODEL_FILE])
    copy = Path(tempfile.mkdtemp(prefix="model-artifact-"))
    try:
        for name, sha in manifest.files.items():
            _fetch(source, name, sha, copy / name)
        (copy / MANIFEST_FILE).write_bytes(text)
        artifact = Artifact(source.uri, manifest, copy, (copy / MODEL_FILE).read_bytes())
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    weakref.finalize(artifact, shutil.rmtree, copy, ignore_errors=True)
    return artifact


def _fetch(source: Place, name: str, sha: str, to: Path) -> None:
    """Copies the file of this sha256, from `previous/` where a new one has taken its place."""
    problem = ""
    for directory in (source, source.child(PREVIOUS)):
        try:
            directory.fetch(name, to)
        except (FileNotFoundError, NotADirectoryError):
            problem = problem or f"{name} is listed in {MANIFEST_FILE} and is missing"
            continue
        if (actual := sha256(to)) == sha:
            return
        problem = problem or (
            f"{name} has sha256 {actual}, {MANIFEST_FILE} says {sha}; copy or train it again"
        )
    raise _TornError(f"{source.uri}: {problem}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # said when it is looked for in both places
        return b""


def _is(content: bytes, sha: str) -> bool:
    return hashlib.sha256(content).hexdigest() == sha


def peek(uri: str | Path) -> Manifest:
    """Reads the manifest at `uri` alone; its files are not looked at.

    Raises:
      ArtifactError: the manifest is missing or damaged.
    """
    return _manifest(place(uri))[0]


def verify(uri: str | Path) -> Manifest:
    """Checks the artifact at `uri` as `read` does, and returns its manifest."""
    return read(uri).manifest


def write(uri: str | Path, manifest: Manifest, files: Iterable[Path]) -> Artifact:
    """Writes an artifact: `files` under their names, then the manifest with their sha256.

    Another artifact that is there is kept in `previous/` first. Of two writers at once, one fails at least.
    SCHEMA_FILE is made anew.

    Args:
      uri: a local directory, made when missing, or gs://bucket/prefix.
      manifest: its `files` are replaced.
      files: local files; MODEL_FILE must be among them.

    Raises:
      FileWriteError: a file cannot be written, because the disk is full, for example.
      ArtifactError: MODEL_FILE is not among the files, the manifest is not consistent, or `uri` cannot be
        written to. Both name the local directory in which the artifact is kept, once it is whole there.
    """
    paths: dict[str, Path | bytes] = {path.name: Path(path) for path in files}
    paths[SCHEMA_FILE] = json.dumps(openapi_3_0(manifest.spec), indent=1).encode()
    sums = {
        name: hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else sha256(file)
        for name, file in paths.items()
    }
    manifest = dataclasses.replace(manifest, files=sums)
    manifest.check()
    return _store(place(uri), paths, manifest.to_json().encode(), is_new=True)


def copy(source: Artifact, uri: str | Path) -> Artifact:
    """Copies an artifact to another place as it stands, under the same digest; see `write`."""
    paths = {name: source.local_dir / name for name in source.manifest.files}
    text = (source.local_dir / MANIFEST_FILE).read_bytes()
    if Manifest.from_json(text).digest != source.manifest.digest:
        raise ArtifactError(f"{source.uri} was replaced while it was copied: try again")
    return _store(place(uri), paths, text, is_new=False)


def _store(target: Place, files: Mapping[str, Path | bytes], text: bytes, is_new: bool) -> Artifact:
    target.check_writable()
    manifest = Manifest.from_json(text)
    staged = Path(tempfile.mkdtemp(prefix="model-artifact-"))
    is_whole = False
    try:
        with writing(staged):
            for name, file in files.items():
                if isinstance(file, bytes):
                    (staged / name).write_bytes(file)
                else:
                    shutil.copyfile(file, staged / name)
            (staged / MANIFEST_FILE).write_bytes(text)
        read(staged, manifest.digest)  # a source that was replaced while it was copied is refused here
        is_whole = True
        keep_previous(target, manifest.digest)
        put(target, staged, manifest)
        _check_stored(target, manifest)
        own = staged if isinstance(target, CloudPlace) else Path(target.uri)
        artifact = Artifact(target.uri, manifest, own, (staged / MODEL_FILE).read_bytes())
    except (ArtifactError, FileWriteError) as error:
        if not (is_new and is_whole):
            shutil.rmtree(staged, ignore_errors=True)
            raise
        # Whatever went wrong, a training must not be lost with it.
        raise type(error)(
            f"{error}; the artifact is kept in {staged}: when that is solved, run anomaly model promote "
            f"{staged} --to {target.uri}"
        ) from error
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    if own == staged:
        weakref.finalize(artifact, shutil.rmtree, staged, ignore_errors=True)
    else:
        shutil.rmtree(staged, ignore_errors=True)
    return artifact


def keep_previous(target: Place, digest: str) -> None:
    """Copies the artifact at a place into its `previous/`, unless it is the one of `digest`."""
    try:
        old = read(target.uri, copied=True)
    except ArtifactUnavailableError as error:
        if not places.is_refused(error):
            raise
        return  # this account may write there, and not read
    except ArtifactError:  # there is none, or none that could be put back
        return
    previous = target.child(PREVIOUS)
    if old.manifest.digest == digest or holds(previous, old.manifest.digest):
        return
    put(previous, old.local_dir, old.manifest)


def holds(target: Place, digest: str) -> bool:
    """Tells whether a whole artifact of this digest is at a place, as after a writer that was killed."""
    try:
        return read(target.uri, digest).manifest.digest == digest
    except ArtifactError:
        return False


def put(target: Place, directory: Path, manifest: Manifest) -> None:
    """Copies the files of a local directory to a place, the manifest last; what was there is not kept."""
    for name in (*manifest.files, MANIFEST_FILE):
        target.put(name, directory / name)


def _check_stored(target: Place, manifest: Manifest) -> None:
    """Reads what was written: a second writer at the same time leaves files of two artifacts."""
    try:
        read(target.uri, manifest.digest)
    except ArtifactUnavailableError as error:
        if not places.is_refused(error):
            raise
    except ArtifactError as error:
        raise ArtifactError(
            f"{target.uri}: expected version {manifest.model_version}, which was written just now, got files "
            "of another writer at the same time: promote the model again that is to be there"
        ) from error


def check_writable(uri: str | Path) -> None:
    """Checks what can be checked of writing to `uri`; see `Place.check_writable`.

    Raises:
      ArtifactError: it is no directory, cannot be written to, or names no bucket; there are no credentials.
    """
    place(uri).check_writable()

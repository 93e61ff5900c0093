"""Puts a model into the place that running jobs and servers look at, and takes it back.

The place is an artifact like any other. `artifact.copy` keeps the one that was there in `previous/`: the one
to go back to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.command import CommandError
from model import artifact
from model.artifact import PREVIOUS, Artifact, ArtifactError, ArtifactUnavailableError
from model.live import check_spec
from model.manifest import MANIFEST_FILE, Manifest
from model.places import Place, place


@dataclass(frozen=True)
class Change:
    """A change of the model at a place.

    Attributes:
      before: the manifest that was there, if any.
      after: the manifest that is there now.
      back: the manifest that `go_back` would put there; None where there is no other model to go back to.
    """

    before: Manifest | None
    after: Manifest
    back: Manifest | None = None

    @property
    def is_none(self) -> bool:
        """True where the model was there already."""
        return self.before is not None and self.before.digest == self.after.digest


@dataclass(frozen=True)
class Listed:
    """An artifact, or what is wrong with it."""

    uri: str
    manifest: Manifest | None
    problem: str = ""


def promote(source: str, to: str) -> Change:
    """Copies the artifact at `source` to the place `to`, and keeps the one that is there in `previous/`.

    Raises:
      ArtifactError: `source` is no whole artifact of this package, `to` cannot be read or written, or has
        another model of the same version.
      BusyError: another promotion to the same place is at work.
      ForeignError: the model at `to` has another feature spec.
    """
    found = artifact.read(source)
    found.load_model()  # refuses a graph that no job could load
    place(to).check_writable()
    with place(to).exclusive():
        before, version = _manifest(to), found.manifest.model_version
        if before and before.model_version == version and before.digest != found.manifest.digest:
            raise ArtifactError(
                f"{to}: expected another version than {version}, which another model there has: scores and "
                "profiles of the two could not be told apart; train it again, or with another --model_version"
            )
        return _replace(found, to)


def go_back(to: str) -> Change:
    """Exchanges the model at the place `to` with the previous one; a second call undoes the first.

    Raises:
      ArtifactError: there is no previous one, or it is damaged, or `to` cannot be read or written.
      BusyError: another promotion to the same place is at work.
      ForeignError: the previous one has another feature spec.
    """
    with place(to).exclusive():
        return _exchange(to)


def _exchange(to: str) -> Change:
    previous, spare = place(to).child(PREVIOUS), _spare(to)
    found = _interrupted(spare, to)
    if found is None:
        if not previous.stamp(MANIFEST_FILE):
            raise ArtifactError(
                f"{to}: expected a previous model in {previous.uri}, got none: promote the one to go back to"
            )
        found = artifact.read(previous.uri, copied=True)
        _check_fits(found, _manifest(to), to)
        # The model in place goes to where this one is: until it is done, this one would be whole nowhere.
        spare.remove(MANIFEST_FILE)
        try:
            artifact.put(spare, found.local_dir, found.manifest)
        except CommandError:
            _empty(spare, found.manifest)  # where the disk is full, what could be written is in the way
            raise
    return _replace(found, to)


def _spare(to: str) -> Place:
    """The place of the model that `go_back` puts back, while it does."""
    return place(to).child(PREVIOUS).child("spare")


def _interrupted(spare: Place, to: str) -> Artifact | None:
    """Returns the model that a killed `go_back` was about to put back."""
    kept, before = _manifest(spare.uri), _manifest(to)
    if kept is None or (before is not None and kept.digest == before.digest):
        return None
    return artifact.read(spare.uri, kept.digest, copied=True)


def _replace(found: Artifact, to: str) -> Change:
    before = _manifest(to)
    _check_fits(found, before, to)
    if before is not None and before.digest == found.manifest.digest:
        if artifact.holds(place(to), before.digest):
            return Change(before, found.manifest)
        before = None  # its manifest alone, beside files of another: as after a copy that was cut off
    artifact.copy(found, to)
    spare = _spare(to)
    if kept := _manifest(spare.uri):
        _empty(spare, kept)
    back = _manifest(place(to).child(PREVIOUS).uri)
    if back is not None and back.digest == found.manifest.digest:
        back = None
    return Change(before, found.manifest, back)


def _empty(spare: Place, manifest: Manifest) -> None:
    for name in (MANIFEST_FILE, *manifest.files):
        spare.remove(name)


def _check_fits(found: Artifact, before: Manifest | None, to: str) -> None:
    if before is not None:
        advice = "train with that, or promote to a new directory and launch the jobs with it"
        check_spec(found, before.spec, f"version {before.model_version} at {to}: {advice}")


def _manifest(uri: str) -> Manifest | None:
    """Reads the manifest at a place; None where there is none, or one that nobody can read."""
    if not place(uri).stamp(MANIFEST_FILE):
        return None
    try:
        return artifact.peek(uri)
    except ArtifactUnavailableError:
        raise
    except ArtifactError:
        return None


def list_models(uri: str) -> Iterator[Listed]:
    """Lists the artifact at a place, the previous one, and those in the directories right below.

    Raises:
      ArtifactError: there is none, or the place cannot be read.
    """
    root = place(uri)
    below = [root.child(name) for name in root.artifacts()]
    places = [*([root] if root.stamp(MANIFEST_FILE) else []), *below]
    if not places:
        raise ArtifactError(f"{uri}: expected an artifact, or directories with one, got none")
    for one in places:
        try:
            yield Listed(one.uri, artifact.read(one.uri).manifest)
        except artifact.ArtifactUnavailableError:
            raise
        except ArtifactError as error:
            yield Listed(one.uri, None, str(error))

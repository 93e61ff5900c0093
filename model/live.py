"""A loaded model that follows its artifact: a new one takes the place of the old without a restart.

A thread of its own looks at the manifest, by a stat or by the generation of an object. It reads and verifies
a changed artifact, loads it, and swaps one reference. Whoever takes `current` once has one model throughout.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from features.declaration import FeatureSpec
from model import artifact
from model.artifact import Artifact, ArtifactError
from model.manifest import MANIFEST_FILE
from model.places import ArtifactUnavailableError, place

T = TypeVar("T")
Event = Literal["refreshed", "refused"]
_LOG: Final = logging.getLogger(__name__)


class ForeignError(ArtifactError):
    """An artifact is whole, and not for this job or server: it is not looked at again."""


def first(
    uri: str, load: Callable[[Artifact], T], digest: str = "", is_followed: bool = False
) -> tuple[T, str]:
    """Loads the model to begin with; returns it, and the digest of its manifest.

    Args:
      uri: of the artifact.
      load: makes the model of a verified artifact.
      digest: of the manifest that must be there; "" takes any.
      is_followed: takes the artifact in `previous/` where the one in place is damaged or does not fit, as the
        processes that are running do. The one to come is looked for.

    Raises:
      ArtifactError: there is no artifact that can be loaded.
    """
    try:
        found = artifact.read(uri, digest)
        return load(found), found.manifest.digest
    except ArtifactUnavailableError:
        raise
    except ArtifactError as error:
        if not is_followed:
            raise
        try:
            found = artifact.read(place(uri).child(artifact.PREVIOUS).uri)
            model = load(found)
        except ArtifactError:
            raise error from None
        _LOG.error("%s; the one before is in use, version %s", error, found.manifest.model_version)
        return model, found.manifest.digest


@dataclass(frozen=True)
class Look(Generic[T]):
    """The outcome of a look at an artifact.

    Attributes:
      event: "refreshed", "refused", or None where nothing has changed.
      model: the new model of "refreshed".
    """

    event: Event | None = None
    model: T | None = None


class Live(Generic[T]):
    """A loaded model, and what became of the artifacts that came after it.

    Attributes:
      current: the model; take it once for everything that belongs together.
    """

    def __init__(self, current: T) -> None:
        self.current = current
        self._events: Counter[Event] = Counter()
        self._lock = threading.Lock()

    def take(self, look: Look[T]) -> None:
        """Takes a new model over, and counts what a look has brought."""
        if look.model is not None:
            self.current = look.model
        if look.event is not None:
            with self._lock:
                self._events[look.event] += 1

    def take_events(self) -> dict[Event, int]:
        """Returns how many artifacts were taken over and refused since the last call."""
        if not self._events:  # almost always; the lock is for the others
            return {}
        with self._lock:
            events, self._events = dict(self._events), Counter()
        return events

    def follow(self, follower: Follower[Any], seconds: float, once: bool = False) -> None:
        """Starts to look at an artifact; ends with this object.

        Args:
          follower: looks.
          seconds: between two looks.
          once: ends with the first model that comes.
        """
        stop = threading.Event()
        weakref.finalize(self, stop.set)
        arguments = (weakref.ref(self), follower, stop, seconds, once)
        threading.Thread(target=_run, args=arguments, name="model-refresh", daemon=True).start()


def _run(
    live: weakref.ref[Live[T]], follower: Follower[T], stop: threading.Event, seconds: float, once: bool
) -> None:
    is_over = False
    while not is_over and not stop.wait(seconds):
        look = follower.look()
        target = live()
        if target is None:
            return
        target.take(look)
        is_over = once and look.model is not None
        del target, look  # otherwise a model that nobody needs would live until the next look


class Follower(Generic[T]):
    """Looks at one artifact, again and again.

    Args:
      uri: of the artifact.
      load: makes the model of a verified artifact. It raises ForeignError for one that does not fit.
      digest: of the manifest of the model in use; "" where there is none.
      role: of the model, for the log.
    """

    def __init__(self, uri: str, load: Callable[[Artifact], T], digest: str, role: str = "model") -> None:
        self._uri = uri
        self._role = role
        self._load = load
        self._digest = digest
        self._place = place(uri)
        self._stamp = ""
        self._problem = ""

    def look(self) -> Look[T]:
        """Loads an artifact that was replaced; one that is damaged or foreign changes nothing.

        A damaged one may be an upload that is under way, so it is read again at the next look. It is counted
        and logged once.
        """
        stamp, look = "", Look[T]()
        try:
            stamp = self._place.stamp(MANIFEST_FILE)
            if stamp and stamp == self._stamp:
                self._problem = ""  # what comes after this is another outage
                return look
            found = artifact.read(self._uri)
            if found.manifest.digest != self._digest:
                look = Look("refreshed", self._load_whole(found))
                self._digest, version = found.manifest.digest, found.manifest.model_version
                _LOG.info("%s: version %s of the %s is in use from now on", self._uri, version, self._role)
        except ForeignError as error:
            self._stamp = stamp
            return self._refuse(error)
        except Exception as error:  # whatever the load of a model that is foreign or damaged may raise
            return self._refuse(error)
        self._stamp, self._problem = stamp, ""
        return look

    def _load_whole(self, found: Artifact) -> T:
        """Loads an artifact whose files are those of its manifest: it is no upload that is under way."""
        try:
            return self._load(found)
        except ArtifactUnavailableError:
            raise
        except ArtifactError as error:
            raise ForeignError(str(error)) from error

    def _refuse(self, error: Exception) -> Look[T]:
        problem = str(error) if isinstance(error, ArtifactError) else f"{self._uri}: {error!r}"
        if problem == self._problem:
            return Look()
        self._problem = problem
        level = logging.WARNING if isinstance(error, ArtifactUnavailableError) else logging.ERROR
        state = f"The {self._role} in use stays" if self._digest else f"No {self._role} is in use"
        _LOG.log(level, "%s. %s", state, problem)
        return Look("refused")


def check_spec(found: Artifact, expected: FeatureSpec, user: str) -> None:
    """Checks that an artifact is for the same features.

    Args:
      found: the artifact.
      expected: the feature spec of its user.
      user: the one who has that spec, and the way to another: "the running job; launch it again ...".

    Raises:
      ForeignError: it has another feature spec.
    """
    spec = found.manifest.spec
    if spec != expected:
        pairs = zip(spec.features, expected.features, strict=False)
        different = [f"feature {one.name}" for one, other in pairs if one != other]
        if len(spec.features) != len(expected.features):
            different.append(f"{len(spec.features)} features for {len(expected.features)}")
        raise ForeignError(
            f"{found.uri}: version {found.manifest.model_version} has another feature spec "
            f"({(different or ['its roles'])[0]}) than {user}"
        )

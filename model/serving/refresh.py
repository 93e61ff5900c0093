"""Takes a new model over while the server runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from model.artifact import Artifact, Manifest
from model.live import Event, Follower, check_spec
from model.serving.predictor import Predictor

_LOG: Final = logging.getLogger("uvicorn.error")  # the server's own log, so that both share one format


class Target(Protocol):
    """Holds the model that the server answers with."""

    predictor: Predictor | None


@dataclass(frozen=True)
class Refresh:
    """Looks at the artifact of a server.

    Attributes:
      seconds: between two looks; 0 for a server that keeps its first model.
      loaded: called with a new model before it serves.
      note: called with what became of an artifact.
    """

    seconds: int = 0
    loaded: Callable[[Predictor], None] = lambda _: None
    note: Callable[[Event], None] = lambda _: None

    def follow(self, uri: str, first: Manifest, target: Target, stopped: threading.Event) -> None:
        """Replaces the model of `target` whenever there is a new one at `uri`; returns when stopped."""

        def load(found: Artifact) -> Predictor:
            check_spec(found, first.spec, "the running server; start it again to serve that")
            predictor = Predictor(found)
            self.loaded(predictor)  # where this fails, the model is refused as any that cannot be used
            return predictor

        follower = Follower(uri, load, first.digest)
        while self.seconds and not stopped.wait(self.seconds):
            look = follower.look()
            if look.model is not None:
                target.predictor = look.model
                _LOG.info("serving %s version %s", uri, look.model.manifest.model_version)
            if look.event is not None:
                try:
                    self.note(look.event)
                except Exception:  # a count must not end the thread: the next model would never come
                    _LOG.exception("%s: a model that was %s is not counted", uri, look.event)
            del look


NEVER: Final = Refresh()
"""For a server that keeps its first model."""

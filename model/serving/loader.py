"""Loads the model beside the running server, so that health can say 503 until it is there."""

from __future__ import annotations

import gc
import logging
import math
import threading
from typing import Final

from common.retry import Patience
from model import artifact, live
from model.serving.predictor import Predictor
from model.serving.refresh import NEVER, Refresh

_LOG: Final = logging.getLogger("uvicorn.error")  # the server's own log, so that both share one format
PATIENCE: Final = Patience(seconds=math.inf, first=1.0, longest=30.0)
DAMAGED_ATTEMPTS: Final = 6
"""Number of looks at a damaged or incomplete artifact: an upload that is under way looks like that as well.
With PATIENCE, the last try comes about 15 s after the first."""


class Loader:
    """Loads and verifies one artifact in a thread of its own.

    An artifact that is still damaged at the last of DAMAGED_ATTEMPTS stays an error: no retry heals it.
    After any other failure, such as Cloud Storage out of reach, it tries again as long as the server runs.
    Then it looks for new models, if it is to. A loader that does takes the previous model where the one in
    place is damaged, and tries again for ever where there is none: the next promotion heals it.

    Attributes:
      predictor: the loaded model, or None.
      status: the state of the loader, or the reason of its last failure, as text.
    """

    def __init__(self, uri: str, refresh: Refresh = NEVER) -> None:
        """Makes the loader; `refresh.loaded` is called with each model before it serves."""
        self._refresh = refresh
        self.predictor: Predictor | None = None
        self.status = f"loading {uri}"
        self._uri = uri
        self._damaged = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)

    def start(self) -> None:
        """Starts to load; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Gives up waiting for a retry, or for a new model."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            predictor = PATIENCE.call(
                self._load,
                self._is_transient,
                self._report,
                sleep=self._wait,
            )
        except Exception as error:
            self.status = f"cannot load the model: {_text(error)}"
            _LOG.error("%s", self.status)
            return
        # What is loaded now lives as long as the process. Without this every full collection walks
        # hundreds of thousands of objects of torch, in the middle of some request.
        gc.collect()
        gc.freeze()
        self.status = "ready"
        self.predictor = predictor
        first = predictor.manifest
        _LOG.info("serving %s version %s", self._uri, first.model_version)
        del predictor  # it need not live as long as this thread
        self._refresh.follow(self._uri, first, self, self._stopped)

    def _load(self) -> Predictor:
        predictor, _ = live.first(self._uri, Predictor, is_followed=self._refresh.seconds > 0)
        self._refresh.loaded(predictor)
        return predictor

    def _wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _is_transient(self, error: BaseException) -> bool:
        if isinstance(error, artifact.ArtifactError) and not isinstance(
            error, artifact.ArtifactUnavailableError
        ):
            self._damaged += 1
        may_heal = self._refresh.seconds > 0 or self._damaged < DAMAGED_ATTEMPTS
        return may_heal and not self._stopped.is_set()

    def _report(self, error: BaseException, seconds: float) -> None:
        self.status = f"cannot load the model: {_text(error)} (will try again)"
        trace = None if isinstance(error, artifact.ArtifactError) else error
        _LOG.warning("%s; next attempt in %.0f s", self.status, seconds, exc_info=trace)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, artifact.ArtifactError) else f"{type(error).__name__}: {error}"

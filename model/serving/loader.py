"""Loads the model beside the running server, so that health can say 503 until it is there."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Final

from model import artifact
from model.serving.predictor import Predictor

_LOG: Final = logging.getLogger("uvicorn.error")  # the server's own log, so that both share one format
FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 30.0
DAMAGED_ATTEMPTS: Final = 5
"""How often an artifact may look damaged or incomplete: an upload that is under way looks like that, too."""


class Loader:
    """Loads and verifies one artifact in a thread of its own.

    An artifact that is still damaged at the last of DAMAGED_ATTEMPTS stays an error: no retry heals it.
    Anything else that goes wrong, such as Cloud Storage out of reach, is tried again for as long as
    the server runs.

    Attributes:
      predictor: the loaded model, or None.
      status: what the loader is doing or what went wrong, in words.
    """

    def __init__(self, uri: str) -> None:
        self.predictor: Predictor | None = None
        self.status = f"loading {uri}"
        self._uri = uri
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)

    def start(self) -> None:
        """Starts to load; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Gives up waiting for a retry."""
        self._stopped.set()

    def _run(self) -> None:
        delay = FIRST_RETRY_SECONDS
        damaged = 0
        while not self._stopped.is_set():
            try:
                predictor = Predictor(artifact.read(self._uri))
            except artifact.ArtifactUnavailableError as error:
                delay = self._wait(delay, f"cannot read the model: {error}")
                continue
            except artifact.ArtifactError as error:
                damaged += 1
                if damaged == DAMAGED_ATTEMPTS:
                    self.status = f"cannot load the model: {error}"
                    _LOG.error("%s", self.status)
                    return
                delay = self._wait(delay, f"cannot load the model: {error}")
                continue
            except Exception as error:
                _LOG.exception("cannot read %s", self._uri)
                delay = self._wait(delay, f"cannot read {self._uri}: {type(error).__name__}: {error}")
                continue
            # What is loaded now lives as long as the process. Without this every full collection walks
            # hundreds of thousands of objects of torch, in the middle of some request.
            gc.collect()
            gc.freeze()
            self.status = "ready"
            self.predictor = predictor
            _LOG.info("serving %s version %s", self._uri, predictor.manifest.model_version)
            return

    def _wait(self, delay: float, what: str) -> float:
        """Tells what went wrong, waits, and gives the seconds to wait the next time."""
        self.status = f"{what} (will try again)"
        _LOG.warning("%s; next attempt in %.0f s", what, delay)
        self._stopped.wait(delay)
        return min(2 * delay, LAST_RETRY_SECONDS)

"""TorchServe's management API: the models, their versions and workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import requests

from common.connections import direct
from model.serving.torchserve.config import TorchServeError

READY: Final = "READY"
Key = Literal["inference", "management"]
_TIMEOUT: Final = 120.0


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model.

    Attributes:
      name: name of the model.
      version: its version.
      default: whether requests that name no version get this one.
      workers: worker processes that exist.
      ready: those of them that have loaded the model.
      min_workers: how many there should be.
    """

    name: str
    version: str
    default: bool
    workers: int
    ready: int
    min_workers: int

    @property
    def is_ready(self) -> bool:
        """True where all workers that should exist, and at least one, have loaded the model."""
        return self.ready >= max(1, self.min_workers)


@dataclass(frozen=True)
class Server:
    """The addresses of a TorchServe, and the file of its keys.

    Attributes:
      inference: base URL of the inference API.
      management: base URL of the management API.
      metrics: base URL of the metrics API.
      grpc: host:port of the gRPC inference API.
      key_file: TorchServe's key_file.json; None when tokens are off.
    """

    inference: str
    management: str
    metrics: str
    grpc: str
    key_file: Path | None = None

    def key(self, kind: Key) -> str | None:
        """Reads the token of this kind, anew each time since keys change; None when tokens are off.

        Raises:
          TorchServeError: there is no readable key file, or no such key in it.
        """
        if self.key_file is None:
            return None
        try:
            return str(json.loads(self.key_file.read_text(encoding="utf-8"))[kind]["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TorchServeError(
                f"{self.key_file}: expected TorchServe's key_file.json with a key of kind {kind} ({error})"
            ) from error

    def headers(self, kind: Key) -> dict[str, str]:
        """Makes the request headers that carry the token of this kind."""
        key = self.key(kind)
        return {"Authorization": f"Bearer {key}"} if key else {}


def list_models(server: Server) -> list[ModelVersion]:
    """Lists every version of every model.

    Raises:
      TorchServeError: the management API refuses or does not answer.
    """
    page = _get(server, "/models")
    names = [model["modelName"] for model in page["models"]]
    while token := page.get("nextPageToken"):
        page = _get(server, "/models", {"next_page_token": token})
        names += [model["modelName"] for model in page["models"]]
    versions = []
    for name in names:
        default = _get(server, f"/models/{name}")[0]["modelVersion"]
        for version in _get(server, f"/models/{name}/all"):
            ready = sum(worker["status"] == READY for worker in version["workers"])
            number = version["modelVersion"]
            workers = len(version["workers"])
            versions.append(
                ModelVersion(name, number, number == default, workers, ready, version["minWorkers"])
            )
    return versions


def wait_ready(
    server: Server, timeout: float, alive: Callable[[], bool] = lambda: True
) -> list[ModelVersion]:
    """Waits until every model has all its workers ready. `/ping` says healthy seconds before that.

    Raises:
      TorchServeError: `timeout` seconds passed, or `alive` became false; the text has the last state.
    """
    deadline = time.monotonic() + timeout
    state = "the management API does not answer"
    while time.monotonic() < deadline and alive():
        try:
            models = list_models(server)
        except TorchServeError as error:
            state = str(error)
        else:
            if models and all(model.is_ready for model in models):
                return models
            state = ", ".join(f"{m.name} {m.version}: {m.ready} of {m.min_workers} ready" for m in models)
        time.sleep(0.1)
    raise TorchServeError(f"TorchServe is not ready: {state or 'no model is registered'}")


def _get(server: Server, path: str, parameters: dict[str, str] | None = None) -> Any:
    url = server.management + path
    headers = server.headers("management")
    try:
        with direct(requests.Session()) as session:
            response = session.get(url, params=parameters, headers=headers, timeout=_TIMEOUT)
    except requests.RequestException as error:
        raise no_answer(url, error) from error
    if response.status_code >= 400:
        raise TorchServeError(f"{url}: {response.status_code} {error_text(response.content)}")
    return json.loads(response.content)


def error_text(body: bytes) -> str:
    """Takes the message from an error answer of TorchServe, or the body's beginning."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")


def no_answer(url: str, error: requests.RequestException) -> TorchServeError:
    """Makes the error for a request without an answer."""
    if isinstance(error, requests.exceptions.SSLError):
        return TorchServeError(
            f"{url}: its certificate is not trusted; set REQUESTS_CA_BUNDLE to its issuer's certificates, "
            f"and call it by the name in the certificate ({error})"
        )
    return TorchServeError(f"{url}: no answer ({type(error).__name__}); is TorchServe running there?")

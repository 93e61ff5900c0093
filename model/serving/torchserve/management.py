"""TorchServe's management API: register, scale, choose the default version, wait for the workers."""

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
TokenType = Literal["inference", "management"]
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


@dataclass(frozen=True)
class Server:
    """Addresses of a TorchServe and where its keys lie.

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

    def key(self, kind: Literal["inference", "management", "API"]) -> str | None:
        """The token of this kind, read anew each time since keys change; None when tokens are off.

        Raises:
          TorchServeError: there is no readable key file.
        """
        if self.key_file is None:
            return None
        return read_key(self.key_file, kind)

    def headers(self, kind: Literal["inference", "management", "API"]) -> dict[str, str]:
        """The request headers that carry the token of this kind."""
        key = self.key(kind)
        return {"Authorization": f"Bearer {key}"} if key else {}


def read_key(path: Path, kind: str) -> str:
    """The token of a kind ("inference", "management", "API") in TorchServe's key_file.json.

    Raises:
      TorchServeError: no readable key file, or no such key in it.
    """
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[kind]["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TorchServeError(
            f"{path}: no {kind} key there ({error}); give TorchServe's key_file.json"
        ) from error


class Management:
    """The management API of one server."""

    def __init__(self, server: Server, timeout: float = _TIMEOUT) -> None:
        self.server = server
        self._timeout = timeout
        self._session = direct(requests.Session())

    def models(self) -> list[ModelVersion]:
        """Every version of every model."""
        found = []
        for name in self._names():
            default = self._call("GET", f"/models/{name}")[0]["modelVersion"]
            for version in self._call("GET", f"/models/{name}/all"):
                workers = version["workers"]
                found.append(
                    ModelVersion(
                        name,
                        version["modelVersion"],
                        version["modelVersion"] == default,
                        len(workers),
                        sum(worker["status"] == READY for worker in workers),
                        version["minWorkers"],
                    )
                )
        return found

    def register(self, url: str, workers: int, name: str | None = None) -> str:
        """Registers an archive of the model store, or of an allowed URL, and waits for its workers.

        Args:
          url: file name in the model store, or a URL that `allowed_urls` lets through.
          workers: processes to start.
          name: the model's name when it is not the archive's own.
        """
        parameters = {"url": url, "initial_workers": str(workers), "synchronous": "true"}
        if name:
            parameters["model_name"] = name
        return self._status("POST", "/models", parameters)

    def scale(self, name: str, version: str | None, workers: int) -> str:
        """Sets the worker processes of a version (the default one when None), and waits for them."""
        parameters = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "true"}
        return self._status("PUT", _path(name, version), parameters)

    def set_default(self, name: str, version: str) -> str:
        """Makes a version the one that requests without a version get."""
        return self._status("PUT", f"{_path(name, version)}/set-default")

    def unregister(self, name: str, version: str | None = None) -> str:
        """Takes a version (the default one when None) out of service."""
        return self._status("DELETE", _path(name, version))

    def new_token(self, kind: TokenType) -> None:
        """Makes the server replace a key; the old one stops to work, the new one is in its key file."""
        self._call("GET", "/token", {"type": kind}, key="API")

    def wait_ready(self, timeout: float, alive: Callable[[], bool] = lambda: True) -> list[ModelVersion]:
        """Waits until every model has all its workers ready. `/ping` says healthy seconds before that.

        Raises:
          TorchServeError: `timeout` seconds passed, or `alive` became false; the text has the last state.
        """
        deadline = time.monotonic() + timeout
        state = "the management API does not answer"
        while time.monotonic() < deadline and alive():
            try:
                models = self.models()
            except (TorchServeError, requests.RequestException) as error:
                state = str(error)
            else:
                waiting = [m for m in models if m.ready < max(1, m.min_workers)]
                if models and not waiting:
                    return models
                state = ", ".join(f"{m.name} {m.version}: {m.ready} of {m.min_workers} ready" for m in models)
            time.sleep(0.1)
        raise TorchServeError(f"TorchServe is not ready: {state or 'no model is registered'}")

    def _names(self) -> list[str]:
        names: list[str] = []
        token = None
        while True:
            page = self._call("GET", "/models", {"next_page_token": token} if token else None)
            names += [model["modelName"] for model in page["models"]]
            token = page.get("nextPageToken")
            if token is None:
                return names

    def _status(self, method: str, path: str, parameters: dict[str, str] | None = None) -> str:
        return str(self._call(method, path, parameters)["status"])

    def _call(
        self,
        method: str,
        path: str,
        parameters: dict[str, str] | None = None,
        key: Literal["management", "API"] = "management",
    ) -> Any:
        url = self.server.management + path
        try:
            response = self._session.request(
                method, url, params=parameters, headers=self.server.headers(key), timeout=self._timeout
            )
        except requests.RequestException as error:
            raise no_answer(url, error) from error
        if response.status_code >= 400:
            raise TorchServeError(f"{method} {url}: {response.status_code} {error_text(response.content)}")
        return json.loads(response.content) if response.content.strip() else None


def error_text(body: bytes) -> str:
    """The message in an error answer of TorchServe, or the body's beginning."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")


def no_answer(url: str, error: requests.RequestException) -> TorchServeError:
    """The error for a request that got no answer."""
    if isinstance(error, requests.exceptions.SSLError):
        return TorchServeError(
            f"{url}: its certificate is not trusted; set REQUESTS_CA_BUNDLE to its issuer's certificates, "
            f"and call it by the name that it is made out to ({error})"
        )
    return TorchServeError(f"{url}: no answer ({type(error).__name__}); is TorchServe running there?")


def _path(name: str, version: str | None) -> str:
    return f"/models/{name}/{version}" if version else f"/models/{name}"

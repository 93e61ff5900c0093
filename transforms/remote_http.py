"""Connections to the servers: TorchServe, and Vertex AI endpoints of every kind. No Beam.

A connection is made in the worker from plain data, once a process, and shared by its threads.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import quote

import requests
import urllib3
from google.auth import exceptions as auth_exceptions
from urllib3.exceptions import HTTPError, ReadTimeoutError

from common.connections import DirectAdapter, direct
from common.google import use_quota_project
from common.loopback import is_loopback_address
from transforms.remote_protocol import Response, TransientError

CONNECT_SECONDS: Final = 10.0
MAX_ANSWER_BYTES: Final = 256 << 20
"""Limit of an answer, so that an endless one does not fill the memory: 100,000 rows in full detail."""
SHARED_ANSWER_BYTES: Final = 1_500_000
"""Bytes that a shared endpoint of Vertex AI lets through, in either direction."""
_READ_BYTES: Final = 1 << 20
_HEADERS: Final = {"Content-Type": "application/json"}


class Connection(Protocol):
    """One server.

    Attributes:
      name: for messages.
      answer_limit: bytes of the longest answer that it lets through; None when unknown.
    """

    name: str
    answer_limit: int | None

    def post(self, body: bytes) -> Response:
        """Sends one request; raises TransientError where there is no answer."""

    def version_of(self, deployed_model: str | None) -> str | None:
        """Returns the model version of a deployed model; None when unknown."""

    def close(self) -> None:
        """Closes the connections."""


class HttpConnection:
    """Posts to one URL over kept connections.

    Attributes:
      name: the URL, for messages.
      answer_limit: None, unless a kind of server is known to have one.
    """

    answer_limit: int | None = None

    def __init__(
        self,
        url: str,
        session: requests.Session,
        connections: int,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Takes over `session`, keeps up to `connections` open, and waits `timeout` seconds for an answer."""
        self.name = url
        self._session = session
        self._headers = {**_HEADERS, **(headers or {})}
        self._timeout = (min(CONNECT_SECONDS, timeout), timeout)
        # Retries are the caller's, which knows what may be repeated and counts it.
        adapter = DirectAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
        for prefix in ("http://", "https://"):
            session.mount(prefix, adapter)

    def post(self, body: bytes) -> Response:
        """Sends one request.

        Raises:
          TransientError: no answer: refused, reset, timed out, too long, or no credentials for it.
        """
        deadline = time.monotonic() + self._timeout[1]
        try:
            answer = self._session.post(
                self.name,
                data=body,
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
            content = self._content(answer, deadline)
        except (requests.RequestException, HTTPError, auth_exceptions.GoogleAuthError) as error:
            raise TransientError(f"{self.name}: {type(error).__name__}: {error}") from error
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status_code, headers, content)

    def _content(self, answer: requests.Response, deadline: float) -> bytes:
        """The whole body. The time-out of requests is for the next byte; this one is for the last."""
        raw = answer.raw
        if raw.closed:  # without a body, or already read by google-auth, which logs bodies when asked to
            return answer.content
        chunks, size = [], 0
        try:
            while True:
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise TimeoutError
                if raw.connection is not None and raw.connection.sock is not None:
                    raw.connection.sock.settimeout(seconds)
                # Returns the bytes that came; read() would wait for all of _READ_BYTES.
                chunk = raw.read1(_READ_BYTES, decode_content=True)
                if not chunk:
                    break
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise TransientError(
                        f"{self.name}: an answer of more than {MAX_ANSWER_BYTES} bytes; "
                        "pass fewer --remote_rows if they are predictions"
                    )
        except (TimeoutError, ReadTimeoutError) as error:
            answer.close()
            raise TransientError(
                f"{self.name}: no whole answer in {self._timeout[1]:g} seconds; "
                "pass more --remote_timeout_seconds if the server needs them"
            ) from error
        except BaseException:
            answer.close()  # the rest of this answer must not begin the next one
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def version_of(self, deployed_model: str | None) -> str | None:
        """Returns None: this server has no deployed models."""
        return None

    def close(self) -> None:
        """Closes the kept connections."""
        self._session.close()


class TorchServeConnection(HttpConnection):
    """TorchServe's inference API, with the token where there is one.

    TorchServe answers a wrong or expired token with 400, as it does a bad row, and makes new tokens at every
    start. So a refused token is read again from its file. If TorchServe also refuses the new one, the rows
    are not at fault.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: str | None,
        key_file: str | None,
        connections: int,
        timeout: float,
    ) -> None:
        path = f"/predictions/{quote(model, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
        # TorchServe would parse a body that says it is JSON with Python's own parser; the model's handler
        # takes the bytes and has a faster one.
        headers = {"Content-Type": "application/octet-stream"}
        super().__init__(url.rstrip("/") + path, requests.Session(), connections, timeout, headers)
        self._key_file = key_file
        if key_file:
            self._read_key()

    def post(self, body: bytes) -> Response:
        """Sends one request, once more with a new token when the token is refused."""
        sent = self._headers.get("Authorization")
        response = super().post(body)
        if not _token_refused(response):
            return response
        if self._key_file:
            self._read_key()
            if self._headers["Authorization"] != sent:
                response = super().post(body)
        if _token_refused(response):
            raise TransientError(
                f"{self.name}: TorchServe refuses the token; pass its key_file.json as --torchserve_key_file"
            )
        return response

    def _read_key(self) -> None:
        # Deferred: Beam's file systems, for gs://, matter only to who uses tokens.
        from apache_beam.io.filesystems import FileSystems

        assert self._key_file is not None
        try:
            with FileSystems.open(self._key_file) as file:
                key = json.loads(file.read())["inference"]["key"]
        except Exception as error:  # whatever the file system raises, or the file is no key file
            raise TransientError(
                f"--torchserve_key_file={self._key_file}: no inference key there ({error})"
            ) from error
        self._headers = {**self._headers, "Authorization": f"Bearer {key}"}


class VertexConnection(HttpConnection):
    """A Vertex AI endpoint: public, dedicated or private, as the endpoint itself tells.

    The request goes to `:rawPredict` as JSON. `Endpoint.predict` spends most of its time on turning JSON into
    protobuf values. `Endpoint.raw_predict` sends the same request as this class, but always to Google's host
    names. On private endpoints it has no time-out and raises its own exception, and its pool always has ten
    connections.
    """

    def __init__(
        self,
        endpoint: str,
        connections: int,
        timeout: float,
        api_endpoint: str | None = None,
        psc_address: str | None = None,
    ) -> None:
        """Looks the endpoint up.

        Args:
          endpoint: projects/P/locations/L/endpoints/E.
          connections: requests in flight.
          timeout: seconds for an answer.
          api_endpoint: base URL of the Vertex AI API other than the regional one.
          psc_address: address of a Private Service Connect endpoint in the workers' network.

        Raises:
          TransientError: the endpoint cannot be read, or nothing is deployed to it.
        """
        self._endpoint = endpoint
        self._psc_address = psc_address
        self._base = (api_endpoint or f"https://{endpoint.split('/')[3]}-aiplatform.googleapis.com").rstrip(
            "/"
        )
        self._credentials = _credentials(self._base, endpoint.split("/")[1])
        self._lock = threading.Lock()
        url, kind = self._find()
        if kind == "shared":
            self.answer_limit = SHARED_ANSWER_BYTES
        session: requests.Session
        # A peered endpoint has the address of the model deployed to it: another model, another address.
        self._moves = kind == "psa"
        if kind == "psa":
            session = requests.Session()  # peered networks are the authorisation there
        else:
            from google.auth.transport.requests import AuthorizedSession

            session = AuthorizedSession(self._credentials)
        if kind == "psc":
            # Google's certificate is for its own names, not for the address in the customer's network.
            session.verify = False
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        super().__init__(url, session, connections, timeout)

    def post(self, body: bytes) -> Response:
        """Sends one request, once more to the new address when the endpoint has moved to another one."""
        sent = self.name
        try:
            response = super().post(body)
        except TransientError:
            if not self._moved_from(sent):
                raise
        else:
            if response.status != 404 or not self._moved_from(sent):
                return response
        return super().post(body)

    def _moved_from(self, url: str) -> bool:
        if not self._moves:
            return False
        with self._lock:
            if self.name == url:  # no other thread has looked it up
                self.name = self._find()[0]
            return self.name != url

    def _find(self) -> tuple[str, str]:
        return _predict_url(self._look_up(), self._endpoint, self._base, self._psc_address)

    def version_of(self, deployed_model: str | None) -> str | None:
        """Returns the display name of a deployed model, which `anomaly vertex deploy` sets to the version."""
        with self._lock:
            if deployed_model is None:  # a private endpoint names no id; it has one model
                return next(iter(self._versions.values())) if len(self._versions) == 1 else None
            if deployed_model not in self._versions:
                self._look_up()  # deployed since
            return self._versions.get(deployed_model)

    def _look_up(self) -> Any:
        # Deferred: a second of imports that only Vertex AI users pay.
        from google.api_core.client_options import ClientOptions
        from google.api_core.exceptions import GoogleAPIError
        from google.cloud.aiplatform_v1.services.endpoint_service import EndpointServiceClient

        try:
            client = EndpointServiceClient(
                credentials=self._credentials,
                transport="rest",
                client_options=ClientOptions(api_endpoint=self._base),
            )
            transport: Any = client.transport
            direct(transport._session)
            resource = client.get_endpoint(name=self._endpoint, timeout=60.0)
        except (GoogleAPIError, auth_exceptions.GoogleAuthError, requests.RequestException) as error:
            raise TransientError(f"{self._endpoint}: cannot be read: {error}") from error
        if not resource.deployed_models:
            raise TransientError(f"{self._endpoint}: no model is deployed; run `anomaly vertex deploy`")
        self._versions = {model.id: model.display_name for model in resource.deployed_models}
        return resource


def _credentials(base: str, project: str) -> Any:
    """Application default credentials; anonymous ones for a server on this machine."""
    import google.auth
    from google.auth.credentials import AnonymousCredentials

    if is_loopback_address(base):
        return AnonymousCredentials()
    use_quota_project(project)
    try:
        return google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])[0]
    except auth_exceptions.GoogleAuthError as error:
        raise TransientError(f"no credentials for Vertex AI: {error}") from error


def _predict_url(resource: Any, endpoint: str, base: str, psc_address: str | None) -> tuple[str, str]:
    """The URL that takes predictions, and the endpoint's kind: "psa", "psc", "dedicated" or "shared"."""
    if resource.network:
        return str(resource.deployed_models[0].private_endpoints.predict_http_uri), "psa"
    path = f"/v1/{endpoint}:rawPredict"
    if resource.private_service_connect_config.enable_private_service_connect:
        if not psc_address:
            raise TransientError(
                f"{endpoint}: a Private Service Connect endpoint; pass --vertex_psc_address, the address or "
                "name of it in the workers' network"
            )
        return _origin(psc_address) + path, "psc"
    if resource.dedicated_endpoint_enabled:
        return _origin(resource.dedicated_endpoint_dns) + path, "dedicated"
    return base + path, "shared"


def _origin(address: str) -> str:
    """Returns the base URL: https, or http for a server on this machine."""
    return f"{'http' if is_loopback_address(address) else 'https'}://{address}"


def _token_refused(response: Response) -> bool:
    return response.status == 400 and b"InvalidKeyException" in response.body

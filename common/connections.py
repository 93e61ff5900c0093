"""Connections by requests and by gRPC that reach this machine directly, whatever proxy the environment names.

What is not this machine goes through the proxy, as ever. The environment of the process stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter

from common.loopback import is_loopback_address

if TYPE_CHECKING:
    import grpc

_Session = TypeVar("_Session", bound=Session)
_PREFIXES: Final = ("http://", "https://localhost", "https://127.", "https://[::1]")
"""Beginnings of loopback addresses. The rest of https:// may have an adapter with a client's certificate."""


class DirectAdapter(HTTPAdapter):
    """Sends requests to this machine without a proxy, and all others as its base class does.

    A session with `trust_env=False` would also forget REQUESTS_CA_BUNDLE, and the environment overrides
    `Session.proxies`.
    """

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Sends a request; see HTTPAdapter."""
        if is_loopback_address(request.url or ""):
            kwargs["proxies"] = None
        return super().send(request, *args, **kwargs)


def direct(session: _Session) -> _Session:
    """Has `session` reach this machine directly, and returns it."""
    for prefix in _PREFIXES:
        session.mount(prefix, DirectAdapter())
    return session


def insecure_channel(address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """Opens a channel without TLS to HOST:PORT, directly where that is this machine."""
    # Deferred: the container of the FastAPI server has requests, and no gRPC.
    import grpc

    proxy = [("grpc.enable_http_proxy", 0)] if is_loopback_address(address) else []
    return grpc.insecure_channel(address, options=[*options, *proxy])

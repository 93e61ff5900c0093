"""Sends a request to an endpoint as it is, and gives the answer back as it is."""

from __future__ import annotations

from typing import Any, Final

from model.serving.vertex import endpoints
from model.serving.vertex.session import VertexError

_HEADERS: Final = {"Content-Type": "application/json"}
_SECONDS: Final = 60.0
_TEXT_LIMIT: Final = 300


def predict(endpoint: Any, kind: str, body: bytes, base: str, psc_address: str | None = None) -> bytes:
    """Sends one request by `rawPredict`.

    Args:
      endpoint: the SDK's.
      kind: of `endpoints.kind_of`.
      body: of the request.
      base: base URL of the API of the region.
      psc_address: address of a Private Service Connect endpoint.

    Returns:
      The body of the answer.

    Raises:
      VertexError: the endpoint refuses the request, or does not answer.
    """
    import requests
    from google.auth.transport.requests import AuthorizedSession

    name = f"--endpoint {endpoint.display_name}"
    try:
        if kind in (endpoints.PEERED, endpoints.PRIVATE_SERVICE_CONNECT):
            extra = {"endpoint_override": psc_address} if psc_address else {}
            answer = endpoint.raw_predict(body, _HEADERS, **extra)
        elif kind == endpoints.DEDICATED:
            answer = endpoint.raw_predict(body, _HEADERS, use_dedicated_endpoint=True, timeout=_SECONDS)
        else:
            # The SDK would ask Google's own address, whatever --api_endpoint says.
            with AuthorizedSession(endpoint.credentials) as session:
                url = f"{base}/v1/{endpoint.resource_name}:rawPredict"
                answer = session.post(url, data=body, headers=_HEADERS, timeout=_SECONDS)
    except (RuntimeError, requests.RequestException) as error:
        raise VertexError(f"{name}: {error}") from error
    # A peered endpoint answers through urllib3.
    content: bytes = answer.data if hasattr(answer, "data") else answer.content
    code = answer.status if hasattr(answer, "status") else answer.status_code
    if code != 200:
        raise VertexError(f"{name}: HTTP {code}: {content[:_TEXT_LIMIT].decode(errors='replace')}")
    return content

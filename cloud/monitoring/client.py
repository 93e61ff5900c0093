"""A client of Cloud Monitoring's REST API, as much of it as dashboards, policies and channels take."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from google.api_core.exceptions import from_http_response
from google.auth.transport.requests import AuthorizedSession

from cloud.endpoints import monitoring_session

_VERSIONS: Final = {"dashboards": "v1", "alertPolicies": "v3", "notificationChannels": "v3"}
"""Version of the API that serves each collection."""
_SECONDS: Final = 60


class Monitoring:
    """A client of Cloud Monitoring. Each collection is listed once; threads may ask at the same time.

    Args:
      project: id.
    """

    def __init__(self, project: str) -> None:
        self._project = f"projects/{project}"
        self._session: tuple[AuthorizedSession, str] | None = None
        self._listed: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.RLock()

    def listed(self, collection: str) -> list[dict[str, Any]]:
        """All that a collection of the project had when it was first asked for."""
        with self._lock:
            if collection not in self._listed:
                parameters: dict[str, str] = {"pageSize": "500"}
                items: list[dict[str, Any]] = []
                while True:
                    page = self._call("GET", f"{self._project}/{collection}", parameters=parameters)
                    items += page.get(collection, ())
                    if not page.get("nextPageToken"):
                        break
                    parameters["pageToken"] = page["nextPageToken"]
                self._listed[collection] = items
            return self._listed[collection]

    def get(self, name: str) -> dict[str, Any]:
        """One thing by its full name."""
        return self._call("GET", name)

    def create(self, collection: str, body: Mapping[str, Any]) -> None:
        """Makes a thing."""
        self._call("POST", f"{self._project}/{collection}", body)

    def update(self, name: str, body: Mapping[str, Any], fields: str = "") -> None:
        """Replaces a thing, or the fields that are named."""
        self._call("PATCH", name, body, {"updateMask": fields} if fields else {})

    def delete(self, name: str) -> None:
        """Removes a thing."""
        self._call("DELETE", name)

    def close(self) -> None:
        """Closes the connections that were opened."""
        if self._session:
            self._session[0].close()

    def _call(
        self,
        method: str,
        name: str,
        body: Mapping[str, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        with self._lock:
            self._session = http, base = self._session or monitoring_session()
        version = _VERSIONS[name.split("/")[2]]
        answer = http.request(
            method, f"{base}/{version}/{name}", json=body, params=parameters, timeout=_SECONDS
        )
        if answer.status_code != 200:
            raise from_http_response(answer)
        content: dict[str, Any] = answer.json()
        return content

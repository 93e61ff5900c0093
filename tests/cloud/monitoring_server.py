"""Cloud Monitoring's REST API, as much of it as dashboards, policies and channels take, kept in memory."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.cloud import discovery
from tests.cloud.guard import Identity
from tests.http_server import Refusal, Request

_SCHEMAS = {
    "dashboards": ("monitoring.v1", "Dashboard"),
    "alertPolicies": ("monitoring.v3", "AlertPolicy"),
    "notificationChannels": ("monitoring.v3", "NotificationChannel"),
}
_VERBS = {"POST": "create", "PATCH": "update", "DELETE": "delete"}
_PAGE = 3
"""Items of a page of a list, so that clients have to ask for more."""


@dataclass
class Monitoring:
    """The things of a project by their full names.

    Attributes:
      identity: who asks; None may do everything.
    """

    things: dict[str, dict[str, Any]] = field(default_factory=dict)
    identity: Identity | None = None
    _count: int = 0

    def of(self, collection: str) -> list[dict[str, Any]]:
        """The things of a collection."""
        return [thing for name, thing in self.things.items() if f"/{collection}/" in name]

    def add(self, collection: str, body: dict[str, Any]) -> str:
        """Keeps a thing as somebody else may have made it; returns its name."""
        self._count += 1
        name = f"projects/local-project/{collection}/{self._count}"
        self.things[name] = {**body, "name": name}
        return name

    def answer(self, request: Request) -> Any:
        """The answer to a request; None where it is not one of Cloud Monitoring."""
        path = r"/(v[13])/(projects/[^/]+)/(dashboards|alertPolicies|notificationChannels)(/[^/]+)?"
        match = re.fullmatch(path, request.path)
        if not match:
            return None
        version, project, collection, item = match.groups()
        api, schema = _SCHEMAS[collection]
        assert api.endswith(version)
        verb = _VERBS.get(request.method, "get" if item else "list")
        if self.identity and (denial := self.identity.denial([(f"monitoring.{collection}.{verb}", project)])):
            raise Refusal(403, "PERMISSION_DENIED", denial)
        if request.method in ("POST", "PATCH"):
            found = discovery.problems(api, schema, request.json)
            if found:
                raise Refusal(400, "INVALID_ARGUMENT", "; ".join(found))
        if verb == "list":
            things, start = self.of(collection), int(request.one("pageToken", "0"))
            following = {"nextPageToken": str(start + _PAGE)} if start + _PAGE < len(things) else {}
            return {collection: things[start : start + _PAGE], **following}
        if verb == "create":
            return self._store(self.add(collection, {}), request.json)
        name = f"{project}/{collection}{item}"
        if name not in self.things:
            raise Refusal(404, "NOT_FOUND", f"{name} does not exist")
        if verb == "get":
            return self.things[name]
        if verb == "delete":
            return self.things.pop(name) and {}
        return self._update(name, request)

    def _update(self, name: str, request: Request) -> Any:
        old, body = self.things[name], request.json
        if body.get("etag", old.get("etag")) != old.get("etag"):
            raise Refusal(409, "ABORTED", "the etag is another")
        mask = request.one("updateMask").split(",") if request.one("updateMask") else list(body)
        kept = old if request.one("updateMask") else {}
        return self._store(name, {**kept, **{key: body[key] for key in mask}})

    def _store(self, name: str, body: dict[str, Any]) -> Any:
        """Keeps a thing as Google does: with names of the conditions, an etag, and without defaults."""
        self._count += 1
        thing = json.loads(json.dumps(body), object_hook=_without_defaults)
        for i, condition in enumerate(thing.get("conditions", ())):
            condition.setdefault("name", f"{name}/conditions/{self._count}{i}")
        etag = {"etag": str(self._count)} if "/dashboards/" in name else {}
        self.things[name] = {**thing, "name": name, **etag}
        return self.things[name]


def _without_defaults(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item not in (0, "", [], {}) or item is False}

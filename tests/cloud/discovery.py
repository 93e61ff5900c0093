"""Google's discovery documents, and a check of JSON bodies against them."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


@functools.cache
def document(api: str) -> dict[str, Any]:
    """The document of an API, such as "monitoring.v3", as google-api-python-client has it."""
    folder = resources.files("googleapiclient.discovery_cache") / "documents"
    content: dict[str, Any] = json.loads((folder / f"{api}.json").read_text(encoding="utf-8"))
    return content


def problems(api: str, schema: str, body: Any) -> list[str]:
    """Lists what the API would refuse in a body: unknown fields, other types, values outside an enum."""
    return list(_problems(document(api)["schemas"], {"$ref": schema}, body, schema))


def _problems(schemas: dict[str, Any], kind: dict[str, Any], value: Any, path: str) -> list[str]:
    if "$ref" in kind:
        kind = schemas[kind["$ref"]]
    expected = kind["type"]
    if not isinstance(value, _TYPES[expected]) or (expected != "boolean" and isinstance(value, bool)):
        return [f"{path}: expected {expected}, got {value!r}"]
    if value not in kind.get("enum", [value]):
        return [f"{path}: {value!r} is not one of {kind['enum']}"]
    if kind.get("format") == "google-duration" and not re.fullmatch(r"\d+(\.\d+)?s", value):
        return [f"{path}: {value!r} is no duration"]
    if expected == "array":
        parts = [(kind["items"], item, f"{path}[{i}]") for i, item in enumerate(value)]
    elif expected == "object":
        known = kind.get("properties", {})
        other = kind.get("additionalProperties")
        unknown = [name for name in value if name not in known and other is None]
        if unknown:
            return [f"{path}: unknown fields {unknown}"]
        parts = [(known.get(name, other), item, f"{path}.{name}") for name, item in value.items()]
    else:
        parts = []
    return [problem for part in parts for problem in _problems(schemas, *part)]

"""What every command shares: the SDK set up for a project and region, and calls that can be shown only."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from common.names import LABEL

Result = TypeVar("Result")

MANAGED_LABEL: Final = ("managed-by", "beam-transaction-anomaly")
VERSION_LABEL: Final = "model-version"


class VertexError(RuntimeError):
    """A command cannot be carried out; the text names the flag or the resource and says what to do."""


@dataclass
class Actions:
    """Calls that change something at Google: made, or with `dry_run` only shown.

    Attributes:
      dry_run: show the calls and make none of them.
      shown: the calls so far, as plain data.
    """

    dry_run: bool = False
    shown: list[dict[str, Any]] = field(default_factory=list)

    def do(self, name: str, call: Callable[..., Result], **arguments: Any) -> Result | None:
        """Makes the call with these arguments; None arguments are left out. None when only shown."""
        given = {key: value for key, value in arguments.items() if value is not None}
        entry = {"call": name, "arguments": {key: _plain(value) for key, value in given.items()}}
        self.shown.append(entry)
        if self.dry_run:
            print(json.dumps(entry, indent=2))
            return None
        print(f"{name} ...", file=sys.stderr)
        return call(**given)


def connect(project: str, region: str, api_endpoint: str | None) -> Any:
    """Sets the SDK up and gives its module.

    Args:
      project: Google Cloud project.
      region: such as us-central1.
      api_endpoint: base URL other than the region's; for one on this machine no credentials are used.

    Raises:
      VertexError: there are no credentials, or they would travel in clear text.
    """
    # Deferred: several seconds that --help need not take.
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import aiplatform

    credentials: Any = None
    if api_endpoint:
        url = urlsplit(api_endpoint)
        if _is_loopback(url.hostname or ""):
            credentials = AnonymousCredentials()
        elif url.scheme != "https":
            raise VertexError(f"--api_endpoint={api_endpoint}: use https, credentials must not go in clear")
    if credentials is None:
        try:
            credentials, _ = google.auth.default()
        except DefaultCredentialsError as error:
            raise VertexError(
                f"no Google credentials: run gcloud auth application-default login ({error})"
            ) from error
    aiplatform.init(
        project=project,
        location=region,
        credentials=credentials,
        api_endpoint=api_endpoint,
        api_transport="rest",
    )
    return aiplatform


def parse_labels(pairs: list[str]) -> dict[str, str]:
    """KEY=VALUE texts as labels.

    Raises:
      VertexError: a text has another form, or characters that labels cannot have.
    """
    labels = {}
    for pair in pairs:
        problem = LABEL.problem(pair)
        if problem:
            raise VertexError(f"--label: {problem}")
        key, value = LABEL.split(pair).values()
        labels[key] = value
    return labels


def version_alias(model_version: str) -> str:
    """The alias of a model version in the registry: letters, digits and dashes, from a letter on."""
    return "v-" + re.sub(r"[^a-z0-9]+", "-", model_version.lower()).strip("-")[:120]


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    name = getattr(value, "versioned_resource_name", None) or getattr(value, "resource_name", None)
    return name or str(value)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""The SDK set up for a project and region, and calls that a dry run only shows."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from common.command import CommandError
from common.google import LOGIN, use_quota_project
from common.loopback import is_loopback
from common.names import LABEL
from common.options import OptionError, option

Result = TypeVar("Result")

MANAGED_LABEL: Final = ("managed-by", "beam-transaction-anomaly")
VERSION_LABEL: Final = "model-version"


@dataclass(frozen=True)
class ProjectOptions:
    """The project and region of a command."""

    project: str = option("", help="Google Cloud project (default: GOOGLE_CLOUD_PROJECT)")
    region: str = option("us-central1", help="default: %(default)s")
    api_endpoint: str | None = option(
        None, metavar="URL", help="Vertex AI API other than the region's public one"
    )

    def __post_init__(self) -> None:
        if not self.project:
            raise OptionError("--project: expected a project, here or in GOOGLE_CLOUD_PROJECT")

    @property
    def base(self) -> str:
        """Base URL of the API."""
        return (self.api_endpoint or f"https://{self.region}-aiplatform.googleapis.com").rstrip("/")


class VertexError(CommandError):
    """A step on Vertex AI cannot be done."""


@dataclass
class Actions:
    """Makes calls that change something at Google, or with `dry_run` only shows them.

    Attributes:
      dry_run: show the calls and make none of them.
      shown: the calls so far, as plain data.
    """

    dry_run: bool = False
    shown: list[dict[str, Any]] = field(default_factory=list)

    def do(self, name: str, call: Callable[..., Result], **arguments: Any) -> Result | None:
        """Makes the call with these arguments, without those of None; returns None when it only shows it."""
        passed = {key: value for key, value in arguments.items() if value is not None}
        entry = {"call": name, "arguments": {key: _plain(value) for key, value in passed.items()}}
        self.shown.append(entry)
        if self.dry_run:
            print(json.dumps(entry, indent=2))
            return None
        print(f"{name} ...", file=sys.stderr)
        return call(**passed)


def connect(project: ProjectOptions) -> Any:
    """Sets the SDK up and returns its module.

    Raises:
      OptionError: credentials would travel in clear text.
      VertexError: there are no credentials.
    """
    # Deferred: several seconds that --help need not take.
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import aiplatform

    credentials: Any = None
    if project.api_endpoint:
        url = urlsplit(project.api_endpoint)
        if is_loopback(url.hostname or ""):
            credentials = AnonymousCredentials()
        elif url.scheme != "https":
            raise OptionError(
                f"--api_endpoint: expected https, so that credentials do not travel in clear text, "
                f"got {project.api_endpoint!r}"
            )
    if credentials is None:
        use_quota_project(project.project)
        try:
            credentials, _ = google.auth.default()
        except DefaultCredentialsError as error:
            raise VertexError(f"no Google credentials: run {LOGIN} ({error})") from error
    aiplatform.init(
        project=project.project,
        location=project.region,
        credentials=credentials,
        api_endpoint=project.api_endpoint,
        api_transport="rest",
    )
    return aiplatform


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """Reads KEY=VALUE texts as labels.

    >>> parse_labels(["team=fraud"])
    {'team': 'fraud'}

    Raises:
      OptionError: a text breaks a rule for labels.
    """
    labels = {}
    for pair in pairs:
        key, value = LABEL.split(LABEL.check(pair, "--label")).values()
        labels[key] = value
    return labels


def version_alias(model_version: str) -> str:
    """Makes the alias of a model version in the registry: a letter, then letters, digits and dashes.

    >>> version_alias("20260101.120000")
    'v-20260101-120000'
    """
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

"""Clients of Google's APIs at endpoints other than the public ones: private, or on this machine."""

from __future__ import annotations

import os
from typing import Any, Final

import google.auth
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession

from common.connections import direct
from common.loopback import is_loopback_address
from common.options import OptionError

# The variables that gcloud obeys for other endpoints.
DATAFLOW_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_DATAFLOW"
IAM_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM"
COMPUTE_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
MONITORING_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_MONITORING"
RESOURCE_MANAGER_VARIABLE: Final = "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER"

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)


def client_arguments(endpoint: str | None, flag: str) -> dict[str, Any]:
    """Makes the arguments of one of Google's clients from an endpoint.

    Args:
      endpoint: a URL for REST, or a host for gRPC; None for Google's public endpoint.
      flag: that gave it, for the error.

    Raises:
      OptionError: credentials would travel in clear text.

    >>> client_arguments(None, "--dataflow_endpoint")
    {}
    """
    if not endpoint:
        return {}
    is_url = "//" in endpoint
    is_local = is_loopback_address(endpoint)
    _check_scheme(endpoint, flag)
    arguments: dict[str, Any] = {"client_options": ClientOptions(api_endpoint=endpoint.rstrip("/"))}
    if is_url:
        arguments["transport"] = "rest"
    if is_local:
        arguments["credentials"] = AnonymousCredentials()
    return arguments


def _check_scheme(endpoint: str, flag: str) -> None:
    if endpoint.startswith("http://") and not is_loopback_address(endpoint):
        raise OptionError(f"{flag}: expected https://, for credentials travel there, got {endpoint!r}")


def iam_session() -> tuple[AuthorizedSession, str]:
    """Opens a session with the caller's credentials, and gives the base URL of IAM.

    Raises:
      GoogleAuthError: nobody is signed in.
      OptionError: credentials would travel in clear text.
    """
    return _session(IAM_VARIABLE, "https://iam.googleapis.com")


def compute_session() -> tuple[AuthorizedSession, str]:
    """Opens a session with the caller's credentials, and gives the base URL of Compute Engine.

    Raises:
      GoogleAuthError: nobody is signed in.
      OptionError: credentials would travel in clear text.
    """
    return _session(COMPUTE_VARIABLE, "https://compute.googleapis.com/compute/v1")


def monitoring_session() -> tuple[AuthorizedSession, str]:
    """Opens a session with the caller's credentials, and gives the base URL of Cloud Monitoring.

    Raises:
      GoogleAuthError: nobody is signed in.
      OptionError: credentials would travel in clear text.
    """
    return _session(MONITORING_VARIABLE, "https://monitoring.googleapis.com")


def _session(variable: str, public: str) -> tuple[AuthorizedSession, str]:
    base = os.environ.get(variable, public).rstrip("/")
    _check_scheme(base, variable)
    is_local = is_loopback_address(base)
    credentials = AnonymousCredentials() if is_local else google.auth.default(scopes=_SCOPES)[0]
    return direct(AuthorizedSession(credentials)), base

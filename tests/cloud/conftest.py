"""Fixtures for what talks to Google Cloud."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.credentials import write_service_account
from tests.cloud.google_server import Google, google_server


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """Google's REST APIs on this machine; the environment sends clients and gcloud there, with a key."""
    with google_server() as served:
        key = write_service_account(tmp_path / "key.json", "local-project", served.url)
        for name, value in {
            **served.environment(),
            "STORAGE_EMULATOR_HOST": served.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "GOOGLE_CLOUD_PROJECT": "local-project",
            "NO_GCE_CHECK": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.fixture
def gcloud(google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The installed gcloud, with a configuration of its own and no account; skips where there is none."""
    found = shutil.which("gcloud")
    if found is None:
        pytest.skip("no gcloud on the PATH: https://cloud.google.com/sdk/docs/install")
    for name, value in {
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        "CLOUDSDK_CORE_PROJECT": "local-project",
    }.items():
        monkeypatch.setenv(name, value)
    return found

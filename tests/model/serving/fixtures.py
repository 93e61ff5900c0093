"""Fixtures of the serving tests: one artifact and one real server of each kind for the whole session.

Test modules name this file in `pytest_plugins`, so that modules of several packages share the servers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

from model.artifact import ARCHIVE_FILE, Artifact
from model.serving.torchserve.process import missing_software
from tests.model.serving.artifacts import build_artifact
from tests.model.serving.servers import Served, TorchServe, container, torchserve_server

ALLOWED_URL = r"http://127\.0\.0\.1:\d+/b/bucket/o/.*"


@pytest.fixture(scope="session")
def served_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small artifact; every server of the session serves it."""
    return build_artifact(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="session")
def custom_container(served_artifact: Artifact) -> Iterator[Served]:
    """The FastAPI server with the session's artifact."""
    with container(served_artifact.uri) as served:
        yield served


def needs_torchserve(files: Collection[str]) -> None:
    """Skips where TorchServe cannot serve an artifact of these files; starts nothing."""
    if missing := missing_software():
        pytest.skip(missing)
    if ARCHIVE_FILE not in files:
        pytest.skip("torch-model-archiver is not installed; install the serving extras")


@pytest.fixture(scope="session")
def archived_artifact(served_artifact: Artifact) -> Artifact:
    """The session's artifact, where TorchServe can serve it; skips where not, and starts nothing."""
    needs_torchserve(served_artifact.manifest.files)
    return served_artifact


@pytest.fixture(scope="session")
def torchserve(archived_artifact: Artifact) -> Iterator[TorchServe]:
    """A real TorchServe with the session's artifact, one worker, and tokens on."""
    with torchserve_server(archived_artifact.uri, "--allowed_url", ALLOWED_URL) as server:
        yield server

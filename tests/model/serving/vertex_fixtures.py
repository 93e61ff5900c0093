"""Fixtures of the Vertex AI commands: the real SDK, and a server on this machine.

Test modules name this file in `pytest_plugins`.
"""

from __future__ import annotations

import pytest

from model.serving.vertex.__main__ import main
from tests.model.serving.artifacts import build_artifact
from tests.model.serving.vertex_cases import CUSTOM, NEWER
from tests.model.serving.vertex_server import vertex_server


@pytest.fixture
def vertex(monkeypatch):
    with vertex_server() as server:
        server.storage.buckets["b"] = {"name": "b"}
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture
def run(vertex, capsys):
    """Runs a command; gives exit code, standard output and standard error."""

    def command(*arguments: str):
        name, *rest = arguments
        try:
            code = main([name, "--project", "p", "--api_endpoint", vertex.url, *rest])
        except SystemExit as ended:  # a flag that argparse refuses
            code = ended.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture(scope="session")
def newer_artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("newer"), NEWER, seed=8)


@pytest.fixture
def uploaded(run, vertex, served_artifact, newer_artifact):
    """Two versions of the custom container's model are in the registry; calls are counted from here."""
    for built in (served_artifact, newer_artifact):
        code, _, err = run(
            "upload", "--model", built.uri, "--image", CUSTOM, "--staging", "gs://b/m", "--name", "m"
        )
        assert code == 0, err
    vertex.calls.clear()
    return "m"

"""The log of TorchServe: seen by the platform, bounded on a disk, silent about single requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests

from model.artifact import MODEL_NAME
from model.serving.torchserve import logs, process
from model.serving.torchserve.__main__ import main
from model.serving.torchserve.config import Layout
from tests.model.serving.artifacts import transactions
from tests.model.serving.servers import port_flags
from tests.model.serving.test_app import encode

pytest_plugins = ("tests.model.serving.fixtures",)


def test_files_are_bounded_and_a_container_has_none():
    background, foreground = (ElementTree.fromstring(logs.log_config(flag)) for flag in (False, True))
    sizes = [element.get("size") for element in background.iter("SizeBasedTriggeringPolicy")]
    kept = [element.get("max") for element in background.iter("DefaultRolloverStrategy")]
    assert len(sizes) == len(kept) == len(list(background.iter("RollingFile"))) == 2
    assert {*sizes, *kept} == {"20 MB", "3"}
    assert not list(background.iter("Console"))
    assert not list(foreground.iter("RollingFile"))


@pytest.mark.integration
def test_the_platform_has_the_log_and_no_request_is_in_it(torchserve):
    url = f"{torchserve.server.inference}/predictions/{MODEL_NAME}"
    headers = torchserve.server.headers("inference")
    assert requests.post(url, encode(transactions(1)), headers=headers, timeout=60).ok
    # The status that the command prints when the workers are ready comes last.
    torchserve.process.wait_until(lambda: torchserve.server.metrics in torchserve.process.log_text(), 60)
    before = torchserve.process.log_text()
    assert "Torch worker started" in before
    for _ in range(50):
        assert requests.post(url, encode(transactions(1)), headers=headers, timeout=60).ok
    assert torchserve.process.log_text() == before
    assert not list(torchserve.layout.logs.iterdir())


@pytest.mark.integration
def test_in_the_background_the_files_have_the_log(archived_artifact):
    # Sockets lie under the run directory, so its path must be short.
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory) / "run")
        run_dir = ["--run_dir", str(layout.root)]
        model = ["--model", archived_artifact.uri, "--workers", "1", "--config", "local"]
        assert main(["start", *run_dir, *model, *port_flags()]) == 0
        try:
            console = layout.output.read_bytes()
            url = f"{process.server_of(layout).inference}/predictions/{MODEL_NAME}"
            for _ in range(50):
                assert requests.post(url, encode(transactions(1)), timeout=60).ok
            assert layout.output.read_bytes() == console
            log = (layout.logs / "ts_log.log").read_text()
            assert "Torch worker started" in log
            assert "received inference" not in log
            assert (layout.logs / "access_log.log").read_text().count("POST /predictions") == 50
        finally:
            assert main(["stop", *run_dir]) == 0

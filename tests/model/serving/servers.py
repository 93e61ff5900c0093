"""Real servers in processes of their own."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from local.process import HOST, ServerProcess, free_port
from model.serving.torchserve import process as torchserve_process
from model.serving.torchserve.config import Layout, Ports, TorchServeError
from model.serving.torchserve.management import Server, list_models


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
      url: base URL, without a slash at its end.
      process: the process, for its log.
    """

    url: str
    process: ServerProcess


@contextmanager
def container(
    model: str, *flags: str, ready: int = 200, port: int | None = None, **env: str
) -> Iterator[Served]:
    """Runs the FastAPI server in a process of its own until its health check answers `ready`."""
    port = port or free_port()
    command = [sys.executable, "-m", "model.serving.app", "--workers", "1", *flags]
    environment = {"AIP_HTTP_PORT": str(port), "AIP_STORAGE_URI": model, "LAME_DUCK_SECONDS": "0", **env}
    health = f"http://{HOST}:{port}{env.get('AIP_HEALTH_ROUTE', '/health')}"

    def is_ready() -> bool:
        try:
            return requests.get(health, timeout=5).status_code == ready
        except requests.ConnectionError:
            return False

    process = ServerProcess("the FastAPI server", command, environment)
    process.start()
    try:
        process.wait_until(is_ready, 90)
        yield Served(f"http://{HOST}:{port}", process)
    finally:
        process.stop()


@dataclass(frozen=True)
class TorchServe:
    """A running TorchServe.

    Attributes:
      layout: its run directory.
      server: its addresses.
      process: the process that started it and stops it.
    """

    layout: Layout
    server: Server
    process: ServerProcess


def port_flags() -> list[str]:
    """A free port for each of TorchServe's ports, as flags of its `start`."""
    names = [field.name for field in dataclasses.fields(Ports)]
    return [text for name in names for text in (f"--{name}", str(free_port()))]


@contextmanager
def torchserve_server(model: str, *flags: str) -> Iterator[TorchServe]:
    """Runs TorchServe by the project's own command until its worker is ready; tokens are on."""
    # Sockets lie under the run directory, so its path must be short: pytest's would not do.
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory) / "run")
        command = [sys.executable, "-m", "model.serving.torchserve", "start", "--foreground", "--tokens"]
        command += ["--model", model, "--run_dir", str(layout.root), "--workers", "1", *port_flags(), *flags]
        process = ServerProcess("TorchServe", command, grace=30)

        def ready() -> bool:
            try:
                models = list_models(torchserve_process.server_of(layout))
            except TorchServeError:
                return False
            return bool(models) and all(model.ready for model in models)

        process.start()
        try:
            process.wait_until(ready, 120)
            yield TorchServe(layout, torchserve_process.server_of(layout), process)
        finally:
            process.stop()

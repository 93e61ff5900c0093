"""The TorchServe process: what it needs, start, wait until its workers are ready, stop."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from model.serving.torchserve.config import Layout, TorchServeError, read_properties, tokens_off
from model.serving.torchserve.management import Management, ModelVersion, Server
from model.serving.torchserve.ports import require_free

JAVA_HINT: Final = (
    "TorchServe needs Java 17 or newer; install it, for example: apt-get install openjdk-17-jre-headless"
)
PYTHON_HINT: Final = "install the serving extras: pip install -c constraints.txt -e '.[serve]'"
STOP_SECONDS: Final = 20.0


def missing() -> str | None:
    """What this machine lacks to run TorchServe, with how to install it; None when nothing is missing."""
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home, "bin", "java")) if home else "java") is None:
        return JAVA_HINT
    # yaml: TorchServe imports it in every worker and does not declare it.
    lacking = [name for name in ("ts", "yaml", "psutil") if importlib.util.find_spec(name) is None]
    return f"Python module(s) {', '.join(lacking)} not found; {PYTHON_HINT}" if lacking else None


def start(layout: Layout, timeout: float) -> tuple[subprocess.Popen[bytes], list[ModelVersion]]:
    """Starts TorchServe with `layout.config` and waits until every model has its workers ready.

    The server gets a session of its own and goes on when this program ends; `stop` ends it.

    Raises:
      TorchServeError: something is missing, a server runs already, a port is taken, or the server did not
        become ready.
    """
    lack = missing()
    if lack:
        raise TorchServeError(lack)
    if find_process(layout) is not None:
        raise TorchServeError(f"--run_dir {layout.root}: a TorchServe runs already; stop it first")
    require_free(read_properties(layout.config))
    layout.key_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--no-config-snapshots"]
    command += ["--ts-config", str(layout.config), "--model-store", str(layout.model_store)]
    environment = {
        **os.environ,
        # Java's temporary directory holds the workers' sockets under fixed names, Python's the pid file:
        # in /tmp a second server on the machine would collide with the first.
        "TEMP": str(layout.temporary),
        "TMPDIR": str(layout.temporary),
        "LOG_LOCATION": str(layout.logs),
        "METRICS_LOCATION": str(layout.logs),
        "OMP_NUM_THREADS": "1",
    }
    # It would win over --ts-config.
    environment.pop("TS_CONFIG_FILE", None)
    with layout.output.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=layout.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _write_state(layout, process.pid)
    try:
        models = Management(server_of(layout)).wait_ready(timeout, alive=lambda: process.poll() is None)
        if process.poll() is not None:
            address = server_of(layout).management
            raise TorchServeError(f"TorchServe has ended, and another server answers at {address}")
    except TorchServeError as error:
        stop(layout)
        raise TorchServeError(f"{error}\nThe end of {layout.output}:\n{tail(layout.output)}") from error
    except BaseException:
        stop(layout)
        raise
    return process, models


def server_of(layout: Layout) -> Server:
    """The addresses of the server that was started in this run directory.

    Raises:
      TorchServeError: none was started there.
    """
    if not layout.state.is_file():
        raise TorchServeError(f"--run_dir {layout.root}: no TorchServe was started there")
    values = read_properties(layout.config)

    def reachable(address: str) -> str:
        return address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  compared, not bound

    return Server(
        reachable(values["inference_address"]),
        reachable(values["management_address"]),
        reachable(values["metrics_address"]),
        reachable(f"{values['grpc_inference_address']}:{values['grpc_inference_port']}"),
        None if tokens_off(values) else layout.key_file,
    )


def find_process(layout: Layout) -> Any:
    """The psutil process of the server in this run directory, or None when it does not run."""
    import psutil

    try:
        state = json.loads(layout.state.read_text(encoding="utf-8"))
        process = psutil.Process(state["pid"])
        # A process id may have gone to another program meanwhile; its start time tells.
        if abs(process.create_time() - state["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, KeyError, psutil.Error):
        pass
    return None


def stop(layout: Layout) -> bool:
    """Ends the server and its workers, and forgets its keys. False when none was running."""
    import psutil

    launcher = find_process(layout)
    if launcher is not None:
        try:
            family = [*launcher.children(recursive=True), launcher]
        except psutil.Error:
            family = [launcher]
        # Java first: it ends its workers in order. The launcher ends when Java does.
        for process in family:
            if _alive(process) and process.name().startswith("java"):
                _send(process, signal.SIGTERM)
        _wait(family, STOP_SECONDS)
        for process in family:
            _send(process, signal.SIGKILL)
        _wait(family, 5.0)
    layout.state.unlink(missing_ok=True)
    layout.key_file.unlink(missing_ok=True)
    shutil.rmtree(layout.temporary, ignore_errors=True)
    return launcher is not None


def tail(path: Path, lines: int = 25) -> str:
    """The last lines of a text file, indented."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (nothing)"


def _write_state(layout: Layout, pid: int) -> None:
    import psutil

    started = psutil.Process(pid).create_time()
    layout.state.write_text(json.dumps({"pid": pid, "started": started}), encoding="utf-8")


def _alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _send(process: Any, signum: int) -> None:
    import psutil

    if _alive(process):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)


def _wait(processes: Iterable[Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_alive(process) for process in processes):
        time.sleep(0.05)

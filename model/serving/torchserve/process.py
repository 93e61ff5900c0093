"""The TorchServe process: its requirements, start, wait until its workers are ready, stop."""

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
from pathlib import Path
from typing import Any, Final

from common.writing import write_text
from model.serving.torchserve import keys
from model.serving.torchserve.config import Layout, TorchServeError, read_properties, tokens_off
from model.serving.torchserve.logs import log_config
from model.serving.torchserve.management import ModelVersion, Server, wait_ready
from model.serving.torchserve.ports import require_free

JAVA_HINT: Final = (
    "TorchServe needs Java 17 or newer; install it, for example: apt-get install openjdk-17-jre-headless"
)
PYTHON_HINT: Final = "install the serving extras: pip install -c constraints.txt -e '.[serve]'"
STOP_SECONDS: Final = 20.0
_STDERR: Final = 2


def missing_software() -> str | None:
    """Names software that TorchServe needs and this machine does not have, and its installation."""
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home, "bin", "java")) if home else "java") is None:
        return JAVA_HINT
    # yaml: TorchServe imports it in every worker and does not declare it.
    absent = [name for name in ("ts", "yaml", "psutil") if importlib.util.find_spec(name) is None]
    return f"Python module(s) {', '.join(absent)} not found; {PYTHON_HINT}" if absent else None


def start(
    layout: Layout, timeout: float, foreground: bool = False
) -> tuple[subprocess.Popen[bytes], list[ModelVersion]]:
    """Starts TorchServe with `layout.config` and waits until every model has its workers ready.

    The server gets a session of its own and goes on when this program ends; `stop` ends it.

    Args:
      layout: of the server.
      timeout: seconds to become ready.
      foreground: its log goes to stderr, and not to files.

    Raises:
      TorchServeError: something is missing, a server runs already, a port is taken, or the server did not
        become ready.
    """
    missing = missing_software()
    if missing:
        raise TorchServeError(missing)
    if find_process(layout) is not None:
        raise TorchServeError(f"--run_dir {layout.root}: a TorchServe runs already; stop it first")
    require_free(read_properties(layout.config))
    layout.key_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--no-config-snapshots"]
    command += ["--ts-config", str(layout.config), "--model-store", str(layout.model_store)]
    command += ["--log-config", str(layout.log_config)]
    write_text(layout.log_config, log_config(foreground), "--run_dir")
    environment = {
        **os.environ,
        # Java's temporary directory holds the workers' sockets under fixed names, Python's the pid file:
        # in /tmp a second server on the machine would collide with the first.
        "TEMP": str(layout.temporary),
        "TMPDIR": str(layout.temporary),
        "LOG_LOCATION": str(layout.logs),
        "METRICS_LOCATION": str(layout.logs),
        "OMP_NUM_THREADS": "1",
        keys.ENVIRONMENT: str(layout.given_keys),
    }
    # It would win over --ts-config.
    environment.pop("TS_CONFIG_FILE", None)
    with layout.output.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=layout.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            # stdout is for the status, which a program may read.
            stdout=_STDERR if foreground else output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _write_state(layout, process.pid)
    try:
        models = wait_ready(server_of(layout), timeout, alive=lambda: process.poll() is None)
        if process.poll() is not None:
            address = server_of(layout).management
            raise TorchServeError(f"TorchServe has ended, and another server answers at {address}")
    except TorchServeError as error:
        stop(layout)
        logs = () if foreground else (layout.output, layout.logs / "ts_log.log")
        ends = "".join(f"\nThe end of {path}:\n{tail(path)}" for path in logs)
        raise TorchServeError(f"{error}{ends}") from error
    except BaseException:
        stop(layout)
        raise
    return process, models


def server_of(layout: Layout) -> Server:
    """Reads the addresses of the server that was started in this run directory.

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
    """Finds the psutil process of the server in this run directory; None when nothing of it runs.

    It is the launcher, or where that is dead, another process of the server.
    """
    members = _family(layout)
    return members[0] if members else None


def stop(layout: Layout) -> bool:
    """Ends the server and its workers, and forgets its keys. False when none was running.

    Raises:
      TorchServeError: a process does not end; its state stays, so that `stop` can be tried again.
    """
    family = _family(layout)
    # Java first: it ends its workers in order. The launcher ends when Java does.
    for process in family:
        if _is_java(process):
            _send(process, signal.SIGTERM)
    _wait(layout, STOP_SECONDS)
    for process in _family(layout):
        _send(process, signal.SIGKILL)
    _wait(layout, 5.0)
    left = _family(layout)
    if left:
        ids = ", ".join(str(process.pid) for process in left)
        raise TorchServeError(f"--run_dir {layout.root}: process {ids} does not end; run stop again")
    for path in (layout.state, layout.key_file, layout.given_keys):
        path.unlink(missing_ok=True)
    shutil.rmtree(layout.temporary, ignore_errors=True)
    return bool(family)


def tail(path: Path, lines: int = 25) -> str:
    """Reads the last lines of a text file, indented."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (nothing)"


def _write_state(layout: Layout, pid: int) -> None:
    import psutil

    started = psutil.Process(pid).create_time()
    write_text(layout.state, json.dumps({"pid": pid, "started": started}), "--run_dir")


def _family(layout: Layout) -> list[Any]:
    """The living processes of the server in this run directory, the launcher first when it lives.

    They are found also by their session, not only as the launcher's descendants: Java and its workers go on
    when the launcher is killed.
    """
    import psutil

    try:
        state = json.loads(layout.state.read_text(encoding="utf-8"))
        pid, started = int(state["pid"]), float(state["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    members: dict[int, Any] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if not _alive(process):
                continue
            if process.pid == pid:
                # The process id may belong to another program by now; its start time shows it.
                if abs(process.create_time() - started) < 1:
                    members |= {member.pid: member for member in (process, *process.children(recursive=True))}
            elif os.getsid(process.pid) == pid and _works_in(process, layout):
                members[process.pid] = process
    living = [process for process in members.values() if _alive(process)]
    return sorted(living, key=lambda process: process.pid != pid)


def _works_in(process: Any, layout: Layout) -> bool:
    """Tells whether a process has this server's environment: the id of a session may be used again."""
    return Path(process.environ().get("TEMP", "")).resolve() == layout.temporary.resolve()


def _is_java(process: Any) -> bool:
    import psutil

    try:
        return str(process.name()).startswith("java")
    except psutil.Error:
        return False


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


def _wait(layout: Layout, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _family(layout):
        time.sleep(0.1)

"""Server processes of the local stack: they start, answer, and end with the process that started them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from common.writing import write_text

HOST: Final = "127.0.0.1"
_GUARDIAN: Final = Path(__file__).with_name("guardian.py")
_IMPORT_ROOT: Final = Path(__file__).resolve().parents[1]
_LOG_TAIL_LINES: Final = 25


class LocalStackError(RuntimeError):
    """A part of the local stack is missing, did not start, or did not answer in time."""


def free_port() -> int:
    """Returns a TCP port on 127.0.0.1 that is free now; another process may still take it first."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def require_free(port: int, flag: str) -> None:
    """Checks that nothing listens on a port that the user chose; 0 always passes.

    Raises:
      LocalStackError: the port is taken.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise LocalStackError(
                f"{flag}: port {port} on {HOST} is in use. Choose another, or 0 for any free one."
            ) from error


@dataclass(eq=False)
class ServerProcess:
    """One server under the care of a guardian process.

    Attributes:
      name: The server's name in error messages.
      command: Program and arguments; no shell takes part.
      environment: Variables set on top of this process's own.
      directory: A temporary directory of the server's own, with its log, `server.log`. By default
        `start` makes it. It is removed at the end.
      grace: Seconds between SIGTERM and SIGKILL.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    grace: float = 5.0
    _guardian: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _owner: int = field(default=0, init=False, repr=False)

    @property
    def log_path(self) -> Path:
        """The file of the server's output."""
        if self.directory is None:
            raise LocalStackError(f"{self.name} has not been started")
        return self.directory / "server.log"

    def start(self) -> None:
        """Starts the server and returns at once; see `wait_until`."""
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="local-stack-"))
        spec = {
            "command": list(self.command),
            "log": str(self.log_path),
            "remove": [str(self.directory)],
            "grace": self.grace,
        }
        self._owner = os.getpid()
        # A session of its own, so that Ctrl-C in a terminal does not decide the order of the shutdown.
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", str(_GUARDIAN), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        _RUNNING.add(self)

    @property
    def running(self) -> bool:
        """True from the start of the server to its end."""
        if self._guardian is None:
            return False
        # The guardian writes nothing to its standard output. It closes it when the server has ended.
        assert self._guardian.stdout is not None
        closed, _, _ = select.select([self._guardian.stdout], [], [], 0)
        return not closed

    def log_text(self) -> str:
        """Returns the output of the server so far."""
        with contextlib.suppress(OSError, LocalStackError):
            return self.log_path.read_text(errors="replace")
        return ""

    def log_tail(self) -> str:
        """Returns the last lines of the log, indented, for error messages."""
        lines = self.log_text().splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"

    def ended(self) -> str:
        """Reports a server that has ended by itself, with the end of its log; "" while it runs."""
        return "" if self.running else f"{self.name} has ended. The end of its log:\n{self.log_tail()}"

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Polls `ready` until it is true.

        Raises:
          LocalStackError: the server ended, or `timeout` seconds passed; the message has the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            ended = not self.running
            if ended or time.monotonic() > deadline:
                tail = self.log_tail()
                self.stop()
                reason = "ended while it was starting" if ended else f"did not answer within {timeout:.0f} s"
                raise LocalStackError(f"{self.name} {reason}. The end of its log:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server with all its children and removes its directory; a second call does nothing."""
        guardian, self._guardian = self._guardian, None
        _RUNNING.discard(self)
        if guardian is None or os.getpid() != self._owner:
            return
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        guardian.stdin.close()
        try:
            guardian.wait(self.grace + 5)
        except subprocess.TimeoutExpired:
            guardian.kill()
            guardian.wait()
        guardian.stdout.close()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None


def write_ready(directory: Path, **ports: int) -> None:
    """Writes the ports that a server of this project has bound; see `Emulator.wait_for_ports`."""
    partial = directory / "ready.partial"
    write_text(partial, json.dumps(ports))
    partial.replace(directory / "ready.json")


class Emulator:
    """Base of the emulators: one process, which `launch` of the class starts.

    Attributes:
      fields: Names of the fields of `Endpoints` that hold its addresses.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    _process: ServerProcess | None = None

    def launch_module(self, name: str, module: str, *arguments: str) -> None:
        """Starts a module of this project, which gets `--work_dir` as well and calls `write_ready`."""
        directory = Path(tempfile.mkdtemp(prefix="local-stack-"))
        command = [sys.executable, "-m", module, f"--work_dir={directory}", *arguments]
        path = os.pathsep.join(filter(None, (str(_IMPORT_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = ServerProcess(name, command, environment={"PYTHONPATH": path}, directory=directory)
        self._process.start()

    def wait_for_ports(self, timeout: float) -> dict[str, int]:
        """Waits until a server that `launch_module` has started has bound its ports, and returns them.

        Raises:
          LocalStackError: it ended or did not bind them in time; the message has the end of its log.
        """
        assert self._process is not None, "launch() comes first"
        path = self.directory / "ready.json"
        self._process.wait_until(path.is_file, timeout)
        ports: dict[str, int] = json.loads(path.read_text())
        return ports

    @property
    def name(self) -> str:
        """The emulator's name in messages."""
        assert self._process is not None, "launch() comes first"
        return self._process.name

    def ended(self) -> str:
        """Reports an emulator that has ended by itself, with the end of its log; "" while it runs."""
        return self._process.ended() if self._process is not None else ""

    @property
    def directory(self) -> Path:
        """The temporary directory of the process; `stop` removes it."""
        assert self._process is not None, "launch() comes first"
        assert self._process.directory is not None, "the process has ended"
        return self._process.directory

    def stop(self) -> None:
        """Ends the emulator; a second call does nothing."""
        if self._process is not None:
            self._process.stop()


_RUNNING: Final[weakref.WeakSet[ServerProcess]] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for server in list(_RUNNING):
        server.stop()

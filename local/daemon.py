"""A stack that outlives the command that started it: where it is noted, whether it runs, how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from local.endpoints import Endpoints
from local.process import LocalStackError
from local.stack import LocalStack

_STOP_SECONDS = 20.0
_WATCH_SECONDS = 0.5


def default_state_dir() -> Path:
    """Where stacks of this user are noted: XDG_RUNTIME_DIR, or a private directory for temporary files."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "local-stack") if base else Path(tempfile.gettempdir(), f"local-stack-{os.getuid()}")


@dataclass(frozen=True)
class Running:
    """A stack that runs: the process that holds it, and where it listens."""

    pid: int
    endpoints: Endpoints


class Daemon:
    """The stack of one name.

    Its process holds a lock on a file for as long as it lives. So what is written in the file is true exactly
    while the lock is held, whatever killed the process and whatever process has its id today.
    """

    def __init__(self, name: str = "default", state_dir: Path | None = None) -> None:
        self.name = name
        self._directory = state_dir or default_state_dir()
        self._lock_path = self._directory / f"{name}.lock"
        self._state_path = self._directory / f"{name}.json"
        self.log_path = self._directory / f"{name}.log"

    def _prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._directory.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise LocalStackError(f"{self._directory} can be written by others. Choose another --state_dir.")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[TextIO | None]:
        """The lock, or None while another process holds it."""
        self._prepare()
        with open(self._lock_path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file

    def _read(self) -> Running | None:
        try:
            content = json.loads(self._state_path.read_text())
            return Running(content["pid"], Endpoints(**content["endpoints"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def status(self) -> Running | None:
        """The running stack, or None. What a stack that was killed has left behind is removed."""
        with self._locked() as lock:
            if lock is None:
                return self._read()
            self._state_path.unlink(missing_ok=True)
            return None

    def serve(self, stack: LocalStack) -> None:
        """Run `stack` in this process until SIGTERM or SIGINT.

        Raises:
          LocalStackError: the stack of this name runs already, does not start, or loses an emulator.
        """
        with self._locked() as lock:
            if lock is None:
                raise LocalStackError(f"The local stack {self.name!r} is running already.")
            self._state_path.unlink(missing_ok=True)  # of a stack that was killed
            signals = (signal.SIGTERM, signal.SIGINT)
            before = [signal.signal(signum, _raise_exit) for signum in signals]
            try:
                with stack:
                    self._write(stack.endpoints)
                    while not (ended := stack.ended()):
                        time.sleep(_WATCH_SECONDS)
                    raise LocalStackError(ended)
            except SystemExit:
                pass
            finally:
                self._state_path.unlink(missing_ok=True)
                for signum, handler in zip(signals, before, strict=True):
                    signal.signal(signum, handler)

    def _write(self, endpoints: Endpoints) -> None:
        content: dict[str, Any] = {"pid": os.getpid(), "endpoints": endpoints.to_dict()}
        partial = self._state_path.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(self._state_path)

    def up(self, arguments: Sequence[str], timeout: float) -> Running:
        """Start the stack in a process of its own and wait until it is ready.

        Args:
          arguments: The command-line arguments of `anomaly local up` that describe the stack.
          timeout: Seconds.

        Raises:
          LocalStackError: it did not start; the message has what it said.
        """
        self._prepare()
        command = [sys.executable, "-m", "local", "up", "--foreground", *arguments]
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with open(self.log_path, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        deadline = time.monotonic() + timeout
        while True:
            running = self._read()
            if running is not None and running.pid == process.pid:
                return running
            if process.poll() is not None:
                raise LocalStackError(self.log_path.read_text().strip() or "The local stack ended at once.")
            if time.monotonic() > deadline:
                process.terminate()
                process.wait()
                raise LocalStackError(f"The local stack was not ready within {timeout:.0f} s.")
            time.sleep(0.05)

    def down(self) -> bool:
        """End the stack. False when it was not running."""
        running = self.status()
        if running is None:
            return False
        # The lock is held, so this id belongs to the stack.
        os.kill(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self.status() is not None:
            if time.monotonic() > deadline:
                raise LocalStackError(f"The local stack (process {running.pid}) does not end. Kill it.")
            time.sleep(0.05)
        return True


def _raise_exit(signum: int, frame: object) -> None:
    # Once is enough: a second signal must not break into the clean-up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)

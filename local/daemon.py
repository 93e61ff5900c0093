"""A stack that outlives the command that started it: its state file, its start and its end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from common.writing import FileWriteError, write_text
from local.endpoints import Endpoints
from local.process import LocalStackError
from local.stack import LocalStack

_STOP_SECONDS = 20.0
_WATCH_SECONDS = 0.5


def default_state_dir() -> Path:
    """Returns the directory of this user's state files, in XDG_RUNTIME_DIR or the temporary directory."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "local-stack") if base else Path(tempfile.gettempdir(), f"local-stack-{os.getuid()}")


@dataclass(frozen=True)
class Running:
    """A stack that runs.

    Attributes:
      pid: id of its process.
      endpoints: addresses of the emulators that run.
      started: addresses of all emulators, as they were at the start.
      ended: names of the emulators that have ended by themselves.
    """

    pid: int
    endpoints: Endpoints
    started: Endpoints
    ended: tuple[str, ...] = ()


class Daemon:
    """The stack of one name.

    Its process holds a lock on a file for as long as it lives. The state file is true while the lock is held.
    A process that was killed holds no lock, so its id is never taken for another process.
    """

    def __init__(self, name: str = "default", state_dir: Path | None = None) -> None:
        self.name = name
        self._state_dir = state_dir
        self._directory = state_dir or default_state_dir()
        self._lock_path = self._directory / f"{name}.lock"
        self._state_path = self._directory / f"{name}.json"
        self.log_path = self._directory / f"{name}.log"

    def flags(self) -> str:
        """Returns the flags that name this stack in another command; "" for the default."""
        name = "" if self.name == "default" else f" --name={shlex.quote(self.name)}"
        return name + (f" --state_dir={shlex.quote(str(self._state_dir))}" if self._state_dir else "")

    def advice(self, running: Running) -> str:
        """Says which emulators of a stack have ended by themselves, and what to do; "" while all run."""
        if not running.ended:
            return ""
        down, up = (f"`anomaly local {action}{self.flags()}`" for action in ("down", "up"))
        return (
            f"{' and '.join(running.ended)} ended by itself; the rest of the stack goes on. To start all "
            f"anew, run {down} and {up}: Pub/Sub's messages, and tables without --data_dir, are lost by that."
        )

    def _prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._directory.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise LocalStackError(
                f"--state_dir: expected a directory that only you can write, got {self._directory}, "
                "which can be written by others"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[TextIO | None]:
        """Takes the lock for a `with` block; gives None while another process holds it."""
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
            endpoints, started = (Endpoints(**content[name]) for name in ("endpoints", "started"))
            return Running(content["pid"], endpoints, started, tuple(content["ended"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def status(self) -> Running | None:
        """Returns the running stack, or None. Removes the state file of a stack that was killed."""
        with self._locked() as lock:
            if lock is None:
                return self._read()
            self._state_path.unlink(missing_ok=True)
            return None

    def serve(self, stack: LocalStack) -> None:
        """Runs `stack` in this process until SIGTERM or SIGINT, while any of its emulators runs.

        An emulator that ends by itself is told on stderr and leaves the state file. The others go on.

        Raises:
          LocalStackError: the stack of this name runs already, does not start, or has lost all emulators.
        """
        with self._locked() as lock:
            if lock is None:
                raise LocalStackError(f"The local stack {self.name!r} is running already.")
            self._state_path.unlink(missing_ok=True)  # of a stack that was killed
            signals = (signal.SIGTERM, signal.SIGINT)
            before = [signal.signal(signum, _raise_exit) for signum in signals]
            try:
                with stack:
                    running = Running(os.getpid(), stack.endpoints, stack.endpoints)
                    self._write(running)
                    while True:
                        time.sleep(_WATCH_SECONDS)
                        if reports := stack.remove_ended():
                            running = replace(running, endpoints=stack.endpoints, ended=stack.ended)
                            with contextlib.suppress(FileWriteError):  # what still runs goes on
                                self._write(running)
                            print("\n".join((*reports, self.advice(running))), file=sys.stderr, flush=True)
            except SystemExit:
                pass
            finally:
                self._state_path.unlink(missing_ok=True)
                for signum, handler in zip(signals, before, strict=True):
                    signal.signal(signum, handler)

    def _write(self, running: Running) -> None:
        partial = self._state_path.with_suffix(".partial")
        write_text(partial, json.dumps(asdict(running)), "--state_dir")
        partial.replace(self._state_path)

    def up(self, arguments: Sequence[str], timeout: float) -> Running:
        """Starts the stack in a process of its own and waits until it is ready.

        Args:
          arguments: The command-line arguments of `anomaly local up` that describe the stack.
          timeout: Seconds.

        Raises:
          LocalStackError: it did not start; the message has its output.
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
        """Ends the stack; returns False when it was not running."""
        running = self.status()
        if running is None:
            return False
        # The lock is held, so this id belongs to the stack.
        os.kill(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self.status() is not None:
            if time.monotonic() > deadline:
                raise LocalStackError(
                    f"The local stack (process {running.pid}) did not end within {_STOP_SECONDS:.0f} s. "
                    f"Run `kill -9 {running.pid}`."
                )
            time.sleep(0.05)
        return True


def _raise_exit(signum: int, frame: object) -> None:
    # Once is enough: a second signal must not break into the clean-up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)

"""Runs one server on behalf of a parent process, and ends it when the parent is gone.

A parent that is killed with SIGKILL cannot clean up. So the server is the child of this small process, which
stays. It notices the death of the parent in two ways: its standard input reaches end of file, and its
parent process id changes. It then ends the server with all its children and removes its directories.
It runs as a script and imports the standard library alone, so that it starts quickly.

    python -I guardian.py '{"command": ["server"], "log": "/tmp/x.log", "remove": ["/tmp/x"], "grace": 5}'
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

POLL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1


def _die_with_guardian() -> None:
    """Asks the kernel for SIGTERM when this guardian dies; runs in the server before exec. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _signal_group(group: int, signum: int) -> bool:
    """Sends a signal to a process group; returns False when the group has no process left."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    except PermissionError:  # from macOS, for a group of zombies alone
        return False
    return True


def end_group(server: subprocess.Popen[bytes], grace: float) -> None:
    """Ends the server's process group: SIGTERM, then SIGKILL after `grace` seconds.

    The whole group counts, because a launcher script may leave a child behind.
    """
    group = server.pid
    deadline = time.monotonic() + grace
    alive = _signal_group(group, signal.SIGTERM)
    while alive and time.monotonic() < deadline:
        server.poll()
        time.sleep(0.02)
        alive = _signal_group(group, 0)
    _signal_group(group, signal.SIGKILL)
    server.wait()


def _watch(server: subprocess.Popen[bytes], parent: int) -> None:
    """Returns when the parent is gone or has closed our standard input.

    A server that ends by itself is reported by closing standard output; its directory, with the log in it,
    stays for the parent to read.
    """
    reported = False
    while os.getppid() == parent:
        if not reported and server.poll() is not None:
            os.close(sys.stdout.fileno())
            reported = True
        readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 64):
            return


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def main(spec: dict[str, Any]) -> None:
    """Runs `spec["command"]` until the parent is gone or closes standard input, then cleans up."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server: subprocess.Popen[bytes] | None = None
    try:
        with open(spec["log"], "ab") as log:
            # A group of its own: signals reach the launcher's children too, and Ctrl-C does not.
            # preexec_fn is safe here: this process has one thread.
            server = subprocess.Popen(
                spec["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_guardian,
            )
        _watch(server, parent)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if server is not None:
            end_group(server, float(spec.get("grace", 5.0)))
        for path in spec.get("remove", ()):
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

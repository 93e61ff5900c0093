"""Commands of this project as the demo runs them: as a user would, shown, and ended with the demo."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

STOP_SECONDS: Final = 20.0
"""Time for a command of the demo to end."""


class DemoError(RuntimeError):
    """A check of the demo has failed; the text names it."""


def say(text: str) -> None:
    """Prints a heading on stderr, so that stdout holds the report alone."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a command of this project as a user would, shows it, and ends it with the block."""
    print(f"$ anomaly {' '.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "common.anomaly", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # it waits for an emulator that is gone
                process.kill()


def output(process: subprocess.Popen[str]) -> str:
    """Waits for a command that was `started`, and returns its standard output.

    Raises:
      DemoError: the command failed.
    """
    text, _ = process.communicate()
    if process.returncode:
        raise DemoError(f"the command ended with {process.returncode}; it and its messages are above")
    return text


def ran(*arguments: str) -> str:
    """Runs a command of this project as a user would, and returns its standard output.

    Raises:
      DemoError: the command failed.
    """
    with started(*arguments) as process:
        return output(process)

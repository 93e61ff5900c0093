"""Runs gcloud, which is the better client for enabled APIs, accounts, roles and the image repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from common.command import CommandError
from common.retry import Patience

# gcloud reports an error as text alone, so that this is the one place that reads it.
_MISSING: Final = re.compile(
    # As a status: a project may be called p404-dev.
    r"NOT_FOUND|[Nn]ot found|does not exist|Unknown service account|HTTPError 404\b|status=\[?404\b"
)
_DENIED: Final = re.compile(r"PERMISSION_DENIED|HTTPError 403\b|SERVICE_DISABLED")
_SETTLING: Final = re.compile(
    r"has not been used|SERVICE_DISABLED|concurrent policy changes|\bABORTED\b|\betag\b"
    r"|[Ss]ervice ?[Aa]ccount \S+ does not exist|\bKMS\b"
)
# gcloud signs in by a database of its own before it asks for anything. Where others hold it for five seconds,
# it gives up.
_BUSY: Final = re.compile(r"database is locked")
_BUSY_PATIENCE: Final = Patience(seconds=60, first=1, longest=8)


class GcloudError(CommandError):
    """A gcloud command failed; the text has the command and the error that gcloud printed.

    Attributes:
      is_missing: whether the thing that the command asked for does not exist.
      is_settling: whether the project changed a moment ago, so that the same command may succeed soon: an API
        was enabled, an account made, or a policy changed by another process.
      is_busy: whether other gcloud processes kept this one from signing in, so that it has done nothing.
    """

    def __init__(self, text: str, stderr: str = "") -> None:
        super().__init__(text)
        # Google says of a thing that the caller may not see that it is forbidden "or does not exist".
        self.is_missing = bool(_MISSING.search(stderr)) and not _DENIED.search(stderr)
        self.is_settling = bool(_SETTLING.search(stderr))
        self.is_busy = bool(_BUSY.search(stderr))


@dataclass
class Gcloud:
    """Runs gcloud, and shows each command that changes something before it runs.

    Attributes:
      print_only: show the commands that change something, and run none of them.
      quiet: do not show them either.
      printed: the commands so far that change something, as a person would type them.
    """

    print_only: bool = False
    quiet: bool = False
    printed: list[str] = field(default_factory=list)
    _answers: dict[tuple[str, ...], Any] = field(default_factory=dict, repr=False)
    _locks: dict[tuple[str, ...], threading.Lock] = field(default_factory=dict, repr=False)
    _once: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def available() -> bool:
        """Returns whether gcloud is on the PATH."""
        return shutil.which("gcloud") is not None

    def read(self, *arguments: str) -> Any:
        """The JSON answer of a command that changes nothing; the same command is asked once.

        Threads may ask at the same time.

        Raises:
          GcloudError: gcloud is missing or failed.
        """
        with self._lock:
            if arguments not in self._locks:
                self._locks[arguments] = threading.Lock()
        with self._locks[arguments]:
            if arguments not in self._answers:
                self._answers[arguments] = json.loads(self._run([*arguments, "--format=json"]) or "null")
            return self._answers[arguments]

    def change(self, *arguments: str) -> None:
        """Runs a command that changes something.

        `read` keeps its earlier answers: it is called before a change, never to see one.

        Raises:
          GcloudError: gcloud is missing or failed.
        """
        self._show(arguments)
        if not self.print_only:
            self._run([*arguments, "--format=none"])

    def follow(self, *arguments: str) -> str:
        """Runs a command that takes minutes, and shows what it says as it comes, on stderr.

        Returns:
          Its standard output, which is not shown where it is JSON.

        Raises:
          GcloudError: gcloud is missing or failed.
        """
        self._show(arguments)
        is_json = "--format=json" in arguments
        process = subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # gcloud is in Python
        )
        said: list[str] = []
        progress = threading.Thread(target=_copy, args=(process.stderr, said, True))
        progress.start()
        answer: list[str] = []
        try:
            _copy(process.stdout, answer, not is_json)
        finally:
            if process.poll() is None:  # Ctrl-C reaches gcloud as well
                process.wait()
            progress.join()
        if process.returncode:
            raise _failure(arguments, process.returncode, "".join(said))
        return "".join(answer)

    def once(self, *arguments: str) -> None:
        """Runs a command as `change` does, unless it has been run; threads wait for each other."""
        with self._once:
            if shlex.join(["gcloud", *arguments]) not in self.printed:
                self.change(*arguments)

    def _show(self, arguments: Sequence[str]) -> None:
        text = shlex.join(["gcloud", *arguments])
        self.printed.append(text)
        if not self.quiet:
            sys.stderr.write(f"$ {text}\n")  # in one piece: several threads write here
            sys.stderr.flush()

    def _run(self, arguments: Sequence[str]) -> str:
        return _BUSY_PATIENCE.call(
            lambda: self._run_once(arguments), lambda error: isinstance(error, GcloudError) and error.is_busy
        )

    def _run_once(self, arguments: Sequence[str]) -> str:
        done = subprocess.run(
            self._command(arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise _failure(arguments, done.returncode, done.stderr)
        return done.stdout

    def _command(self, arguments: Sequence[str]) -> list[str]:
        if not self.available():
            raise GcloudError(
                "expected gcloud on the PATH, found none: install it from "
                f"https://cloud.google.com/sdk/docs/install, or run where it is: {_text(arguments)}"
            )
        return ["gcloud", *arguments, "--quiet"]


def _text(arguments: Sequence[str]) -> str:
    return shlex.join(["gcloud", *arguments, "--quiet"])


def _failure(arguments: Sequence[str], code: int, stderr: str) -> GcloudError:
    error = _error_lines(stderr)
    return GcloudError(f"{_text(arguments)} ended with {code}: {error}", error)


def _copy(pipe: IO[str] | None, kept: list[str], shown: bool) -> None:
    """Keeps the lines of a pipe, and shows them on stderr, each when it comes."""
    for line in pipe or ():
        kept.append(line)
        if shown:
            sys.stderr.write(line)
            sys.stderr.flush()


def _error_lines(stderr: str) -> str:
    """The lines from "ERROR:" on: progress and warnings stand before it, advice behind it."""
    lines = stderr.strip().splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("ERROR:")), max(len(lines) - 6, 0))
    return "\n".join(lines[first : first + 20])

"""gcloud, where it is the better client: enabled APIs, accounts, roles, the image repository."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_NOT_FOUND = re.compile(
    # As a status: a project may be called p404-dev.
    r"NOT_FOUND|[Nn]ot found|does not exist|Unknown service account|HTTPError 404\b|status=\[?404\b"
)
_DENIED = re.compile(r"PERMISSION_DENIED|HTTPError 403\b|SERVICE_DISABLED")


class GcloudError(RuntimeError):
    """A gcloud command failed; the text has the command and what gcloud said."""


class GcloudNotFoundError(GcloudError):
    """What the command asked for does not exist."""


@dataclass
class Gcloud:
    """Runs gcloud, and shows each command that changes something before it runs.

    Attributes:
      print_only: show the commands that change something, and run none of them.
      quiet: do not show them either.
      printed: those shown so far, as one would type them.
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
        """Whether gcloud is on the PATH."""
        return shutil.which("gcloud") is not None

    def read(self, *words: str) -> Any:
        """The JSON answer of a command that changes nothing; the same command is asked once.

        Threads may ask at the same time.

        Raises:
          GcloudError: gcloud is missing or failed.
        """
        with self._lock:
            if words not in self._locks:
                self._locks[words] = threading.Lock()
        with self._locks[words]:
            if words not in self._answers:
                self._answers[words] = json.loads(self._run([*words, "--format=json"]) or "null")
            return self._answers[words]

    def change(self, *words: str) -> None:
        """Runs a command that changes something.

        What `read` has learnt stays: it is asked before a change, never to see one.

        Raises:
          GcloudError: gcloud is missing or failed.
        """
        text = shlex.join(["gcloud", *words])
        self.printed.append(text)
        if not self.quiet:
            sys.stderr.write(f"$ {text}\n")  # in one piece: several threads write here
            sys.stderr.flush()
        if not self.print_only:
            self._run([*words, "--format=none"])

    def once(self, *words: str) -> None:
        """Runs a command as `change` does, unless it has been run; threads wait for each other."""
        with self._once:
            if shlex.join(["gcloud", *words]) not in self.printed:
                self.change(*words)

    def _run(self, words: Sequence[str]) -> str:
        command = ["gcloud", *words, "--quiet"]
        text = shlex.join(command)
        if not self.available():
            raise GcloudError(
                "no gcloud on the PATH. Install it from https://cloud.google.com/sdk/docs/install, or run "
                f"where it is: {text}"
            )
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            said = _error(done.stderr)
            # Google says of what one may not see that it is forbidden "or does not exist".
            missing = _NOT_FOUND.search(said) and not _DENIED.search(said)
            kind = GcloudNotFoundError if missing else GcloudError
            raise kind(f"{text}\nended with {done.returncode}: {said}")
        return done.stdout


def _error(stderr: str) -> str:
    """What gcloud says from its error on; before it stand progress and warnings, behind it what to do."""
    lines = stderr.strip().splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("ERROR:")), max(len(lines) - 6, 0))
    return "\n".join(lines[first : first + 20])

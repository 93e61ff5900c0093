"""The processes of Pub/Sub: the embedded server of this project, and the emulator of the Google Cloud CLI.

Both keep topics, subscriptions and messages in memory alone. Google's needs Java, and is started by its own
launcher where that is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from common.loopback import urlopen
from local.process import HOST, Emulator, LocalStackError, ServerProcess, free_port

PubSubKind = Literal["embedded", "gcloud"]
_LAUNCHER: Final = Path("platform", "pubsub-emulator", "bin", "cloud-pubsub-emulator")
_LISTENING: Final = re.compile(r"Server started, listening on (\d+)")
_PORT_TAKEN: Final = "Address already in use"
_ATTEMPTS: Final = 5


def find_launcher() -> Path | None:
    """Finds the emulator's own start script in the installation of gcloud; None where it is not there."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    # Distribution packages put a link or a one-line wrapper on the PATH, and the SDK in /usr/lib.
    binary = Path(gcloud).resolve()
    roots = (binary.parent.parent, Path("/usr/lib/google-cloud-sdk"), Path("/usr/share/google-cloud-sdk"))
    return next((root / _LAUNCHER for root in roots if (root / _LAUNCHER).is_file()), None)


def has_java() -> bool:
    """Tests for a Java runtime by running it: macOS has a `java` on the PATH that is none."""
    java = shutil.which("java")
    return java is not None and subprocess.run([java, "-version"], capture_output=True).returncode == 0


def missing() -> list[str]:
    """Lists the requirements of gcloud's emulator that are not met, each with what to do."""
    requirements = []
    if shutil.which("gcloud") is None:
        requirements.append(
            "gcloud's Pub/Sub emulator needs the Google Cloud CLI: no `gcloud` on the PATH. "
            "Install it from https://cloud.google.com/sdk/docs/install; no account is needed."
        )
    elif find_launcher() is None and not _component_installed():
        requirements.append(
            "gcloud's Pub/Sub emulator is not installed. Run `gcloud components install pubsub-emulator "
            "beta` (or, with apt, install google-cloud-cli-pubsub-emulator)."
        )
    if not has_java():
        requirements.append(
            "gcloud's Pub/Sub emulator needs Java 11 or newer: no working `java` on the PATH "
            "(on Debian: apt install default-jre-headless)."
        )
    return requirements


def _component_installed() -> bool:
    command = ["gcloud", "components", "list", "--only-local-state", "--format=value(id)", "--quiet"]
    listing = subprocess.run(command, capture_output=True, text=True)
    return "pubsub-emulator" in listing.stdout.split()


def _answers(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class EmbeddedPubSub(Emulator):
    """One process of `local.pubsub_server`.

    Attributes:
      port: The port to listen on at 127.0.0.1; 0 picks a free one.
      timeout: Seconds to wait for an answer.
      most_bytes: The most bytes of messages that it keeps; None is its default.
    """

    fields: ClassVar = ("pubsub", "pubsub_kind")
    port: int = 0
    timeout: float = 60.0
    most_bytes: int | None = None
    kind: PubSubKind = "embedded"

    def launch(self) -> None:
        """Starts the process; `wait` returns when it answers."""
        limit = [] if self.most_bytes is None else [f"--most_bytes={self.most_bytes}"]
        self.launch_module("The embedded Pub/Sub", "local.pubsub_server", f"--port={self.port}", *limit)

    def wait(self) -> str:
        """Waits until the server answers, and returns its address, "127.0.0.1:PORT".

        Raises:
          LocalStackError: it ended or did not answer in time; the message has the end of its log.
        """
        self.port = self.wait_for_ports(self.timeout)["pubsub"]
        return f"{HOST}:{self.port}"


@dataclass
class GcloudPubSub(Emulator):
    """One process of gcloud's emulator.

    Attributes:
      port: The port to listen on at 127.0.0.1; 0 picks a free one.
      timeout: Seconds to wait for an answer.
      use_gcloud: Start it through `gcloud beta emulators pubsub start` even where its own launcher is
        installed (about one second slower).
    """

    fields: ClassVar = ("pubsub", "pubsub_kind")
    port: int = 0
    timeout: float = 60.0
    use_gcloud: bool = False
    kind: PubSubKind = "gcloud"
    _fixed_port: bool = False

    def launch(self) -> None:
        """Starts the process; `wait` returns when it answers."""
        self._fixed_port = self.port != 0
        self._launch_on(self.port or free_port())

    def _launch_on(self, port: int) -> None:
        self.port = port
        launcher = None if self.use_gcloud else find_launcher()
        directory = Path(tempfile.mkdtemp(prefix="local-pubsub-"))
        command = (
            [str(launcher), f"--host={HOST}", f"--port={port}"]
            if launcher
            else [
                *("gcloud", "beta", "emulators", "pubsub", "start", "--quiet"),
                *(f"--host-port={HOST}:{port}", f"--data-dir={directory}"),
            ]
        )
        self._process = ServerProcess("gcloud's Pub/Sub emulator", command, directory=directory)
        self._process.start()

    def wait(self) -> str:
        """Waits until the emulator answers, and returns its address, "127.0.0.1:PORT".

        Raises:
          LocalStackError: it ended or did not answer in time; the message has the end of its log.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            assert self._process is not None, "launch() comes first"
            try:
                self._process.wait_until(self._ready, self.timeout)
                break
            except LocalStackError as error:
                # A free port can be taken by another process before the emulator binds it.
                if self._fixed_port or _PORT_TAKEN not in str(error) or attempt == _ATTEMPTS:
                    raise
                self._launch_on(free_port())
        return f"{HOST}:{self.port}"

    def _ready(self) -> bool:
        # The log as well as an answer: another emulator may be answering on this port.
        assert self._process is not None
        match = _LISTENING.search(self._process.log_text())
        return match is not None and int(match[1]) == self.port and _answers(f"{HOST}:{self.port}")

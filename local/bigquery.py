"""The BigQuery emulator (bqemulator, from PyPI), started by our launcher, which cures what hurts us in it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.loopback import urlopen
from local.process import HOST, Emulator, ServerProcess

_IMPORT_ROOT: Final = Path(__file__).resolve().parents[1]


def missing() -> list[str]:
    """What this machine lacks to run the BigQuery emulator, in words; empty where it can run."""
    if importlib.util.find_spec("bqemulator") is None:
        return ["The BigQuery emulator is not installed. Run `pip install bqemulator==1.4.0`."]
    return []


@dataclass
class BigQueryEmulator(Emulator):
    """One emulator process.

    Attributes:
      project: The default project id.
      port: The REST port at 127.0.0.1; 0 picks a free one.
      storage_port: The port of the Storage Read and Write APIs; 0 picks a free one.
      data_dir: Where the data is kept between runs; None keeps it in memory.
      gcs_root: A directory that stands for Cloud Storage in load and extract jobs: `gs://bucket/x` is
        `gcs_root/bucket/x`.
      timeout: Seconds to wait for an answer.
    """

    project: str
    port: int = 0
    storage_port: int = 0
    data_dir: Path | None = None
    gcs_root: Path | None = None
    timeout: float = 60.0

    def launch(self) -> None:
        """Start the process; `wait` returns when it answers."""
        directory = Path(tempfile.mkdtemp(prefix="local-bigquery-"))
        command = [sys.executable, "-m", "local.bqemulator_launcher"]
        command += [
            f"--project={self.project}",
            f"--rest-port={self.port}",
            f"--grpc-port={self.storage_port}",
        ]
        command += [f"--ready-file={directory / 'ready.json'}", f"--work-dir={directory}"]
        if self.data_dir is not None:
            command.append(f"--data-dir={self.data_dir}")
        if self.gcs_root is not None:
            command.append(f"--gcs-root={self.gcs_root}")
        path = os.pathsep.join(filter(None, (str(_IMPORT_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = ServerProcess(
            "The BigQuery emulator", command, environment={"PYTHONPATH": path}, directory=directory
        )
        self._process.start()

    def wait(self) -> tuple[str, str]:
        """Wait until the emulator answers.

        Returns:
          The addresses "http://127.0.0.1:PORT" (REST) and "127.0.0.1:PORT" (Storage APIs).

        Raises:
          LocalStackError: it ended or did not answer in time; the message has the end of its log.
        """
        assert self._process is not None, "launch() comes first"
        self._process.wait_until(self._ready, self.timeout)
        return f"http://{HOST}:{self.port}", f"{HOST}:{self.storage_port}"

    def _ready(self) -> bool:
        # The launcher writes the ports that it has bound, so they cannot be somebody else's.
        assert self._process is not None
        assert self._process.directory is not None
        try:
            ports = json.loads((self._process.directory / "ready.json").read_text())
        except (OSError, ValueError):
            return False
        self.port, self.storage_port = ports["rest"], ports["grpc"]
        try:
            with urlopen(f"http://{HOST}:{self.port}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

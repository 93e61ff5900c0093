"""The BigQuery emulator: bqemulator from PyPI, started with its defects fixed."""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.loopback import urlopen
from local.process import HOST, Emulator
from local.versions import check_version


def missing() -> list[str]:
    """Lists the requirements of the BigQuery emulator that are not met, each with what to do."""
    error = check_version("bqemulator")
    return [f"The BigQuery emulator: {error}"] if error else []


@dataclass
class BigQueryEmulator(Emulator):
    """One emulator process.

    Attributes:
      project: The default project id.
      port: The REST port at 127.0.0.1; 0 picks a free one.
      storage_port: The port of the Storage Read and Write APIs; 0 picks a free one.
      data_dir: The directory that keeps the data between runs; None keeps it in memory.
      gcs_root: A directory that stands for Cloud Storage in load and extract jobs: `gs://bucket/x` is
        `gcs_root/bucket/x`.
      timeout: Seconds to wait for an answer.
    """

    fields: ClassVar = ("bigquery", "bigquery_storage")
    project: str
    port: int = 0
    storage_port: int = 0
    data_dir: Path | None = None
    gcs_root: Path | None = None
    timeout: float = 60.0

    def launch(self) -> None:
        """Starts the process; `wait` returns when it answers."""
        flags = [
            f"--project={self.project}",
            f"--rest_port={self.port}",
            f"--grpc_port={self.storage_port}",
        ]
        if self.data_dir is not None:
            flags.append(f"--data_dir={self.data_dir}")
        if self.gcs_root is not None:
            flags.append(f"--gcs_root={self.gcs_root}")
        self.launch_module("The BigQuery emulator", "local.bqemulator_launcher", *flags)

    def wait(self) -> tuple[str, str]:
        """Waits until the emulator answers.

        Returns:
          The addresses "http://127.0.0.1:PORT" (REST) and "127.0.0.1:PORT" (Storage APIs).

        Raises:
          LocalStackError: it ended or did not answer in time; the message has the end of its log.
        """
        # The launcher writes the ports that it has bound, so they cannot be somebody else's.
        ports = self.wait_for_ports(self.timeout)
        self.port, self.storage_port = ports["rest"], ports["grpc"]
        assert self._process is not None
        self._process.wait_until(self._healthy, self.timeout)
        return f"http://{HOST}:{self.port}", f"{HOST}:{self.storage_port}"

    def _healthy(self) -> bool:
        try:
            with urlopen(f"http://{HOST}:{self.port}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

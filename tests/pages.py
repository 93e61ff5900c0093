"""Runs the commands of a page as they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_commands(
    script: str, directory: Path, end: str = "anomaly local down"
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a directory, with the commands of this environment and a local stack of its own.

    Args:
      script: for bash; the first command that fails ends it.
      directory: to run it in.
      end: command that is run at the end, also of a script that failed.
    """
    (runtime := directory / "runtime").mkdir(mode=0o700)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(runtime),  # or `down` would stop a stack that somebody works with
    }
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\ntrap '{end}' EXIT\n{script}"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done

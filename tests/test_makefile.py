"""The choice of the interpreter and of PyTorch's build in the Makefile, by make itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture
def machine(tmp_path: Path):
    """Runs make on a machine that has the interpreters that a test names, and no other."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "grep", "cat", "mkdir", "touch", "basename"):
        (programs / name).symlink_to(str(shutil.which(name)))

    def write(path: Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(interpreters: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        # Each tells its version and makes environments whose python notes what it is called with.
        for name, version in interpreters.items():
            venv = (
                'mkdir -p "$4/bin"\n'
                f'printf \'#!/bin/sh\\n[ "$1" = -c ] && echo {version} && exit\\n'
                f'echo "$@" >> {tmp_path}/pip\\n[ "$3" != show ]\\n\' > "$4/bin/python"\n'
                '/bin/chmod +x "$4/bin/python"'
            )
            write(programs / name, f'[ "$1" = -c ] && echo {version} && exit\n{venv}')
        command = [str(MAKE), "setup", f"VENV={tmp_path / 'venv'}", *arguments]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PATH": str(programs)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_no_supported_python_is_one_line_that_says_what_was_found(machine, tmp_path):
    done = machine({"python3": "3.9", "python3.11": "3.10"})
    assert done.returncode != 0
    told = done.stderr.splitlines()[0]
    assert told == (
        "expected Python 3.11, 3.12 or 3.13, found python3 is 3.9, python3.11 is 3.10 "
        "(looked for python3 python3.13 python3.12 python3.11): pass PYTHON=/path/to/python"
    )
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_told_too(machine):
    assert machine({}).stderr.startswith("expected Python 3.11, 3.12 or 3.13, found nothing (looked for")


@pytest.mark.parametrize(
    ("interpreters", "version"),
    [
        ({"python3": "3.12", "python3.13": "3.13"}, "3.12"),
        ({"python3": "3.9", "python3.11": "3.11", "python3.12": "3.12"}, "3.12"),
        ({"python3": "3.14", "python3.13": "3.13", "python3.11": "3.11"}, "3.13"),
    ],
)
def test_the_first_supported_python_is_taken(machine, interpreters, version):
    done = machine(interpreters)
    assert f"with Python {version} " in done.stdout, done.stderr


def test_python_names_the_interpreter_and_makes_another_environment_anew(machine):
    both = {"python3": "3.11", "other": "3.13"}
    assert "with Python 3.11 " in machine(both).stdout
    assert "Setting up" not in machine(both).stdout
    assert "with Python 3.13 " in machine(both, "PYTHON=other").stdout
    assert "Setting up" not in machine(both, "PYTHON=other").stdout
    assert "Setting up" not in machine(both).stdout
    assert "found other is 3.8" in machine({"other": "3.8"}, "PYTHON=other").stderr


def test_torch_is_the_build_without_cuda_unless_the_other_is_asked_for(machine, tmp_path):
    machine({"python3": "3.11"})
    torch = (tmp_path / "pip").read_text().splitlines()[0]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in torch
    assert "--retries 0 --timeout 5" in torch
    assert "torch==" in torch

    (tmp_path / "pip").unlink()
    assert "Setting up" in machine({}, "TORCH=cuda").stdout
    assert "index" not in (tmp_path / "pip").read_text()
    assert "Setting up" not in machine({}, "TORCH=cuda").stdout


@pytest.mark.parametrize(("status", "told"), [(141, 0), (0, 0), (1, 2), (130, 2)])
def test_a_demo_whose_output_is_cut_is_no_failure(status, told, tmp_path):
    """Make would report status 141 as an error, below the lines that the reader asked for."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "anomaly"
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    stamp = tmp_path / ".installed"
    stamp.write_text("cpu\n")
    newest = max((ROOT / name).stat().st_mtime for name in ("setup.py", "constraints.txt"))
    os.utime(stamp, (newest + 1, newest + 1))  # or make would set the environment up again
    command = [str(MAKE), "demo", f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == told
    assert (done.stderr == "") is (told == 0)

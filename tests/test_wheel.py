"""The wheel has every file that the rooms read, not the modules alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_layout import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
ROOMS = MAY_IMPORT.keys() - {"benchmarks"}


@pytest.mark.integration
def test_the_wheel_has_every_file_of_the_rooms(tmp_path: Path):
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *ROOMS], capture_output=True, text=True, check=True
    )
    files = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    for name in (*files, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "source" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, f"--wheel-dir={tmp_path}", str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert files - {*archive.namelist()} == set()

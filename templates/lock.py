"""Writes requirements.txt of the image: every package by version and hash, from setup.py and constraints.txt.

Needs uv (`pip install uv`), which resolves for the image's platform wherever it runs. torch is the build
without CUDA, from PyTorch's own index: PyPI's build for Linux brings several gigabytes of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.command import CommandError, Parser, command

EXAMPLES: Final = """
  python -m templates.lock
  python -m templates.lock --find_links=wheels
"""

ROOT: Final = Path(__file__).resolve().parents[1]
OUTPUT: Final = ROOT / "templates" / "requirements.txt"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
PYTHON: Final = "3.11"
HEADER: Final = f"""\
# Packages in the image of the Flex templates and the workers. Written by python -m templates.lock
--extra-index-url {TORCH_INDEX}
"""


def torch_version() -> str:
    """Returns the version of torch in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("torch=="))


def uv_command(overrides: Path, find_links: str | None) -> list[str]:
    """Makes uv's command line, which prints the requirements.

    Args:
      overrides: a file with torch's local version, which takes precedence over setup.py.
      find_links: a directory or page with wheels, in place of PyTorch's index.
    """
    source = [f"--find-links={find_links}"] if find_links else [f"--extra-index-url={TORCH_INDEX}"]
    return [
        *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"),
        *("--index-strategy=unsafe-best-match", "--no-emit-index-url", "--no-emit-find-links"),
        f"--python-version={PYTHON}",
        "--python-platform=x86_64-manylinux_2_28",
        f"--constraint={ROOT / 'constraints.txt'}",
        f"--override={overrides}",
        *source,
        str(ROOT / "setup.py"),
    ]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: writes the file."""
    parser = Parser("python -m templates.lock", __doc__, EXAMPLES)
    parser.add_argument("--find_links", metavar="DIR", help="where torch is, in place of PyTorch's index")
    args = parser.parse_args(argv)
    overrides = ROOT / "out" / "lock-overrides.txt"
    overrides.parent.mkdir(exist_ok=True)
    overrides.write_text(f"torch=={torch_version()}+cpu\n", encoding="utf-8")
    done = subprocess.run(uv_command(overrides, args.find_links), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"uv failed: {done.stderr.strip()}")
    OUTPUT.write_text(HEADER + done.stdout, encoding="utf-8")
    packages = sum("==" in line for line in done.stdout.splitlines())
    print(f"Wrote {OUTPUT}: {packages} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

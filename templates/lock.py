"""Writes requirements.txt of the image: every package by version and hash, from setup.py and constraints.txt.

Needs uv (`pip install uv`), which resolves for the image's platform wherever it runs. torch is the build
without CUDA, from PyTorch's own index: PyPI's build for Linux brings several gigabytes of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.streams import ends_quietly

EXAMPLE: Final = """examples:
  python -m templates.lock
  python -m templates.lock --find-links /path/to/wheels
"""

ROOT: Final = Path(__file__).resolve().parents[1]
OUTPUT: Final = ROOT / "templates" / "requirements.txt"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
PYTHON: Final = "3.11"
HEADER: Final = f"""\
# What the image of the Flex templates and the workers has installed. Written by python -m templates.lock
--extra-index-url {TORCH_INDEX}
"""


def torch_version() -> str:
    """The version of torch in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("torch=="))


def command(overrides: Path, find_links: str | None) -> list[str]:
    """uv's command line; it prints the requirements.

    Args:
      overrides: a file with torch's local version, which goes before what setup.py says.
      find_links: a directory or page with wheels in place of PyTorch's index.
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


@ends_quietly
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns uv's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m templates.lock",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--find-links", metavar="DIR", help="where torch is, in place of PyTorch's index")
    args = parser.parse_args(argv)
    overrides = ROOT / "out" / "lock-overrides.txt"
    overrides.parent.mkdir(exist_ok=True)
    overrides.write_text(f"torch=={torch_version()}+cpu\n", encoding="utf-8")
    done = subprocess.run(command(overrides, args.find_links), capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return done.returncode
    OUTPUT.write_text(HEADER + done.stdout, encoding="utf-8")
    packages = sum("==" in line for line in done.stdout.splitlines())
    print(f"Wrote {OUTPUT}: {packages} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The versions of the packages whose private parts this room reaches into."""

from __future__ import annotations

from importlib import metadata
from typing import Final

VERSIONS: Final = {"apache-beam": "2.77.", "bqemulator": "1.4.0"}
"""The beginning of each version that the tests of this room pass with; setup.py asks for the same."""


def check_version(distribution: str) -> str:
    """Compares the installed version of a package with the one that this room was made for.

    Args:
      distribution: a key of VERSIONS.

    Returns:
      "" where it fits, otherwise what is installed and what to do.
    """
    version = VERSIONS[distribution]
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        installed = "none"
    if installed.startswith(version):
        return ""
    wanted = f"{version}*" if version.endswith(".") else version
    return (
        f"{distribution}: expected version {wanted}, of which the local stack uses private parts, "
        f"got {installed}. Run `pip install '{distribution}=={wanted}'`."
    )

"""The versions of Python and Beam here and in the project's image: pickles need the same on both sides."""

from __future__ import annotations

import re
import sys
from importlib import metadata, resources


def here() -> tuple[str, str]:
    """Reads Python's minor version and Beam's version."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", metadata.version("apache-beam")


def of_image() -> tuple[str, str]:
    """Reads the versions of the image; its build fails where the Dockerfile and the lock differ."""
    text = resources.files("templates").joinpath("Dockerfile").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^ARG (PYTHON|BEAM)_VERSION=(\S+)$", text, re.MULTILINE))
    return versions["PYTHON"], versions["BEAM"]


def difference() -> str:
    """Describes the difference and its fix; "" where the versions are the same."""
    (python, beam), (its_python, its_beam) = here(), of_image()
    differences = []
    if python != its_python:
        differences.append(f"Python is {python} here and {its_python} there")
    if beam != its_beam:
        differences.append(f"apache-beam is {beam} here and {its_beam} there")
    if not differences:
        return ""
    return (
        f"{' and '.join(differences)}, and the image could not read the job: submit from Python "
        f"{its_python} after `pip install 'apache-beam[gcp]=={its_beam}'`, or use --via=flex"
    )

"""Python and Beam here and in the project's image, which read each other's pickles only where they agree."""

from __future__ import annotations

import re
import sys
from importlib import metadata, resources


def here() -> tuple[str, str]:
    """Python's minor version and Beam's version."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", metadata.version("apache-beam")


def of_image() -> tuple[str, str]:
    """The same of the image; its build fails where the locked Beam is another one than the Dockerfile's."""
    text = resources.files("templates").joinpath("Dockerfile").read_text(encoding="utf-8")
    found = dict(re.findall(r"^ARG (PYTHON|BEAM)_VERSION=(\S+)$", text, re.MULTILINE))
    return found["PYTHON"], found["BEAM"]


def difference() -> str:
    """What differs and how to mend it; "" where nothing does."""
    (python, beam), (its_python, its_beam) = here(), of_image()
    told = []
    if python != its_python:
        told.append(f"Python is {python} here and {its_python} there")
    if beam != its_beam:
        told.append(f"apache-beam is {beam} here and {its_beam} there")
    if not told:
        return ""
    return (
        f"{' and '.join(told)}, and the image could not read what is submitted: submit from Python "
        f"{its_python} after `pip install 'apache-beam[gcp]=={its_beam}'`, or use --via=flex"
    )

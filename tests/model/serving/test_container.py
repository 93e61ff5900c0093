"""The files that build the container: what they name exists, and what the server imports is installed."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from model.serving.app import APP

ROOT = Path(__file__).parents[3]
SERVING = ROOT / "model" / "serving"
OURS = ("common", "features", "model")
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}


IMAGES = pytest.mark.parametrize(
    ("folder", "modules"),
    [
        (SERVING, ["model.serving.app", "model.serving.routes"]),
        (SERVING / "torchserve", ["model.serving.torchserve.__main__"]),
    ],
    ids=["custom", "torchserve"],
)


def instructions(folder: Path, name: str) -> list[str]:
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def requirements(folder: Path) -> set[str]:
    lines = (folder / "requirements.txt").read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


@IMAGES
def test_what_the_dockerfile_copies_exists_and_is_not_ignored(folder, modules):
    sources = [source for line in instructions(folder, "COPY") for source in line.split()[:-1]]
    assert sources
    kept = {
        line[1:] for line in (folder / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, source


@IMAGES
def test_every_requirement_is_pinned(folder, modules):
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.lower() for name in requirements(folder)} <= pinned
    assert "torch" in pinned


@IMAGES
def test_what_the_server_imports_is_installed(folder, modules):
    """Every module of this package that the server loads, and what these import, deferred imports too."""
    loaded = "(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in ('common', 'model'))"
    code = f"import {', '.join(modules)}, sys; print(*{loaded})"
    files = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    ).stdout.split()
    assert len(files) > 5
    rooms = {source for line in instructions(folder, "COPY") for source in line.split()[:-1]}
    assert {Path(file).relative_to(ROOT).parts[0] for file in files} <= rooms
    imported = set()
    for file in files:
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
    foreign = {name for name in imported if name.split(".")[0] not in {*sys.stdlib_module_names, *OURS}}
    top = {name.split(".")[0] for name in foreign} - {"google", "opentelemetry"}
    owners = importlib.metadata.packages_distributions()
    needed = {owners[name][0].lower() for name in top}
    # Packages of a namespace: the name of the distribution follows from the module's.
    needed |= {"google-cloud-storage" for name in foreign if name.startswith("google.")}
    traces = [name.split(".") for name in foreign if name.startswith("opentelemetry.")]
    needed |= {"-".join(parts[:3] if parts[1] == "instrumentation" else parts[:2]) for parts in traces}
    assert needed <= requirements(folder) | {"torch"}
    assert len(needed) > 3


@IMAGES
def test_the_command_of_the_container_runs(folder, modules):
    command = json.loads(instructions(folder, "CMD")[-1])
    assert modules[0].startswith(command[2])
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:], "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=True,
    )
    assert "usage: " in done.stdout


def test_cloud_build_builds_this_dockerfile_and_pushes_what_it_tested():
    build = yaml.safe_load((SERVING / "cloudbuild.yaml").read_text())
    steps = {step["id"]: step["args"] for step in build["steps"]}
    assert (ROOT / steps["build"][steps["build"].index("--file") + 1]) == SERVING / "Dockerfile"
    images = {steps["build"][steps["build"].index("--tag") + 1], steps["smoke"][2], *build["images"]}
    assert images == {"${_IMAGE}"}
    # What the image is tried with is what its workers load.
    assert steps["smoke"][-1] == f"import {APP.split(':')[0]}"
    assert re.fullmatch(r"[a-z0-9-]+-docker\.pkg\.dev/\S+:\S+", build["substitutions"]["_IMAGE"])

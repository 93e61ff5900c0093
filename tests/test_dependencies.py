"""Imports of the product are declared in setup.py, and the declared packages are imported."""

from __future__ import annotations

import ast
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_layout import MAY_IMPORT, ROOT

PROJECT = "beam-transaction-anomaly"
TESTS = (
    *("google-api-python-client", "hypothesis", "openapi-python-client", "packaging", "promql-parser"),
    *("pytest", "pytest-timeout", "pytest-xdist", "schemathesis", "zetasql"),
)
TOOLS = {"mypy", "ruff", "vulture", *TESTS}
"""Run by `make`, or imported by tests alone."""
NOT_IMPORTED = {
    "uvloop": "uvicorn takes it by name",
    "opentelemetry-exporter-otlp": "OpenTelemetry's SDK takes it by name",
    "torchserve": "started as a process",
    "torch-model-archiver": "started as a process",
    "onnxscript": "torch.onnx takes it by name",
}


def declared() -> dict[str, set[str]]:
    """The extras ("" for none) that declare each distribution."""
    names: dict[str, set[str]] = {}
    for line in metadata.requires(PROJECT) or ():
        requirement = Requirement(line)
        extra = str(requirement.marker).partition("extra == ")[2].strip('"') if requirement.marker else ""
        names.setdefault(canonicalize_name(requirement.name), set()).add(extra)
    return names


def imported() -> dict[str, set[str]]:
    """The modules of the product that import each top-level or google.* package."""
    names: dict[str, set[str]] = {}
    for room in MAY_IMPORT.keys() - {"benchmarks"}:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    modules = [f"{node.module}.{alias.name}" for alias in node.names]
                for module in modules:
                    names.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return names


BESIDE_HANDLER = {"features.FEATURES", "values.number"}


def distributions() -> dict[str, set[str]]:
    """The distributions that own each importable file, by dotted name of its folder or module."""
    owners: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        for file in distribution.files or ():
            if file.suffix in (".py", ".so", ".pyi") and not file.parts[0].startswith(".."):
                parts = list(Path(file).with_suffix("").parts)
                parts[-1] = parts[-1].partition(".")[0]
                dotted = ".".join(part for part in parts if part != "__init__")
                owners.setdefault(dotted, set()).add(name)
    return owners


def owners_of(module: str, owners: dict[str, set[str]]) -> set[str]:
    """The distributions of the longest part of a dotted name that somebody owns."""
    while module:
        if module in owners:
            return owners[module]
        module = module.rpartition(".")[0]
    return set()


def test_what_is_imported_is_declared():
    owners, known = distributions(), declared()
    ours = {*MAY_IMPORT, "tests"}
    undeclared = {}
    for module, users in imported().items():
        top = module.partition(".")[0]
        # The handler's archive has these modules beside it.
        if top in sys.stdlib_module_names or top in ours or module in BESIDE_HANDLER:
            continue
        if not owners_of(module, owners) & known.keys():
            undeclared[module] = sorted(users)[:3]
    assert undeclared == {}


def test_what_is_declared_is_imported():
    owners = distributions()
    used = {name for module in imported() for name in owners_of(module, owners)}
    assert declared().keys() - used - TOOLS - NOT_IMPORTED.keys() == set()

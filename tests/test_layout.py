"""The direction of the imports, as CONTRIBUTING.md states it: a room may import what stands in its row."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "common": set(),
    "features": {"common"},
    "model": {"features", "common"},
    "transforms": {"model", "features", "common"},
    "publisher": {"model", "features", "common"},
    "pipelines": {"transforms", "model", "features", "common"},
    "operations": {"publisher", "pipelines", "transforms", "model", "features", "common"},
    "cloud": {"pipelines", "transforms", "model", "features", "common"},
    "local": {"operations", "publisher", "pipelines", "transforms", "model", "features", "common"},
    "templates": {"cloud", "pipelines", "transforms", "model", "features", "common"},
    "benchmarks": {
        *("tests", "cloud", "local", "publisher", "pipelines", "transforms", "model", "features", "common")
    },
}
ROOMS = {*MAY_IMPORT, "tests"}


def imports(path: Path) -> set[str]:
    """The rooms that a module imports, inside of functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names} & ROOMS


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules
    wrong = {
        str(path.relative_to(ROOT)): outside
        for path in modules
        if (outside := imports(path) - MAY_IMPORT[room] - {room})
    }
    assert wrong == {}


def test_a_room_is_a_package_with_a_docstring():
    for room in MAY_IMPORT.keys() - {"benchmarks"}:
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))), room

"""Plain English in docstrings, as CONTRIBUTING.md asks for, and modules of a size that a reader can hold."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layout import MAY_IMPORT, ROOT

MODULES = sorted(path for room in (*MAY_IMPORT, "tests") for path in (ROOT / room).rglob("*.py"))
_FIRST = re.compile(r"(What|That|Whether|Without which|With which|How|Why|Where|Which)\b")
_WORDS = re.compile(
    r"\bhas not (a|the|its|any)\b|\bat the most\b|\bof another hand\b|\bor else\b|, else\b|\bbesides\b"
    r"|\b(mend|mends|mended|cure|cures)\b",
    re.IGNORECASE,
)
LONGEST_MODULE = 400


def _block(node: ast.AST) -> list[ast.stmt]:
    return node.body if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else []


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a module, those of constants and fields included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for before, after in itertools.pairwise(_block(node)):
            match before, after:
                case ast.Assign() | ast.AnnAssign(), ast.Expr(ast.Constant(str(text))):
                    yield after.lineno, inspect.cleandoc(text)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_plain_english(path: Path):
    first = [f"line {line}: {text.splitlines()[0]}" for line, text in docstrings(path) if _FIRST.match(text)]
    assert first == [], "a docstring starts with a verb in the third person, or names the thing"
    words = [f"line {line}: {match[0]}" for line, text in docstrings(path) if (match := _WORDS.search(text))]
    assert words == [], "see the word list of CONTRIBUTING.md"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_can_be_held_in_the_head(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE

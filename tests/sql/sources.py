"""The SQL in the text of the sources: which functions hold it, which calls send it, and the examples in prose."""

from __future__ import annotations

import ast
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("pipelines", "transforms", "model", "publisher", "templates", "benchmarks")
LEFT_OUT: Final = "pipelines/local/bqemulator_patches/"
"""Inside the emulator statements go to DuckDB, in its own SQL."""

_SQL: Final = re.compile(
    r"\b(SELECT|FROM|WHERE|HAVING|QUALIFY|GROUP BY|ORDER BY|PARTITION BY|JOIN|UNION (ALL|DISTINCT))\b"
    r"|\b(WITH|INSERT|MERGE|UPDATE|DELETE|TRUNCATE|CREATE|ALTER|DROP|GRANT|REVOKE|CALL|EXPORT|LOAD|DECLARE)\s+\S"
    r"|(?i:\b(select\b.+\bfrom|insert into|delete from|create (or replace )?(table|view)|merge into)\b)",
    re.DOTALL,
)
_SENDING_METHODS: Final = {"query", "query_and_wait"}
_SENDING_NAMES: Final = {"row_restriction", "view_query", "mview_query"}


@dataclass(frozen=True)
class Example:
    """SQL that a page, a help text or a message shows.

    Attributes:
      where: the file or the function.
      sql: a statement, or the condition of a row filter.
      condition: which of the two.
    """

    where: str
    sql: str
    condition: bool = False


def product_files(suffix: str) -> Iterator[Path]:
    """The files of the product with an ending."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob(f"*{suffix}")):
            if LEFT_OUT not in path.as_posix():
                yield path


def module_name(path: Path) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


class Literals(ast.NodeVisitor):
    """The strings of a module, docstrings excepted, and the calls that send SQL.

    Attributes:
      strings: by dotted name of the function or of the module, in order. The values of an f-string are `{}`.
      sending: dotted names of functions that hand a statement or a row filter to Google's clients.
    """

    def __init__(self, module: str, source: str) -> None:
        self.strings: dict[str, list[str]] = defaultdict(list)
        self.sending: set[str] = set()
        self._names = [module]
        self.visit(ast.parse(source))

    @property
    def _here(self) -> str:
        return ".".join(self._names)

    def _enter(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _enter  # noqa: N815 - ast's names

    def visit_Expr(self, node: ast.Expr) -> None:
        """Leaves docstrings out."""
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Keeps a string."""
        if isinstance(node.value, str):
            self.strings[self._here].append(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Keeps an f-string, and what the values in it hold."""
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        self.strings[self._here].append("".join(map(str, parts)))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def visit_Call(self, node: ast.Call) -> None:
        """Notes a call that sends."""
        method = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if method in _SENDING_METHODS or _SENDING_NAMES & {keyword.arg for keyword in node.keywords}:
            self.sending.add(self._here)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Notes an attribute that is set to SQL."""
        if node.attr in _SENDING_NAMES and isinstance(node.ctx, ast.Store):
            self.sending.add(self._here)
        self.generic_visit(node)


def holders(literals: Literals) -> dict[str, list[str]]:
    """The functions that hold SQL as more than an example, with all their strings."""
    return {
        name: strings
        for name, strings in literals.strings.items()
        if any(_SQL.search(text) and not list(examples(text, name)) for text in strings)
    }


def examples(text: str, where: str) -> Iterator[Example]:
    """The SQL in prose: blocks marked sql, `bq query`, options that take SQL, and statements in quotes.

    An example with an ellipsis is a sketch, and is left out.
    """
    text = text.replace("\\\n", " ")
    found = [(block, False) for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL)]
    found += [(shlex.split(line)[-1], False) for line in re.findall(r"^\s*(bq query .*'|bq query .*\")$", text, re.M)]
    found += [(sql, False) for _, sql in re.findall(r"--input_query[= ](['\"])(.*?)\1", text)]
    found += [(sql, True) for _, sql in re.findall(r"--row_filter[= ](['\"])(.*?)\1", text)]
    found += [(sql, False) for sql in re.findall(r"Example: '((?:SELECT|WITH)\b.*?)'", text, re.DOTALL)]
    found += [(sql, True) for sql in re.findall(r"condition on .*Example: '(.*?)'", text, re.DOTALL)]
    for sql, condition in dict.fromkeys(found):
        yield Example(where, sql.replace("$PROJECT", "my-project"), condition)

"""The SQL in the sources: which functions hold it, which calls send it, and the examples in prose."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = tuple(sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}))
LEFT_OUT: Final = "/bqemulator_patches/"
"""Inside the emulator statements go to DuckDB, in its own SQL."""

_SQL: Final = re.compile(
    r"\b(SELECT|FROM|WHERE|HAVING|QUALIFY|GROUP BY|ORDER BY|PARTITION BY|JOIN|UNION (ALL|DISTINCT))\b"
    r"|\b(WITH|INSERT|MERGE|TRUNCATE|CREATE|ALTER|DROP|GRANT|REVOKE|CALL|EXPORT|LOAD|DECLARE)\s+\S"
    r"|\bDELETE\s+FROM\b|\bUPDATE\s+\S+\s+SET\b"
    r"|(?i:\b(select\b[^.]+\bfrom|(insert|merge) into|delete from|create( or replace)? (table|view))\s+[`{])",
)
_METHODS: Final = {"query", "query_and_wait"}
_NAMES: Final = {"row_restriction", "view_query", "mview_query"}
"""Methods of Google's clients that take SQL, and keywords and attributes that are SQL."""


@dataclass(frozen=True)
class Example:
    """SQL that a page, a help text or a message shows.

    Attributes:
      where: the file or the function.
      sql: a statement, or the condition of a row filter.
      condition: whether it is a condition.
    """

    where: str
    sql: str
    condition: bool = False

    @property
    def is_sketch(self) -> bool:
        """True where something is left out of it."""
        return "..." in self.sql


def product_files(suffix: str) -> Iterator[Path]:
    """The files of the product with an ending."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob(f"*{suffix}")):
            if LEFT_OUT not in path.as_posix():
                yield path


def module_name(path: Path) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@dataclass(frozen=True)
class Sending:
    """A place where SQL is handed to one of Google's clients.

    Attributes:
      where: dotted name of the function.
      expression: what is handed over.
      builder: the function that is called for it there; "" for a parameter, which passes on what a caller
        built or a user wrote; None where it comes from anywhere else.
    """

    where: str
    expression: str
    builder: str | None


class Literals(ast.NodeVisitor):
    """The strings of a module, docstrings excepted, and the places that send SQL.

    Attributes:
      strings: by dotted name of the function or of the module, in order. The values of an f-string are `{}`.
      sending: the places.
    """

    def __init__(self, module: str, source: str) -> None:
        self.strings: dict[str, list[str]] = defaultdict(list)
        self.sending: list[Sending] = []
        self._names = [module]
        self._parameters: list[set[str]] = [set()]
        self.visit(ast.parse(source))

    @property
    def _here(self) -> str:
        return ".".join(self._names)

    def _enter(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        arguments = [] if isinstance(node, ast.ClassDef) else ast.walk(node.args)
        self._names.append(node.name)
        self._parameters.append({each.arg for each in arguments if isinstance(each, ast.arg)})
        self.generic_visit(node)
        self._parameters.pop()
        self._names.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _enter

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
        sent = [keyword.value for keyword in node.keywords if keyword.arg in _NAMES]
        method = node.func if isinstance(node.func, ast.Attribute) else None
        # Beam's metrics have a method of the same name.
        if method and method.attr in _METHODS and not ast.unparse(method.value).endswith("metrics()"):
            sent += node.args[:1] or [keyword.value for keyword in node.keywords if keyword.arg == "query"]
        for value in sent:
            self._send(value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Notes an attribute that is set to SQL."""
        if any(isinstance(target, ast.Attribute) and target.attr in _NAMES for target in node.targets):
            self._send(node.value)
        self.generic_visit(node)

    def _send(self, value: ast.expr) -> None:
        builder = None
        root = value.value if isinstance(value, ast.Attribute) else value
        if isinstance(root, ast.Name) and root.id in self._parameters[-1]:
            builder = ""
        elif isinstance(value, ast.Call):
            builder = ast.unparse(value.func).rpartition(".")[2]
        self.sending.append(Sending(self._here, ast.unparse(value), builder))


@functools.cache
def product() -> tuple[Literals, ...]:
    """The modules of the product, read once."""
    return tuple(
        Literals(module_name(path), path.read_text(encoding="utf-8")) for path in product_files(".py")
    )


def holders(literals: Literals) -> dict[str, list[str]]:
    """The functions that hold SQL as more than an example, with all their strings."""
    return {
        name: strings
        for name, strings in literals.strings.items()
        if any(is_sql(text) and not list(examples(text, name)) for text in strings)
    }


def is_sql(text: str) -> bool:
    """Tells whether a string holds words of SQL."""
    return _SQL.search(text) is not None


def examples(text: str, where: str) -> Iterator[Example]:
    """The SQL in prose: blocks marked sql, `bq query`, options that take SQL, and examples of help texts."""
    text = text.replace("\\\n", " ")
    quoted = r"(['\"])(.*?)\1"
    calls = re.findall(r"^\s*((?:\w+_)?bq query .*['\"])$", text, re.MULTILINE)
    pieces = [(block, False) for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL)]
    pieces += [(shlex.split(call)[-1], False) for call in calls]
    pieces += [(sql, False) for _, sql in re.findall(rf"--input_query[= ]{quoted}", text)]
    pieces += [(sql, True) for _, sql in re.findall(rf"--row_filter[= ]{quoted}", text)]
    pieces += [(sql, False) for sql in re.findall(r"Example: '((?:SELECT|WITH)\b[^']*)'", text)]
    pieces += [(sql, True) for sql in re.findall(r"condition on [^']*Example: '([^']*)'", text)]
    for sql, condition in dict.fromkeys(pieces):
        yield Example(where, sql.replace("$PROJECT", "my-project"), condition)


def unseen(text: str) -> str | None:
    """The first statement of a page that `examples` does not see."""
    for example in examples(text, ""):
        for line in example.sql.splitlines():
            text = text.replace(line.replace("my-project", "$PROJECT"), "").replace(line, "")
    left = re.search(r"\b(SELECT|CREATE|INSERT|MERGE|GRANT|DELETE|UPDATE)\s+[\w`*(].*", text)
    return left and left.group()

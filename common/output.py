"""Rows for people and for machines: a table, JSON or CSV, safe against what a stranger wrote into them."""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

_T = TypeVar("_T")
Format = Literal["table", "json", "csv"]
FORMATS: Final[tuple[Format, ...]] = ("table", "json", "csv")

# C0 and C1 control characters, and those that reorder or hide text.
# Tags (U+E0000 on) hide a text in another one. Half of a surrogate pair cannot be printed at all.
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_PIPE_WIDTH: Final = 100_000
"""Columns of a table that is not shown in a terminal: as many as it takes."""

_TEXT_WIDTH: Final = 16
"""Columns of a terminal that a text of a table has at least, where it is as long."""
_PARTS: Final = re.compile("[^_]*_|[^_]+")
"""Of the name of a column, which may stand on several lines."""
_GAP: Final = 3
"""Columns of a terminal between two columns of a table."""


def add_format(parser: argparse.ArgumentParser) -> None:
    """Declares --format."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="table for people, json (one array) or csv for programs (default: %(default)s)",
    )


def safe_text(text: str) -> str:
    """Text without characters that a terminal obeys: each stands as its escape, such as \\x1b."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_rows(rows: Sequence[Mapping[str, Any]], form: Format = "table", empty: str = "No rows.") -> None:
    """Prints rows on stdout.

    Args:
      rows: each with the same keys, which are the names of the columns.
      form: "table", "json" or "csv".
      empty: what a table without rows says.
    """
    if form == "json":
        print(json.dumps([dict(row) for row in rows], indent=1, default=_plain))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerows([map(_csv_cell, rows[0])] if rows else [])
        writer.writerows([_csv_cell(value) for value in row.values()] for row in rows)
    elif rows:
        print_table(rows)
    else:
        print(empty)


def print_record(record: Mapping[str, Any], form: Format = "table") -> None:
    """Prints one record on stdout: a line a field, or a JSON object, or a CSV row a field."""
    if form == "json":
        print(json.dumps(dict(record), default=_plain))
    elif form == "csv":
        print_rows([{"field": name, "value": value} for name, value in record.items()], form)
    else:
        lines = [(safe_text(name), _cell(value)) for name, value in record.items()]
        width = max((cell_len(name) for name, _ in lines), default=0)
        print("\n".join(f"{set_cell_size(name, width)}  {cell}" for name, cell in lines))


@contextlib.contextmanager
def progress(total: int | None, unit: str, is_quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows progress on stderr while a `with` block runs: a bar in a terminal, otherwise a line a tenth.

    Args:
      total: of the units to come; None where that is not known.
      unit: name of what is counted, in the plural.
      is_quiet: shows nothing.

    Yields:
      A function that is called with the number of units done since the last call.
    """
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield _Lines(None if is_quiet else total, unit)
        return
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(unit, total=total)
        yield lambda number: bars.advance(task, number)


def track(items: Collection[_T], unit: str, is_quiet: bool = False) -> Iterator[_T]:
    """Gives the items one by one and shows progress, as `progress` does."""
    with progress(len(items), unit, is_quiet) as advance:
        for item in items:
            yield item
            advance(1)


class _Lines:
    """Prints a line on stderr whenever another tenth is done."""

    def __init__(self, total: int | None, unit: str) -> None:
        self._total, self._unit, self._done = total, unit, 0

    def __call__(self, number: int) -> None:
        before, self._done = self._done, self._done + number
        if self._total and self._done * 10 // self._total > before * 10 // self._total:
            print(f"{self._done:,} of {self._total:,} {self._unit}", file=sys.stderr, flush=True)


class _RateColumn(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """See ProgressColumn."""
        return Text(f"{task.speed or 0:,.0f} a second")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table: with colour and as wide as the window in a terminal, plain in a pipe.

    Where the window is too narrow for its columns, each row is a block of lines, one a field.
    """
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout, width=None if is_terminal else _PIPE_WIDTH, highlight=False, markup=False
    )
    widths = _widths(rows, console.width)
    if widths is None:
        for i, row in enumerate(rows):
            print(end="\n" if i else "")
            print_record(row)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name, width in zip(rows[0], widths, strict=True):
        numeric = all(isinstance(row[name], int | float) for row in rows)
        heading = _heading(safe_text(name), width)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    if is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _widths(rows: Sequence[Mapping[str, Any]], available: int) -> list[int] | None:
    """Returns the widths of columns that fit; None where numbers or times would be cut into pieces.

    Texts, and names at their underscores, may go over several lines.
    """
    widths, least = [], []
    for name in rows[0]:
        cells = max(cell_len(_cell(row[name])) for row in rows)
        is_text = any(isinstance(row[name], str) for row in rows)
        heading = safe_text(name)
        parts = max(map(cell_len, _PARTS.findall(heading)), default=0)
        least.append(max(min(cells, _TEXT_WIDTH) if is_text else cells, parts))
        # None is wider than all of them may be, however long its text.
        widths.append(max(min(max(cells, cell_len(heading)), available), least[-1]))
    available -= _GAP * (len(widths) - 1)
    if sum(least) > available:
        return None
    while sum(widths) > available:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[widest] -= 1
    return widths


def _heading(name: str, width: int) -> Text:
    """The name of a column in lines that end at its underscores."""
    lines = [""]
    for part in _PARTS.findall(name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return Text("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e-3 else f"{value:,.3f}".rstrip("0").rstrip(".")
    return safe_text(str(value))


def _csv_cell(value: Any) -> Any:
    """The value, with text that a spreadsheet would run as a formula behind an apostrophe."""
    plain = _plain(value) if isinstance(value, dt.datetime) else value
    if not isinstance(plain, str):
        return plain
    return f"'{safe_text(plain)}" if plain.startswith(_FORMULA) else safe_text(plain)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.datetime | dt.date) else str(value)

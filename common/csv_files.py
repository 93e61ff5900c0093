"""Reads CSV in the dialects that people have: commas, semicolons or tabs, quoted names, decimal commas."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from common import file_kinds
from common.command import CommandError
from common.files import followed_by, head, open_content

BLOCK_BYTES: Final = 4 * 1024 * 1024
"""Bytes that are parsed in one go. A longer row is an error: most probably a quote that is not closed."""

NULLS: Final = ("", "null", "NULL")
"""Values that are missing, quoted or not. NA is none: it is the code of a country."""

_NUMBER: Final = rb"(?:^|[;\t|\"])\s*-?\d+%s\d+(?:[eE][-+]?\d+)?\s*(?=$|[;\t|\"\r\n])"
_DECIMAL_COMMA: Final = re.compile(_NUMBER % b",", re.M)
_DECIMAL_POINT: Final = re.compile(_NUMBER % rb"\.", re.M)
"""A value that is a number, and nothing more: a date such as 31.12.2026 has points as well."""


_ROW: Final = re.compile(r"(Expected \d+ columns, got \d+):.*", re.S)
"""After it pyarrow has the row itself, which no log may have."""
_QUOTE: Final = "is there a quote that is not closed?"


class CsvError(CommandError, ValueError):
    """A file is no CSV that can be read; the text names the file."""


@dataclass(frozen=True)
class Dialect:
    """The way in which a CSV file is written.

    Attributes:
      names: of the columns, from the first line.
      delimiter: divides the columns.
      decimal_point: of numbers.
    """

    names: tuple[str, ...]
    delimiter: str = ","
    decimal_point: str = "."


def dialect(path: str) -> Dialect:
    """Finds out how a file is written, by its first bytes.

    Raises:
      CsvError: it has no line with the names of the columns, or they are not UTF-8.
      CompressedFileError: the file is not compressed as its name says.
      OSError: it cannot be read.
    """
    return dialect_of(head(path), path)


def dialect_of(content: bytes, path: str) -> Dialect:
    """Finds out how a file is written, by its first bytes.

    >>> dialect_of(b'"Time";"Amount"\\n0;149,62\\n', "rows.csv")
    Dialect(names=('Time', 'Amount'), delimiter=';', decimal_point=',')

    Raises:
      CsvError: it has no line with the names of the columns, or they are not UTF-8.
    """
    if problem := file_kinds.unreadable(content):
        raise CsvError(f"{path} {problem}")
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)
    first = lines[0].rstrip(b"\r")
    try:
        first.decode()
    except UnicodeDecodeError as error:
        raise CsvError(f"{path}: the names of the columns are not UTF-8: {error}") from error
    delimiter = file_kinds.delimiter(first)
    names = file_kinds.fields(first, delimiter)
    if not any(names) or any(map(_is_number, names)):
        raise CsvError(f"{path}: expected the names of the columns in the first line, got {_start(first)!r}")
    rest = lines[1] if len(lines) > 1 else b""
    has_commas = delimiter != "," and _DECIMAL_COMMA.search(rest) and not _DECIMAL_POINT.search(rest)
    return Dialect(tuple(names), delimiter, "," if has_commas else ".")


def read_table(path: str, categories: Collection[str] = ()) -> pa.Table:
    """Reads a whole file, each column in the type that fits all its values.

    Args:
      path: of the file.
      categories: columns, without regard to case, that are read as `codes`: their values are names.

    Raises:
      CsvError: it cannot be read.
      OSError: it cannot be opened.
    """
    written = dialect(path)
    texts = category_types(written.names, categories)
    convert = _convert_options(texts, decimal_point=written.decimal_point)
    # Arrow takes a first line without its end for an empty file.
    with open_content(path) as content, followed_by(content, b"\n") as file:
        try:
            table: pa.Table = csv.read_csv(file, _read_options(), _parse_options(written), convert)
        except pa.ArrowInvalid as error:
            raise CsvError(_unreadable(path, str(error))) from error
    last = table.column(-1).slice(max(0, table.num_rows - 1))
    if pa.types.is_string(last.type) and pc.any(pc.greater_equal(pc.find_substring(last, "\n"), 0)).as_py():
        # Perhaps of a quote that is not closed: in another column the row would have another width.
        for _ in read_texts(path, written, written.names[:1], lambda row: None):
            pass
    return _with_codes(table, texts)


def read_first(path: str, rows: int, categories: Collection[str] = ()) -> pa.Table:
    """Reads the first rows of a file, each column in the type that fits all values of these rows.

    Args:
      path: of the file.
      rows: how many.
      categories: see `read_table`.

    Raises:
      CsvError: it cannot be read.
      OSError: it cannot be opened.
    """
    written = dialect(path)
    chosen = category_types(written.names, categories)
    batches = _batches(path, written, _convert_options(dict.fromkeys(written.names, pa.string())))
    stream = pa.BufferOutputStream()
    csv.write_csv(pa.Table.from_batches(first_rows(batches, rows)), stream)
    content = stream.getvalue()
    table = csv.read_csv(
        pa.BufferReader(content),
        csv.ReadOptions(use_threads=False, block_size=max(BLOCK_BYTES, content.size)),
        csv.ParseOptions(newlines_in_values=True),
        _convert_options(chosen, decimal_point=written.decimal_point),
    )
    return _with_codes(table, chosen)


def first_rows(batches: Iterable[pa.RecordBatch], rows: int) -> list[pa.RecordBatch]:
    """Takes the first rows, and no batch after the one that has the last of them."""
    taken: list[pa.RecordBatch] = []
    for batch in batches:
        taken.append(batch.slice(0, rows))
        rows -= taken[-1].num_rows
        if rows <= 0:
            break
    return taken


def category_types(names: Iterable[str], categories: Collection[str]) -> dict[str, pa.DataType]:
    """Returns those of the names, as texts, that are categories without regard to case."""
    wanted = {name.casefold() for name in categories}
    return {name: pa.string() for name in names if name.casefold() in wanted}


def codes(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Returns the texts of a category as JSON has them: a whole number has no fraction, and keeps its zeros.

    >>> codes(pa.array(["5411.0", "10,0", "0742", "1.5"])).to_pylist()
    ['5411', '10', '0742', '1.5']
    """
    return pc.replace_substring_regex(column, r"^(-?[0-9]{1,15})[.,]0+$", r"\1")


def _with_codes(table: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        at = table.schema.get_field_index(name)  # -1 for one that is there twice, which is refused later
        if at >= 0:
            table = table.set_column(at, name, codes(table.column(at)))
    return table


def read_texts(
    path: str, written: Dialect, columns: Sequence[str], broken: Callable[[csv.InvalidRow], None]
) -> Iterator[pa.RecordBatch]:
    """Reads a file in pieces, each value as the bytes that are there.

    Args:
      path: of the file.
      written: its dialect.
      columns: names of those to read.
      broken: gets each row that has another number of columns than the first line.

    Raises:
      CsvError: it cannot be read.
      CompressedFileError: it is compressed, and cut off or damaged.
      OSError: it cannot be opened.
    """
    convert = _convert_options(dict.fromkeys(columns, pa.binary()), include_columns=list(columns))
    return _batches(path, written, convert, broken)


def _batches(
    path: str,
    written: Dialect,
    convert: csv.ConvertOptions,
    broken: Callable[[csv.InvalidRow], None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Reads rows of texts or bytes. After the last comes one of ours, which an open quote would take in."""
    end = secrets.token_hex()
    last = f"\n{written.delimiter.join([end] * len(written.names))}\n".encode()
    is_whole = False

    def skip(row: csv.InvalidRow) -> str:
        if broken is None:
            return "error"
        if end not in row.text:
            broken(row)
        return "skip"

    with open_content(path) as content, followed_by(content, last) as file:
        try:
            for batch in csv.open_csv(file, _read_options(), _parse_options(written, skip), convert):
                if batch.num_rows:
                    first = batch.column(0)
                    is_whole = first[-1].equals(pa.scalar(end, first.type))
                    yield batch.slice(0, batch.num_rows - is_whole)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            # `skip` takes every row but one of which pyarrow can make no text.
            is_no_text = broken is not None and _ROW.search(str(error))
            hint = "the row is not UTF-8: mend it, or remove it" if is_no_text else _QUOTE
            raise CsvError(_unreadable(path, str(error), hint)) from error
    if not is_whole:
        raise CsvError(_unreadable(path, "the last row does not end"))


def _unreadable(path: str, reason: str, hint: str = _QUOTE) -> str:
    told = _ROW.sub(r"\1", reason)
    return f"{path}: cannot be read as CSV: {told}; {hint}"


def _start(line: bytes) -> str:
    """The first characters of a line; a file of one line may have its ends as an old Macintosh wrote them."""
    return line.split(b"\r")[0].decode()[:60]


def _read_options(block_bytes: int = BLOCK_BYTES) -> csv.ReadOptions:
    return csv.ReadOptions(use_threads=False, block_size=block_bytes)


def _convert_options(types: Mapping[str, pa.DataType], **more: Any) -> csv.ConvertOptions:
    # One text that is not UTF-8 would have the file refused; `features.arrow.plain` looks for them.
    return csv.ConvertOptions(
        check_utf8=False, column_types=dict(types), null_values=list(NULLS), strings_can_be_null=True, **more
    )


def _parse_options(
    written: Dialect, invalid_row: Callable[[csv.InvalidRow], str] | None = None
) -> csv.ParseOptions:
    return csv.ParseOptions(
        delimiter=written.delimiter, newlines_in_values=True, invalid_row_handler=invalid_row
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Files with a table, in CSV, JSON lines or Parquet: whole to train on, the first rows for a look at them."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
from pyarrow import json, parquet

from common import csv_files, file_kinds, files
from common.command import CommandError


class TableFileError(CommandError, ValueError):
    """A file is neither CSV nor JSON lines nor Parquet; the text names it."""


def read_table(path: str, rows: int | None = None, categories: Collection[str] = ()) -> pa.Table:
    """Reads a file, and the keys of its directories as columns of text.

    Args:
      path: local or of any scheme that Beam knows.
      rows: at most so many of the first rows; None for all.
      categories: columns of a CSV file, or of one of JSON lines, whose values are names; see
        `common.csv_files.read_table`.

    Raises:
      TableFileError: it is of another kind.
      CsvError: it cannot be read as CSV.
      pyarrow.ArrowException: it cannot be read as JSON lines or Parquet.
      OSError: it cannot be opened.
    """
    kind = files.kind_by_name(path) or file_kinds.kind(files.head(path))
    if kind == "csv":
        if rows is None:
            table = csv_files.read_table(path, categories)
        else:
            table = csv_files.read_first(path, rows, categories)
    elif kind == "parquet":
        # As a file: a directory reader fails on a column that is there twice.
        with files.open_raw(path) as file:
            table = _parquet(parquet.ParquetFile(file), rows)
    else:
        _check_json(path)
        table = _json(path, categories).slice(0, rows)
    for name, value in files.partition_keys(path).items():
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table


def join(tables: list[pa.Table]) -> pa.Table:
    """Joins the tables of several files."""
    # A single one as it is: joining fails on a column that is there twice.
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")


def _check_json(path: str) -> None:
    """Checks the beginning of a file, which may be of no kind that is known."""
    head = files.head(path)
    if problem := file_kinds.problem(head):
        raise TableFileError(f"{path} {problem}")
    if not file_kinds.has_objects(head):
        raise TableFileError(
            f"expected CSV, JSON lines or Parquet with the columns of a transaction, got {path!r}"
        )


def _json(path: str, categories: Collection[str], types: pa.Schema | None = None) -> pa.Table:
    with files.open_content(path) as file:
        table = json.read_json(
            file, json.ReadOptions(block_size=csv_files.BLOCK_BYTES), json.ParseOptions(explicit_schema=types)
        )
    # Arrow makes times of texts that look like some, and a message has none.
    texts = csv_files.category_types(table.column_names, categories)
    times = {name: kind for name, kind in texts.items() if pa.types.is_timestamp(table[name].type)}
    return _json(path, (), pa.schema(times)) if times else table


def _parquet(file: parquet.ParquetFile, rows: int | None) -> pa.Table:
    if rows is None:
        return file.read()
    return pa.Table.from_batches(csv_files.first_rows(file.iter_batches(), rows), file.schema_arrow)

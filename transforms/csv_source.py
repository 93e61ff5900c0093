"""CSV files as a source: text in columns, and the rows that have another number of columns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from common.csv_files import CsvError, codes, dialect, read_texts
from common.files import partition_keys
from transforms import metrics
from transforms.dead_letter import dead_letters
from transforms.message import MessageRules
from transforms.observations import letter_counters
from transforms.parse import ParseColumns, ParseOutput
from transforms.rebatch import BATCH_ROWS, rebatch
from transforms.schema import empty
from transforms.shares import FindShares, Range, read_shares, with_keys


class CsvRows(NamedTuple):
    """Some rows of a file: those with all columns, and the lines and reasons of others."""

    batch: pa.RecordBatch
    broken: tuple[tuple[str, bytes], ...] = ()


@dataclass
class ReadCsv(beam.PTransform):
    """Reads CSV files with the names of their columns in the first line; a file is read by one worker.

    Input: a pipeline. Output: PCollection of CsvRows.

    Attributes:
      pattern: path, glob or directory, local or gs://. No match is an error.
      columns: names of the columns to read, without regard to case; a file may lack some.
      numbers: those of them that hold numbers.
      batch_rows: rows of a batch; the last ones of a file may have fewer.
      categories: columns whose values are names; see `common.csv_files.codes`.
    """

    pattern: str
    columns: Sequence[str]
    numbers: frozenset[str] = frozenset()
    batch_rows: int = BATCH_ROWS
    categories: frozenset[str] = frozenset()

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Files, spread over the workers, to rows."""
        read = beam.FlatMap(
            read_shares, read_rows, tuple(self.columns), self.numbers, self.batch_rows, self.categories
        )
        shares = begin | "Find" >> FindShares(self.pattern, lambda file: [Range(file.path, 0, None)])
        return shares | "Read" >> read.with_output_types(CsvRows)


@dataclass
class ParseCsv(beam.PTransform):
    """Validates rows of CSV files as ParseColumns does; a line of another width is a dead letter.

    CsvRows  ->  TRANSACTIONS batch  +  ERROR_RECORDS batch

    Attributes:
      default_event_time: see ParseColumns.
      rules: see ParseColumns.
    """

    default_event_time: dt.datetime
    rules: MessageRules = field(default_factory=MessageRules)

    def expand(self, rows: beam.PCollection) -> ParseOutput:
        """Rows to transactions and dead letters."""
        batches = rows | "Rows" >> beam.Map(lambda some: some.batch).with_output_types(pa.RecordBatch)
        parsed = batches | "Parse" >> ParseColumns(self.default_event_time, self.rules)
        broken = rows | "Broken" >> beam.ParDo(_BrokenFn()).with_output_types(pa.RecordBatch)
        letters = (parsed.dead_letters, broken) | "Dead letters" >> beam.Flatten()
        return ParseOutput(parsed.transactions, letters)


class _BrokenFn(beam.DoFn):
    """CsvRows in, dead letters of the broken lines out."""

    def __init__(self) -> None:
        self._rows_in = metrics.counter(metrics.ROWS_IN)
        self._dead = metrics.counter(metrics.DEAD_LETTERS)

    def process(self, rows: CsvRows) -> Iterable[pa.RecordBatch]:
        if rows.broken:
            self._rows_in.inc(len(rows.broken))
            self._dead.inc(len(rows.broken))
            letters = dead_letters(
                [line for _, line in rows.broken], [why for why, _ in rows.broken], "parse"
            )
            metrics.add(letter_counters(letters))
            yield letters


def read_rows(
    share: Range,
    columns: Sequence[str],
    numbers: frozenset[str] = frozenset(),
    batch_rows: int = BATCH_ROWS,
    categories: frozenset[str] = frozenset(),
) -> Iterator[CsvRows]:
    """Reads a CSV file. Of `columns` it reads those that the file has, and the keys of its directories.

    Raises:
      CsvError: the file has none of the columns, or cannot be read.
    """
    written = dialect(share.path)
    wanted = {name.casefold() for name in columns}
    chosen = [name for name in written.names if name.casefold() in wanted]
    if not chosen:
        raise CsvError(f"{share.path}: no column of a transaction; it has {', '.join(written.names)}")
    broken: list[tuple[str, bytes]] = []

    def reject(row: csv.InvalidRow) -> None:
        reason = f"line: {row.actual_columns} columns, not {row.expected_columns}"
        broken.append((reason, row.text.encode(errors="surrogateescape")))

    keys = partition_keys(share.path)
    known, named = (frozenset(name.casefold() for name in names) for names in (numbers, categories))
    for batch in rebatch(read_texts(share.path, written, chosen, reject), batch_rows):
        typed = _typed(batch, known, named, written.decimal_point)
        yield CsvRows(with_keys(typed, keys, columns), tuple(broken))
        broken.clear()
    if broken:
        yield CsvRows(with_keys(empty(_schema(chosen, known)), keys, columns), tuple(broken))


def csv_schema(path: str) -> pa.Schema:
    """Reads the columns of a CSV file, all of them as text.

    Raises:
      CsvError: it has no line with their names.
      CompressedFileError: it is not compressed as its name says.
    """
    return _schema(dialect(path).names, frozenset())


def _schema(names: Sequence[str], numbers: frozenset[str]) -> pa.Schema:
    types = [pa.float64() if name.casefold() in numbers else pa.string() for name in names]
    return pa.schema(list(zip(names, types, strict=True)))


def _typed(
    batch: pa.RecordBatch, numbers: frozenset[str], categories: frozenset[str], decimal_point: str
) -> pa.RecordBatch:
    """The columns as numbers and texts; one with a value that is neither stays as it is."""
    columns = []
    for field_, column in zip(_schema(batch.schema.names, numbers), batch.columns, strict=True):
        is_number = field_.type == pa.float64()
        if is_number and decimal_point != ".":
            column = pc.replace_substring(column, decimal_point, ".")
        try:
            text = column.cast(pa.string())
            text = pc.ascii_trim_whitespace(text) if is_number else text
            text = codes(text) if field_.name.casefold() in categories else text
            typed = text.cast(field_.type)
            # Arrow takes +1, NaN and Infinity, which no other way into the pipelines does.
            is_odd = is_number and (
                pc.any(pc.starts_with(text, "+")).as_py() or pc.all(pc.is_finite(typed)).as_py() is False
            )
            columns.append(column if is_odd else typed)
        except pa.ArrowInvalid:
            columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

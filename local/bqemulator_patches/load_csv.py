"""CSV files of a load job: read as text, and then turned into the types of the columns."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from bqemulator.catalog.models import TableFieldSchema, TableMeta

from local.bqemulator_patches import rows
from local.bqemulator_patches.failures import JobError
from local.bqemulator_patches.load_files import (
    SAMPLE,
    Fields,
    Loaded,
    Source,
    content,
    detect,
)

_DELIMITERS: Final = (",", "|", "\t")
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_]")
_INTEGER: Final = r"\s*[+-]?[0-9]+\s*"
_DATE: Final = r"\d{{4}}-\d{{1,2}}-\d{{1,2}}"
# DuckDB turns text into these types. Its own rules are wider: an INT64 of "1.5" is 2, a DATE takes slashes.
_EXPRESSIONS: Final = {
    "INTEGER": f"CASE WHEN regexp_full_match({{0}}, '{_INTEGER}') THEN TRY_CAST({{0}} AS BIGINT) END",
    "FLOAT": "TRY_CAST({0} AS DOUBLE)",
    "NUMERIC": "TRY_CAST({0} AS DECIMAL(38, 9))",
    "BOOLEAN": "CASE WHEN lower({0}) IN ('true', 't', 'yes', 'y', '1') THEN true "
    "WHEN lower({0}) IN ('false', 'f', 'no', 'n', '0') THEN false END",
    "DATE": f"CASE WHEN regexp_full_match({{0}}, '{_DATE}') THEN TRY_CAST({{0}} AS DATE) END",
    "TIME": "TRY_CAST({0} AS TIME)",
    "BYTES": "TRY(from_base64({0}))",
    "JSON": "CASE WHEN json_valid({0}) THEN {0} END",
    "STRING": "{0}",
}
_MOMENTS: Final[dict[str, tuple[Callable[[Any], Any], pa.DataType]]] = {
    "TIMESTAMP": (rows.timestamp, pa.timestamp("us", tz="UTC")),
    "DATETIME": (rows.civil_time, pa.timestamp("us")),
}
# The names of types in messages, and in the names that columns without a header get.
_SAID: Final = {"INTEGER": "INT64", "FLOAT": "DOUBLE", "BOOLEAN": "BOOL"}


class Csv(Source):
    """CSV, gzip or not."""

    name = "CSV"

    def __init__(self, files: Sequence[Path], config: dict[str, Any]) -> None:
        super().__init__(files, config)
        delimiter = self.option("fieldDelimiter")
        self._delimiter: str | None = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
        if self._delimiter is None and not self.option("autodetect"):
            self._delimiter = ","
        self._quote: str | None = self.option("quote", '"') or None
        self._nulls: list[str] = self.option("nullMarkers") or [self.option("nullMarker", "")]
        self._skip: int | None = self.option("skipLeadingRows") and int(self.option("skipLeadingRows"))
        if self._skip is None and not self.option("autodetect"):
            self._skip = 0

    def _content(self, path: Path) -> str:
        encoding = self.option("encoding", "UTF-8")
        text = content(path).decode("utf-8-sig" if encoding == "UTF-8" else encoding, errors="replace")
        if self._delimiter is None:
            self._delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
        return text

    def _split(self, lines: Iterable[str]) -> Iterator[list[str]]:
        delimiter = self._delimiter or ","
        if self._quote is None:
            return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=delimiter, quotechar=self._quote)

    def schema(self) -> Fields:
        """Detected in the first rows of the first file, with the names of a header if it has one."""
        reader = self._split(io.StringIO(self._content(self.files[0]), newline=""))
        # Of the rows to skip, the last may be a header.
        before = max((self._skip or 0) - 1, 0)
        sample = [row for row in itertools.islice(reader, before, before + SAMPLE + 1) if row]
        if not sample:
            return []
        first, others = _kinds(sample[:1]), _kinds(sample[1:])
        header = self._skip != 0 and set(first) == {"STRING"} and set(others) - {"STRING"} != set()
        kinds = others if header or self._skip else _kinds(sample)
        if self._skip is None:
            self._skip = 1 if header else 0
        names = sample[0] if header else [""] * len(kinds)
        return [
            {"name": name, "type": kind, "mode": "NULLABLE"}
            for name, kind in zip(_names(names, kinds), kinds, strict=False)
        ]

    def read(self, table: TableMeta, fields: Fields) -> Loaded:
        """Rows by the positions of their values."""
        by_name = {field.name.lower(): field for field in table.schema_.fields}
        columns = [by_name[field["name"].lower()] for field in fields]
        for column in columns:
            if column.mode == "REPEATED" or column.fields:
                what = "repeated field" if column.mode == "REPEATED" else "nested schema"
                raise JobError("invalid", f"Cannot load CSV data with a {what}. Field: {column.name}")
        parts, problems, total = [], [], 0
        for path in self.files:
            text, structural = self._text(path, len(columns))
            data, refused = self._typed(text, columns)
            problems += structural + list(refused.values())
            total += text.num_rows + len(structural)
            keep = [index not in refused for index in range(data.num_rows)] if refused else None
            parts.append(data if keep is None else data.filter(pa.array(keep)))
        return Loaded(pa.concat_tables(parts), self.check(total, problems))

    def _text(self, path: Path, count: int) -> tuple[pa.Table, list[str]]:
        """A file's rows as text in `count` columns, and what is wrong with those that do not have as many."""
        text = self._content(path)
        names = [f"c{index}" for index in range(count)]
        made_to_fit: list[list[str | None]] = []
        problems: list[str] = []

        def handle(row: pa_csv.InvalidRow) -> str:
            found = row.actual_columns
            if found < count and not self.option("allowJaggedRows"):
                problems.append(
                    f"CSV table references column position {found}, but line {row.number} contains only "
                    f"{found} columns."
                )
            elif found > count and not self.option("ignoreUnknownValues"):
                problems.append(
                    f"Too many values in line {row.number}. Found {found} column(s) while expected {count}."
                )
            else:
                cells = [None if cell in self._nulls else cell for cell in next(self._split([row.text]))]
                made_to_fit.append((cells + [None] * count)[:count])
            return "skip"

        skip = self._skip or 0
        if not "".join(text.split("\n", skip)[skip:]).strip():
            return pa.table({name: pa.array([], pa.string()) for name in names}), []
        table = pa_csv.read_csv(
            io.BytesIO(text.encode()),
            # One thread, because the numbers of the lines are wanted.
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=skip, use_threads=False),
            parse_options=pa_csv.ParseOptions(
                delimiter=self._delimiter or ",",
                quote_char=self._quote or False,
                newlines_in_values=True,
                invalid_row_handler=handle,
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=self._nulls,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        if made_to_fit:
            columns = [pa.array(cells, pa.string()) for cells in zip(*made_to_fit, strict=True)]
            table = pa.concat_tables([table, pa.table(columns, names=names)])
        return table, problems

    def _typed(self, text: pa.Table, columns: Sequence[TableFieldSchema]) -> tuple[pa.Table, dict[int, str]]:
        """The rows in the types of their columns, and the reasons why some are bad, by their index."""
        kinds = [rows.wire_type(column.type) for column in columns]
        given = []
        for kind, column in zip(kinds, text.columns, strict=True):
            column = column.combine_chunks()
            if "" in self._nulls and kind not in ("STRING", "BYTES"):
                column = pc.if_else(pc.equal(column, ""), None, column)
            given.append(column)
        expressions = ", ".join(
            f"{_EXPRESSIONS.get(kind, 'NULL').format(f'c{index}')} AS c{index}"
            for index, kind in enumerate(kinds)
        )
        with duckdb.connect() as database:
            database.register("text", pa.table(given, names=text.column_names))
            made: pa.Table = database.sql(f"SELECT {expressions} FROM text").to_arrow_table()  # noqa: S608
        values = [
            _moments(column, *_MOMENTS[kind]) if kind in _MOMENTS else made.column(index)
            for index, (kind, column) in enumerate(zip(kinds, given, strict=True))
        ]
        refused: dict[int, str] = {}
        for index, (column, raw, value) in enumerate(zip(columns, given, values, strict=True)):
            if value.null_count > raw.null_count:
                for row in _where(pc.and_(pc.is_null(value), pc.is_valid(raw))):
                    said = _SAID.get(kinds[index], kinds[index])
                    message = (
                        f"Could not parse '{raw[row]}' as {said} for field {column.name} (position {index})"
                    )
                    refused.setdefault(row, f"{message} in row {row + 1}")
            if column.mode == "REQUIRED" and raw.null_count:
                for row in _where(pc.is_null(raw)):
                    message = f"Required column value for column index: {index} is missing in row {row + 1}"
                    refused.setdefault(row, message)
            if not self.option("allowQuotedNewlines"):
                for row in _where(pc.fill_null(pc.match_substring(raw, "\n"), False)):
                    refused.setdefault(row, f'Missing close quote character (") in row {row + 1}')
        return pa.table(values, names=[column.name for column in columns]), dict(sorted(refused.items()))


def _where(mask: pa.Array) -> list[int]:
    return pc.indices_nonzero(mask).to_pylist()


def _moments(column: pa.Array, parse: Callable[[str], Any], kind: pa.DataType) -> pa.Array:
    """Texts as points in time; null where they are none. Each text is parsed once."""
    encoded = column.dictionary_encode()

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, OverflowError):
            return None

    return pa.array([parsed(text) for text in encoded.dictionary.to_pylist()], kind).take(encoded.indices)


def _kinds(sample: Sequence[Sequence[str]]) -> list[str]:
    """The types that the columns of a sample look like; none where the sample is empty."""
    records = ({str(index): cell for index, cell in enumerate(row)} for row in sample)
    return [field["type"] for field in detect(records, "csvdictreader")]


def _names(given: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Names of columns: a header's, with underscores for what BigQuery refuses, or such as string_field_0."""
    names: list[str] = []
    for index, kind in enumerate(kinds):
        name = _NOT_IN_A_NAME.sub("_", given[index].strip()) if index < len(given) else ""
        name = name or f"{_SAID.get(kind, kind).lower()}_field_{index}"
        name = f"_{name}" if name[0].isdigit() else name
        taken = {other.lower() for other in names}
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        names.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
    return names

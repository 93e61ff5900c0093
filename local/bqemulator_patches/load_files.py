"""The files of a load job: each format gives a schema, and rows for a table."""

from __future__ import annotations

import gzip
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
from bigquery_schema_generator.generate_schema import SchemaGenerator
from bqemulator.catalog.models import TableMeta

from local.bqemulator_patches import rows
from local.bqemulator_patches.failures import JobError

SAMPLE: Final = 500
"""The rows that autodetection looks at."""
_SHOWN: Final = 5
_OLD_AND_NEW: Final = re.compile(
    r"old=\(\w+,(?P<name>[^,]*),\w+,(?P<old>\w+)\); new=\(\w+,[^,]*,\w+,(?P<new>\w+)\)"
)

Fields = list[dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """Rows in the columns of a table, and how many bad ones were left out."""

    data: pa.Table
    bad: int = 0


class Source(ABC):
    """The files of a load job.

    Attributes:
      files: At least one.
      config: `configuration.load`.
    """

    name: str

    def __init__(self, files: Sequence[Path], config: dict[str, Any]) -> None:
        self.files = files
        self.config = config

    @abstractmethod
    def schema(self) -> Fields:
        """The schema that the files have, or that they look like."""

    @abstractmethod
    def read(self, table: TableMeta, fields: Fields) -> Loaded:
        """Every row.

        Args:
          table: The destination as it is after the job.
          fields: The schema that the job goes by, some or all of the table's, in the order of the files.

        Raises:
          JobError: a file cannot be read, or has more bad rows than `maxBadRecords`.
        """

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the job."""
        value = self.config.get(name)
        return default if value is None else value

    def check(self, total: int, problems: Sequence[str]) -> int:
        """The number of bad rows, where it is within `maxBadRecords`; JobError otherwise."""
        limit = int(self.option("maxBadRecords", 0))
        if len(problems) <= limit:
            return len(problems)
        counts = f"Rows: {total}; errors: {len(problems)}"
        raise read_error(
            f"{self.name} table encountered too many errors, giving up. {counts}. "
            "Please look into the errors[] collection for more details.",
            f"{self.name} processing encountered too many errors, giving up. {counts}; "
            f"max bad: {limit}; error percent: 0",
            *problems[:_SHOWN],
        )


def read_error(message: str, *details: str) -> JobError:
    """The error of a job whose files cannot be read."""
    prefix = "Error while reading data, error message: "
    return JobError("invalid", f"{prefix}{message}", [f"{prefix}{detail}" for detail in details])


def content(path: Path) -> bytes:
    """A file's bytes, uncompressed."""
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


class _Detector(SchemaGenerator):
    """The rules of `bq load --autodetect`, with all the timestamps that BigQuery's pages list."""

    TIMESTAMP_MATCHER = rows.DATE_AND_TIME


def detect(records: Iterable[dict[str, Any]], format_name: str) -> Fields:
    """The schema that BigQuery detects in records. `format_name`: dict (JSON) or csvdictreader.

    Raises:
      JobError: a field is one thing in one record and another in the next.
    """
    detector = _Detector(format_name, keep_nulls=True, preserve_input_sort_order=True)
    found, problems = detector.deduce_schema(records)
    if problems:
        what = [f"Row {problem['line_number']}: {_conflict(problem['msg'])}" for problem in problems]
        raise read_error(f"Schema detection found fields of several types. {what[0]}", *what[1:_SHOWN])
    return [_plain(field) for field in detector.flatten_schema(found)]


def _conflict(message: str) -> str:
    """Translates the library's complaint about a field that changes."""
    found = _OLD_AND_NEW.search(message)
    if found is None:
        return message
    return f"Field {found['name']} is {found['new']} where rows before have {found['old']}"


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    nested = {"fields": [_plain(child) for child in field["fields"]]} if "fields" in field else {}
    return dict(field) | nested


class JsonLines(Source):
    """NEWLINE_DELIMITED_JSON, gzip or not."""

    name = "JSON"

    def _lines(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The position and the object of each line, or the error that reading it gives."""
        position = 0
        for line in content(path).split(b"\n"):
            if line.strip():
                try:
                    value = orjson.loads(line)
                except ValueError as error:
                    value = error
                yield position, value if isinstance(value, dict | ValueError) else ValueError("not an object")
            position += len(line) + 1

    def schema(self) -> Fields:
        """Detected in the first records of the first file."""
        records = (value for _, value in self._lines(self.files[0]) if isinstance(value, dict))
        return detect((record for record, _ in zip(records, range(SAMPLE), strict=False)), "dict")

    def read(self, table: TableMeta, fields: Fields) -> Loaded:
        """Rows by the names of their fields."""
        good: list[dict[str, Any]] = []
        positions: list[int] = []
        problems = []
        for path in self.files:
            for position, value in self._lines(path):
                if isinstance(value, dict):
                    good.append(value)
                    positions.append(position)
                else:
                    problems.append(_json_problem(position, value))
        total = len(good) + len(problems)
        data, errors = rows.convert(good, table, ignore_unknown=bool(self.option("ignoreUnknownValues")))
        problems += [_json_problem(positions[e["index"]], e["errors"][0]["message"]) for e in errors]
        bad = self.check(total, problems)
        return Loaded(rows.arrow_schema(table).empty_table() if data is None else data, bad)


def _json_problem(position: int, what: Any) -> str:
    return f"JSON parsing error in row starting at position {position}: {what}"

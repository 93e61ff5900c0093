"""Finds the files of a source, and spreads shares of them over the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import FileMetadata

from common import memory
from common.command import CommandError
from common.files import find
from common.limits import MAX_SHARES


class FileColumnsError(CommandError, ValueError):
    """A file lacks a column, is not Parquet, or is not there; the text names it."""


class Range(NamedTuple):
    """Bytes `start` to `stop` of a file of lines: the lines that begin there. `stop` None is the end."""

    path: str
    start: int
    stop: int | None


class RowGroups(NamedTuple):
    """Some row groups of a Parquet file."""

    path: str
    numbers: tuple[int, ...]
    file_rows: int
    """Rows of the whole file when it was divided: another file may have its name when it is read."""


_Share = TypeVar("_Share", Range, RowGroups)


@dataclass
class FindShares(beam.PTransform):
    """Finds the files of a source when the job runs, and spreads shares of them over the workers.

    Input: a pipeline. Output: PCollection of lists of shares; a list has several where there are more than
    MAX_SHARES. The bundles behind it are no more than its elements, and each bundle of a batch job takes
    streams of BigQuery, whose number is limited.

    Attributes:
      pattern: see common.files.find. No match is an error.
      split: divides a file into shares.
    """

    pattern: str
    split: Callable[[FileMetadata], Iterable[Range] | Iterable[RowGroups]]

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """The pattern to shares, and these to workers."""
        shares = beam.FlatMap(_find_shares, self.pattern, self.split).with_output_types(list)
        return begin | beam.Impulse() | "Split" >> shares | "Spread" >> beam.Reshuffle()


def _find_shares(
    _: bytes, pattern: str, split: Callable[[FileMetadata], Iterable[_Share]]
) -> list[list[_Share]]:
    files = find(pattern)
    if not files:
        raise FileColumnsError(f"{pattern}: no such file")
    return group_shares(share for file in files for share in split(file))


def group_shares(shares: Iterable[_Share], most: int = MAX_SHARES) -> list[list[_Share]]:
    """Divides shares into `most` lists at most, of neighbours.

    >>> group_shares([Range("b", 0, 8), Range("a", 8, 16), Range("a", 0, 8)], most=2)[1]
    [Range(path='b', start=0, stop=8)]
    """
    ordered = sorted(shares, key=lambda share: share[:2])
    length = max(1, -(-len(ordered) // most))
    return [ordered[start : start + length] for start in range(0, len(ordered), length)]


def read_shares(shares: Iterable[Any], read: Callable[..., Iterator[Any]], *args: Any) -> Iterator[Any]:
    """Reads shares one after the other, and gives memory back that the elements so far have left free."""
    for share in shares:
        for element in read(share, *args):
            yield element
            memory.release()


def with_keys(
    batch: pa.RecordBatch, keys: Mapping[str, str | None], columns: Sequence[str]
) -> pa.RecordBatch:
    """Adds the keys of a file's directories that are among `columns` and no columns of the file.

    >>> batch = pa.RecordBatch.from_pydict({"n": [1, 2]})
    >>> with_keys(batch, {"account_id": "a", "day": "1"}, ["account_id", "n"]).to_pylist()[1]
    {'n': 2, 'account_id': 'a'}
    """
    present = {name.casefold() for name in batch.schema.names}
    wanted = {name.casefold() for name in columns}
    for name, value in keys.items():
        if name.casefold() in wanted - present:
            batch = batch.append_column(name, pa.repeat(pa.scalar(value, pa.string()), batch.num_rows))
    return batch

"""Histories as files: one of Parquet for each bucket, and history.json, which is written last."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from common.files import open_raw
from common.writing import writing
from features.history.hashing import bucket_of
from features.history.plan import Plan
from features.history.state import Block, from_batch, schema, to_batch
from features.roles import EPOCH
from transforms.publication import make_directory

INDEX: Final = "history.json"
FORMAT: Final = 2
"""Of the index and the files; another one is refused."""
GROUPS_A_BUCKET: Final = 4
"""Row groups of a file: group g of K buckets is row group g // K of bucket g % K. A batch job has all events
of a group in memory at once, and reads the histories of the group alone. More groups make shorter
pieces of a batch, and a piece costs as much as many rows."""
_BUILD: Final = b"history_build"
"""Key of the metadata of a file: the build that has written it."""


class HistoryFilesError(ValueError):
    """A directory holds no history that can be used. The text says what was expected, and what came."""


@dataclass(frozen=True)
class Keys:
    """The histories of one kind of key.

    Attributes:
      by: the field that is the key, or "account".
      version: of the plan.
      directory: below that of the history.
      count: how many keys there are.
      buckets: the numbers of those that have a file; the others are empty.
    """

    by: str
    version: str
    directory: str
    count: int
    buckets: tuple[int, ...]


@dataclass(frozen=True)
class HistoryFiles:
    """A directory with histories: the start of a job.

    Attributes:
      directory: local or gs://.
      buckets: into how many the keys are divided.
      until: the time of the last event that counts, in microseconds.
      build: names the job that has written the files, which have its name too.
      rows: how many transactions count.
      keys: the kinds of keys.
    """

    directory: str
    buckets: int
    until: int
    build: str = ""
    rows: int = 0
    keys: tuple[Keys, ...] = field(default=())

    @staticmethod
    def is_in(directory: str) -> bool:
        """Returns whether a directory has an index, of this version or another.

        Raises:
          OSError: the directory cannot be read.
        """
        return FileSystems.exists(_join(directory, INDEX))

    @classmethod
    def read(cls, directory: str) -> HistoryFiles:
        """Reads the index of a directory.

        Raises:
          HistoryFilesError: there is none, or it is of another version.
        """
        path = _join(directory, INDEX)
        try:
            with open_raw(path) as file:
                content = json.loads(file.read())
        except (OSError, ValueError) as error:
            raise HistoryFilesError(
                "expected a directory that `anomaly history build` has completed, cannot read "
                f"{path}: {error}"
            ) from error
        return cls.of(directory, content)

    @classmethod
    def of(cls, directory: str, content: dict[str, Any]) -> HistoryFiles:
        """Makes the history of a directory from the content of its index.

        Raises:
          HistoryFilesError: the index is of another version.
        """
        path = _join(directory, INDEX)
        if content.get("format") != FORMAT:
            raise HistoryFilesError(f"{path}: expected format {FORMAT}, got {content.get('format')}")
        keys = tuple(Keys(**{**one, "buckets": tuple(one["buckets"])}) for one in content["keys"])
        until = dt.datetime.fromisoformat(content["until"])
        micros = (until - EPOCH) // dt.timedelta(microseconds=1)
        return cls(directory, content["buckets"], micros, content["build"], content["rows"], keys)

    def check(self, plans: Sequence[Plan], buckets: int) -> None:
        """Checks that the directory has the histories of these plans.

        Raises:
          HistoryFilesError: it has those of other features, or is divided in another way.
        """
        if self.buckets != buckets:
            raise HistoryFilesError(
                f"{self.directory} is divided into {self.buckets} buckets, got --history_buckets={buckets}: "
                f"pass --history_buckets={self.buckets}, or build it anew"
            )
        for plan in plans:
            self._keys(plan)

    def load(self, plan: Plan, bucket: int) -> Block:
        """Reads the histories of a bucket.

        Raises:
          HistoryFilesError: there are none of this plan, or the file is of another build.
          StateError: the file is of another plan.
          OSError: it cannot be read.
        """
        return self._read(plan, bucket)

    def load_group(self, plan: Plan, group: int) -> Block:
        """Reads the histories of one of the groups into which a batch job divides the keys.

        Raises:
          HistoryFilesError, StateError, OSError: as `load`.
        """
        return self._read(plan, group % self.buckets, group // self.buckets)

    def _read(self, plan: Plan, bucket: int, row_group: int | None = None) -> Block:
        keys = self._keys(plan)
        if bucket not in keys.buckets:
            return Block.empty(plan)
        path = _path(self.directory, keys.directory, bucket)
        with open_raw(path) as source, pq.ParquetFile(source) as file:
            build = (file.schema_arrow.metadata or {}).get(_BUILD, b"none").decode("ascii", "replace")
            if build != self.build:
                # Its events end at another time than the index says: some would count twice or never.
                raise HistoryFilesError(
                    f"{path}: expected a file of the build {self.build} of {INDEX}, got one of {build}: "
                    "build the histories anew in another directory, and launch anew"
                )
            table = file.read() if row_group is None else file.read_row_group(row_group)
        table = table.combine_chunks()
        # A table without rows has no batches.
        batch = next(iter(table.to_batches()), pa.RecordBatch.from_pylist([], table.schema))
        block = from_batch(plan, batch, self.buckets)
        return block.take(np.argsort(block.keys))

    def _keys(self, plan: Plan) -> Keys:
        known = next((keys for keys in self.keys if keys.version == plan.version), None)
        if known is None:
            there = ", ".join(f"by {keys.by} ({keys.version})" for keys in self.keys) or "none"
            raise HistoryFilesError(
                f"{self.directory}: expected the histories by {by(plan)} ({plan.version}) of the model's "
                f"feature spec, got {there}: build them anew with `anomaly history build` and this model"
            )
        return known

    def write(self) -> None:
        """Writes the index, after all files: with it the directory is complete."""
        until = EPOCH + dt.timedelta(microseconds=self.until)
        content: dict[str, Any] = {
            "format": FORMAT,
            "buckets": self.buckets,
            "until": until.isoformat(),
            "build": self.build,
            "rows": self.rows,
            "keys": [asdict(keys) for keys in self.keys],
        }
        _write(_join(self.directory, INDEX), json.dumps(content, indent=2).encode())


def by(plan: Plan) -> str:
    """Returns the word of a feature spec for the key of a plan."""
    return plan.key or "account"


def write_bucket(
    directory: str, part: str, plan: Plan, block: Block, bucket: int, buckets: int, build: str
) -> None:
    """Writes the file of a bucket; a bundle that runs twice writes the same file twice.

    Args:
      directory: of the history.
      part: below it, of the kind of key.
      plan: of the block.
      block: the histories.
      bucket: its number.
      buckets: of how many.
      build: the job that writes.
    """
    make_directory(_join(directory, part))
    row_groups = bucket_of(block.keys, buckets * GROUPS_A_BUCKET) // buckets
    content = pa.BufferOutputStream()
    columns = schema(plan, buckets)
    columns = columns.with_metadata({**(columns.metadata or {}), _BUILD: build})
    with pq.ParquetWriter(content, columns, compression="zstd") as writer:
        for number in range(GROUPS_A_BUCKET):
            batch = to_batch(plan, block.take(row_groups == number), buckets)
            writer.write_batch(batch.replace_schema_metadata(columns.metadata))
    _write(_path(directory, part, bucket), content.getvalue().to_pybytes())


def _write(path: str, content: bytes) -> None:
    with (
        writing(path, "--output"),
        FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file,
    ):
        file.write(content)


def _path(directory: str, part: str, bucket: int) -> str:
    return _join(directory, f"{part}/bucket-{bucket:05d}.parquet")


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"

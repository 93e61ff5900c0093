"""Files by path, pattern or directory: which there are, their first bytes, their content.

They are those of any file system that Beam knows. Apache Beam is imported by the functions that need
it: it takes a second, and many commands read no file.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import unquote

import google.auth

from common import file_kinds

if TYPE_CHECKING:
    from apache_beam.io.filesystem import FileMetadata

BLOCK_BYTES: Final = 1024 * 1024

_KINDS: Final[dict[str, file_kinds.Kind]] = {
    "parquet": "parquet",
    "pq": "parquet",
    "jsonl": "jsonl",
    "json": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "csv",
}
_NULL_KEY: Final = "__HIVE_DEFAULT_PARTITION__"


def find(pattern: str) -> list[FileMetadata]:
    """Finds the files of a path, a pattern or a directory, in the order of their paths.

    A directory, also one that a pattern matches, stands for all files below it. Files and directories whose
    names begin with _ or . are left out, unless the pattern names them: _SUCCESS, .part-0.crc, _temporary.

    Args:
      pattern: local or of any scheme that Beam knows. *, ? and [ stay within a name, ** does not.

    Raises:
      OSError: the place cannot be listed.
    """
    from apache_beam.io.filesystems import FileSystems

    def match(pattern: str) -> list[FileMetadata]:
        listed = FileSystems.match([pattern])[0].metadata_list
        # Beam's file system of this machine matches a directory by its own name.
        return [file for file in listed if not _is_directory(file.path)]

    whole = pattern.rstrip("/") + "/**"
    is_whole = pattern.endswith("/") or (pattern.count("/") == 2 and "://" in pattern)  # a bucket
    found = match(whole) if is_whole else match(pattern) or match(whole)
    named = set(PurePosixPath(pattern).parts)
    files = [file for file in found if not _is_hidden(file.path, named)]
    return sorted(files, key=lambda file: file.path)


def require_credentials(pattern: str) -> None:
    """Raises DefaultCredentialsError where files of Cloud Storage are asked for and nobody is signed in.

    Beam tries for minutes, with a traceback each time, and goes on as nobody.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem

    # Not a class of ours in its place.
    if type(FileSystems.get_filesystem(pattern)) is GCSFileSystem:
        google.auth.default()


def _is_directory(path: str) -> bool:
    return path.endswith("/") or ("://" not in path and Path(path).is_dir())


def _is_hidden(path: str, named: set[str]) -> bool:
    parts = PurePosixPath(path).parts
    return any(part.startswith(("_", ".")) and part not in named and part != ".." for part in parts)


def kind_by_name(path: str) -> file_kinds.Kind | None:
    """Returns the kind of a file by the ending of its name, before that of a compression; None for another.

    >>> kind_by_name("rows.csv.gz"), kind_by_name("part-00000")
    ('csv', None)
    """
    from common.compressed import compression

    name = path.rpartition(".")[0] if compression(path) else path
    return _KINDS.get(name.rpartition(".")[2].lower())


def partition_keys(path: str) -> dict[str, str | None]:
    """Returns the keys that the directories of a path hold, as Hive, Spark and BigQuery write them.

    >>> partition_keys("gs://b/rows/day=2026-03-01/country=__HIVE_DEFAULT_PARTITION__/part-0.parquet")
    {'day': '2026-03-01', 'country': None}
    """
    pairs = (part.partition("=") for part in PurePosixPath(path).parts[:-1])
    return {
        unquote(name): None if value == _NULL_KEY else unquote(value) for name, sign, value in pairs if sign
    }


def open_raw(path: str) -> BinaryIO:
    """Opens a file as it is stored, to seek in it."""
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    file: BinaryIO = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return file


def open_content(path: str) -> BinaryIO:
    """Opens a file, decompressed where its name says that it is compressed.

    Raises while it is read:
      CompressedFileError: the file is compressed, and cut off or damaged.
    """
    from common.compressed import compression, decompressed

    raw = open_raw(path)
    if not compression(path):
        return raw
    return io.BufferedReader(_Blocks(raw, decompressed(raw, path, BLOCK_BYTES)), BLOCK_BYTES)


def followed_by(file: BinaryIO, end: bytes) -> BinaryIO:
    """Returns a file of the same content, and then of `end`."""
    blocks = itertools.chain(iter(functools.partial(file.read, BLOCK_BYTES), b""), [end])
    return io.BufferedReader(_Blocks(file, blocks), BLOCK_BYTES)


def head(path: str) -> bytes:
    """Reads the first bytes of a file, decompressed: as many as tell its kind.

    Raises:
      CompressedFileError: the file is not compressed as its name says.
      OSError: it cannot be read.
    """
    with open_content(path) as file:
        return file.read(file_kinds.HEAD_BYTES)


class _Blocks(io.RawIOBase):
    """A file to read of blocks of bytes."""

    def __init__(self, raw: BinaryIO, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._raw, self._blocks, self._rest = raw, blocks, b""

    def readable(self) -> bool:
        """Tells that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads at most as many bytes as the buffer takes; 0 is the end."""
        while not self._rest:
            if not (block := next(self._blocks, None)):
                return 0
            self._rest = block
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        """Closes the file that the blocks come from."""
        self._raw.close()
        super().close()

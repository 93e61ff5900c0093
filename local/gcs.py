"""A directory that stands for Cloud Storage: Beam's gs://BUCKET/X is DIRECTORY/BUCKET/X."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem
from apache_beam.io.localfilesystem import LocalFileSystem

_PREFIX = GCSFileSystem.GCS_PREFIX


class LocalGcs(GCSFileSystem):
    """Beam's file system for gs:// while `local_gcs` is in force.

    Paths in and out start with gs://. Beam's own GCSFileSystem takes no other endpoint than Google's.
    """

    root: ClassVar[Path | None] = None

    def __init__(self, pipeline_options: Any) -> None:
        super().__init__(pipeline_options)
        self._files = LocalFileSystem(pipeline_options)

    @classmethod
    def scheme(cls) -> str:
        """Returns the scheme that Beam looks a file system up by."""
        return "gs" if cls.root is not None else "gs-not-in-force"

    def _local(self, path: str) -> str:
        assert self.root is not None
        root = self.root.resolve()
        local = (root / path.removeprefix(_PREFIX)).resolve()
        if not local.is_relative_to(root):
            raise BeamIOError(f"expected a path in a bucket, got {path}, which is outside of any bucket")
        return str(local)

    def _metadata(self, path: Path) -> FileMetadata:
        assert self.root is not None
        status = path.stat()
        name = f"{_PREFIX}{path.relative_to(self.root.resolve()).as_posix()}"
        return FileMetadata(name, status.st_size, status.st_mtime)

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        # A prefix is any beginning of a name, not only a directory.
        parent = Path(self._local(dir_or_prefix.rpartition("/")[0]))
        for path in sorted(parent.rglob("*")) if parent.is_dir() else ():
            if path.is_file() and (metadata := self._metadata(path)).path.startswith(dir_or_prefix):
                yield metadata

    def _path_open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return self._files._path_open(self._local(path), *args, **kwargs)

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Opens an object for writing."""
        return self._files.create(self._local(path), *args, **kwargs)

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Opens an object for reading."""
        return self._files.open(self._local(path), *args, **kwargs)

    def copy(self, source_file_names: Iterable[str], destination_file_names: Iterable[str]) -> None:
        """Copies objects."""
        self._transfer(self._files.copy, source_file_names, destination_file_names)

    def rename(self, source_file_names: Iterable[str], destination_file_names: Iterable[str]) -> None:
        """Renames objects."""
        self._transfer(self._files.rename, source_file_names, destination_file_names)

    def _transfer(self, operation: Any, sources: Iterable[str], destinations: Iterable[str]) -> None:
        local = [self._local(path) for path in destinations]
        for path in local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        operation([self._local(path) for path in sources], local)

    def exists(self, path: str) -> bool:
        """Tests for an object of this name or below this prefix."""
        return self._files.exists(self._local(path))

    def size(self, path: str) -> int:
        """Returns the bytes of an object."""
        return self._files.size(self._local(path))

    def last_updated(self, path: str) -> float:
        """Returns the time of an object's last write, in seconds since 1970."""
        return self._files.last_updated(self._local(path))

    def checksum(self, path: str) -> str:
        """Returns a checksum of an object."""
        return self._files.checksum(self._local(path))

    def metadata(self, path: str) -> FileMetadata:
        """Returns size and time of an object."""
        try:
            return self._metadata(Path(self._local(path)))
        except OSError as error:
            raise BeamIOError("Metadata operation failed", {path: error}) from error

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects, or all below a prefix; a missing one is no error, as in Cloud Storage."""
        local = [self._local(path) for path in paths]
        self._files.delete([path for path in local if Path(path).exists()])


@contextlib.contextmanager
def local_gcs(root: Path) -> Iterator[None]:
    """Makes Beam keep gs:// below `root` in this process, for a `with` block."""
    root.mkdir(parents=True, exist_ok=True)
    elsewhere = classmethod(lambda cls: "gs-in-the-cloud")
    # Beam looks a file system up by its scheme, and two of one scheme are an error.
    with mock.patch.object(GCSFileSystem, "scheme", elsewhere), mock.patch.object(LocalGcs, "root", root):
        yield

"""The places of artifacts: a local directory, or a prefix on Cloud Storage. Both replace whole files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.writing import writing
from model.manifest import MANIFEST_FILE, ArtifactError

if TYPE_CHECKING:
    from google.cloud.storage import Blob

LOCK_FILE: Final = ".lock"
_LOCK_SECONDS: Final = 120
"""Age from which an object LOCK_FILE is of a process that was killed: a promotion takes seconds."""


class BusyError(ArtifactError):
    """Another process replaces what is at a place."""

    def __init__(self, uri: str, more: str = "") -> None:
        super().__init__(
            f"{uri}: expected no other promotion at the same time, got one that is at work there: nothing "
            f"was changed, try again when it has ended{more}"
        )


class ArtifactUnavailableError(ArtifactError):
    """Cloud Storage refuses or does not answer, or credentials are missing; this may pass."""


def is_refused(error: ArtifactUnavailableError) -> bool:
    """Tells whether Cloud Storage refuses for want of a right, which no later attempt would have."""
    from google.api_core.exceptions import Forbidden

    return isinstance(error.__cause__, Forbidden)


def is_gcs(uri: str) -> bool:
    """Tells whether `uri` names an object or directory on Cloud Storage."""
    return uri.startswith("gs://")


class Place(ABC):
    """A directory of files.

    Attributes:
      uri: as its user names it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def child(self, name: str) -> Place:
        """Returns the directory of this name below."""
        return place(f"{self.uri.rstrip('/')}/{name}")

    @abstractmethod
    def fetch(self, name: str, to: Path) -> None:
        """Copies a file to a local path.

        Raises:
          FileNotFoundError: the file is not there.
          ArtifactUnavailableError: it cannot be read.
        """

    @abstractmethod
    def put(self, name: str, source: Path) -> None:
        """Writes a file from a local one; a reader sees the old file or the new one, and nothing between.

        Raises:
          FileWriteError: the local file cannot be written.
          ArtifactUnavailableError: Cloud Storage does not take it.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, where it is there.

        Raises:
          FileWriteError: the local file cannot be removed.
          ArtifactUnavailableError: Cloud Storage does not do it.
        """

    @abstractmethod
    def stamp(self, name: str) -> str:
        """Returns a text that is another one after the file was replaced; "" where it is not there.

        Raises:
          ArtifactUnavailableError: the place does not answer.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """Checks what can be checked of writing without leaving a trace.

        Raises:
          ArtifactError: the place cannot be written to.
        """

    @abstractmethod
    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Keeps others out that ask the same of this place, for a `with` block; readers are not held up.

        Raises:
          BusyError: another has it.
          ArtifactUnavailableError: Cloud Storage does not do it.
        """

    @property
    @abstractmethod
    def key(self) -> str:
        """Equal for two names of one place."""

    @abstractmethod
    def artifacts(self) -> list[str]:
        """Names the directories right below that hold a manifest.

        Raises:
          ArtifactUnavailableError: the place does not answer.
        """


def place(uri: str | Path) -> Place:
    """Makes the place that a URI names: gs://bucket/prefix, or a local directory."""
    return CloudPlace(str(uri)) if is_gcs(str(uri)) else LocalPlace(str(uri))


class LocalPlace(Place):
    """A local directory, made when a file is put into it."""

    def fetch(self, name: str, to: Path) -> None:
        """See Place."""
        try:
            shutil.copyfile(Path(self.uri) / name, to)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ArtifactUnavailableError(f"{self.uri}: {name} cannot be read: {error}") from error

    def put(self, name: str, source: Path) -> None:
        """See Place."""
        target = Path(self.uri) / name
        beside = target.with_name(f".{name}.{uuid.uuid4().hex}")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and source.samefile(target):
                return
            try:
                with source.open("rb") as old, beside.open("xb") as new:
                    shutil.copyfileobj(old, new)
                    new.flush()
                    os.fsync(new.fileno())
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See Place."""
        path = Path(self.uri) / name
        with writing(path):
            path.unlink(missing_ok=True)

    def stamp(self, name: str) -> str:
        """See Place."""
        try:
            found = (Path(self.uri) / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            raise ArtifactUnavailableError(f"{self.uri}: {name} cannot be read: {error}") from error
        # A copy that keeps the time of its source, into the same file, shows in the time of the inode alone.
        return f"{found.st_mtime_ns} {found.st_ctime_ns} {found.st_size} {found.st_ino}"

    def check_writable(self) -> None:
        """Makes the directory when it is missing, and a file in it for a moment."""
        try:
            Path(self.uri).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.uri):
                pass
        except OSError as e:
            raise ArtifactError(
                f"{self.uri}: cannot be written: {e}; name a directory that you may write to"
            ) from e

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Locks the directory itself, which the system undoes when the process ends, however it ends.

        A directory that is not there, or that its file system cannot lock, as some of a network, stays open
        to all.
        """
        with contextlib.ExitStack() as opened:
            with contextlib.suppress(OSError):
                directory = os.open(self.uri, os.O_RDONLY)
                opened.callback(os.close, directory)
                try:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BusyError(self.uri) from None
            yield

    @property
    def key(self) -> str:
        """See Place."""
        return os.path.realpath(self.uri)

    def artifacts(self) -> list[str]:
        """See Place."""
        return sorted(path.parent.name for path in Path(self.uri).glob(f"*/{MANIFEST_FILE}"))


class CloudPlace(Place):
    """A prefix on Cloud Storage. Its client is made at the first use."""

    @cached_property
    def _root(self) -> tuple[Any, str]:
        """Bucket and prefix (without a slash at its end)."""
        # Deferred: a local artifact needs neither the client nor credentials.
        import google.cloud.storage as storage

        from common.connections import direct

        bucket, _, prefix = self.uri.removeprefix("gs://").partition("/")
        if not bucket:
            raise ArtifactError(f"{self.uri}: expected gs://bucket/prefix")
        try:
            client = storage.Client()
            direct(client._http)
        except OSError as e:
            raise ArtifactUnavailableError(f"{self.uri}: {e}; set GOOGLE_CLOUD_PROJECT") from e
        try:
            return client.bucket(bucket), prefix.strip("/")
        except ValueError as e:
            raise ArtifactError(f"{self.uri}: {e}; name a bucket as gs://bucket/prefix") from e

    def _blob(self, name: str) -> Blob:
        bucket, prefix = self._root
        return bucket.blob(f"{prefix}/{name}" if prefix else name)

    def fetch(self, name: str, to: Path) -> None:
        """See Place."""
        from google.api_core.exceptions import NotFound

        with self._errors():
            try:
                self._blob(name).download_to_filename(str(to))
            except NotFound as e:
                raise FileNotFoundError(name) from e

    def put(self, name: str, source: Path) -> None:
        """See Place."""
        with self._errors():
            self._blob(name).upload_from_filename(str(source))

    def remove(self, name: str) -> None:
        """See Place."""
        from google.api_core.exceptions import NotFound

        with self._errors(), contextlib.suppress(NotFound):
            self._blob(name).delete()

    def stamp(self, name: str) -> str:
        """Returns the generation of the object, by a request that costs no download."""
        from google.api_core.exceptions import NotFound

        with self._errors():
            blob = self._blob(name)
            try:
                blob.reload()
            except NotFound:
                return ""
            return str(blob.generation)

    def check_writable(self) -> None:
        """Checks the form and the credentials.

        Whoever may write an object need not be allowed to ask about its bucket.
        """
        with self._errors():
            _ = self._root

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps an object LOCK_FILE, which only one can create.

        One that a killed process has left counts for 2 minutes.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        lock = self._locked()
        try:
            yield
        finally:
            # One that is left there counts for 2 minutes; it must not hide how the block ended.
            gone = contextlib.suppress(NotFound, PreconditionFailed)
            with contextlib.suppress(ArtifactUnavailableError), self._errors(), gone:
                lock.delete(if_generation_match=lock.generation)

    def _locked(self) -> Blob:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        lock, token = self._blob(LOCK_FILE), uuid.uuid4().bytes
        for _ in range(3):
            with self._errors(), contextlib.suppress(NotFound, PreconditionFailed):
                try:
                    lock.upload_from_string(token, if_generation_match=0)
                    return lock
                except PreconditionFailed:
                    lock.metadata = {"asked": uuid.uuid4().hex}
                    lock.patch()  # both moments are by the clock of Cloud Storage
                if lock.download_as_bytes(if_generation_match=lock.generation) == token:
                    return lock  # the client had sent it twice: the first answer was lost
                if (lock.updated - lock.time_created).total_seconds() < _LOCK_SECONDS:
                    break
                lock.delete(if_generation_match=lock.generation)
        raise BusyError(self.uri, f"; one that was killed counts for {_LOCK_SECONDS} s")

    @property
    def key(self) -> str:
        """See Place."""
        return self.uri.rstrip("/")

    def artifacts(self) -> list[str]:
        """See Place."""
        with self._errors():
            bucket, prefix = self._root
            below = f"{prefix}/" if prefix else ""
            # The prefix is a plain text, so that it stays out of the pattern.
            blobs = bucket.list_blobs(
                prefix=below, match_glob=f"**/{MANIFEST_FILE}", fields="items(name),nextPageToken"
            )
            names = [blob.name.removeprefix(below) for blob in blobs]
        parts = [name.split("/") for name in names]
        return sorted(part[0] for part in parts if len(part) == 2 and part[1] == MANIFEST_FILE)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns refusals of Cloud Storage, and missing credentials, into ArtifactUnavailableError."""
        from common.google import ERRORS, explain

        try:
            yield
        except ERRORS as error:
            problem = explain(error)
            raise ArtifactUnavailableError(
                f"{self.uri}: Cloud Storage ({problem.kind}): {problem.text}"
            ) from error

"""Files that cannot be written: the error names the file, the flag and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from common.command import CommandError

_FIXES: Final = {
    errno.ENOENT: "make its directory, or ",
    errno.ENOSPC: "make room there, or ",
    errno.EDQUOT: "make room there, or ",
}


class FileWriteError(CommandError):
    """A file cannot be written: the disk is full, for example. The text names the file and the flag."""

    @classmethod
    def of(cls, path: str | Path, error: OSError, flag: str = "") -> Self:
        """Makes it of the system's error, which often names no file."""
        reason = error.strerror or str(error)
        fix = f"{_FIXES.get(error.errno or 0, '')}write to another place"
        return cls(f"{flag and flag + ': '}cannot write {path}: {reason}; {fix}")


@contextlib.contextmanager
def writing(path: str | Path, flag: str = "") -> Iterator[None]:
    """Makes errors of the system during a `with` block name the file, which they do not know.

    >>> with writing("out/scores.parquet", "--output"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
        ...
    common.writing.FileWriteError: --output: cannot write out/scores.parquet: No space left on device; ...

    Args:
      path: of the file that the block writes.
      flag: with which the user has named it, if there is one.

    Raises:
      FileWriteError: the block has raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise FileWriteError.of(path, error, flag) from error


def write_text(path: Path, text: str, flag: str = "") -> None:
    """Writes a text file.

    Raises:
      FileWriteError: see `writing`.
    """
    with writing(path, flag):
        path.write_text(text, encoding="utf-8")

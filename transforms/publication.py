"""Publishes the files of a job as one: all of them have their names, or a mark says that some are missing.

    DIRECTORY/_temporary/JOB/...       files that are being written
    DIRECTORY/_PUBLISHING              a job moves its files to their names, or was stopped while it did
    DIRECTORY/scores-00000-of-00002.parquet ...
    DIRECTORY/_SUCCESS                 written last: the files, as JSON

No file system moves many files at once, so a process that is killed in the middle leaves a part of them. The
same job run again takes their place. Names that begin with _ are no data to Spark, Hive, Arrow and this
project.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import orjson
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from common.command import CommandError
from common.writing import writing

SUCCESS: Final = "_SUCCESS"
PUBLISHING: Final = "_PUBLISHING"
TEMPORARY: Final = "_temporary"

_BEAMS_TEMPORARY: Final = re.compile(r"/beam-temp-[^/]*-[0-9a-f]{32}/")
"""Directories of jobs of earlier versions that failed."""


class PublicationError(CommandError):
    """The files of a job cannot be published; those that were there before are left or marked."""


def publish(
    staged: Iterable[tuple[str, str]], directory: str, sets: Sequence[str], overwrite: bool = False
) -> list[str]:
    """Moves temporary files to the names `SET-00000-of-00003.parquet`; another run of the same goes on.

    Files of an earlier job give way after the last new one is there.

    Args:
      staged: sets and paths of temporary files.
      directory: takes the files.
      sets: all sets, also those without a file in `staged`.
      overwrite: whether a complete output of an earlier job may be replaced.

    Raises:
      PublicationError: the directory has the output of another job, another job publishes there, or temporary
        files are gone.
    """
    directory = directory.rstrip("/")
    moves = _moves(staged, directory)
    # The temporary names are random, so that the text names this job as well.
    text = orjson.dumps(
        {
            "files": [FileSystems.split(path)[1] for path in moves.values()],
            "temporary": [path.removeprefix(f"{directory}/") for path in moves],
        }
    )
    success, publishing = f"{directory}/{SUCCESS}", f"{directory}/{PUBLISHING}"
    if _read(success) == text and not FileSystems.exists(publishing):
        return list(moves.values())  # a runner runs a bundle again whose end it has not heard of
    begun = _read(publishing)
    if begun != text:
        if not (overwrite or begun) and (earlier := output_files(directory, sets)):
            raise PublicationError(
                f"{directory} has {len(earlier)} files of another job, such as {earlier[0]}: write to "
                "another directory, or pass --overwrite to replace them"
            )
        _check(moves)
        _write(publishing, text, directory)
    _delete([success])
    _rename(moves)
    names = set(moves.values())
    _delete([path for path in output_files(directory, sets) if path not in names])
    if _read(publishing) != text:
        raise PublicationError(f"{directory}: another job publishes there; write to another directory")
    _write(success, text, directory)
    _delete([publishing])
    remove_temporary(directory)
    return list(moves.values())


def is_cut_off(directory: str) -> bool:
    """Returns whether a job was stopped while it moved its files, so that some of them may be missing."""
    return FileSystems.exists(f"{directory.rstrip('/')}/{PUBLISHING}")


def output_files(directory: str, sets: Iterable[str]) -> list[str]:
    """Lists the files that `publish` left in a directory, in this job or an earlier one."""
    return [path for name in sets for path in shards(f"{directory.rstrip('/')}/{name}")]


def shards(prefix: str) -> list[str]:
    """Lists the files of one set by the beginning of their paths.

    A set of another name that begins in the same way is none of it: only the number of the file may follow.
    """
    name = re.compile(re.escape(FileSystems.split(prefix)[1]) + r"-\d{5,}-of-\d{5,}\.parquet")
    return sorted(
        path for path in _match(f"{prefix}-*-of-*.parquet") if name.fullmatch(FileSystems.split(path)[1])
    )


def staging(directory: str, job: str) -> str:
    """Returns the directory of the temporary files of a job."""
    return f"{directory.rstrip('/')}/{TEMPORARY}/{job}"


def remove_temporary(directory: str, job: str = "") -> None:
    """Removes temporary files of one job, or of all jobs of this directory: they have failed."""
    root = f"{directory.rstrip('/')}/{TEMPORARY}"
    tree = f"{root}/{job}" if job else root
    paths = _match(f"{tree}/**")
    if not job:
        old = [path for path in _match(f"{directory}/beam-temp-*/*") if _BEAMS_TEMPORARY.search(path)]
        paths += old
    _delete(paths)
    if FileSystems.get_filesystem(directory).has_dirs():
        folders = {FileSystems.split(path)[0] for path in paths if not path.startswith(f"{root}/")} | {tree}
        _delete(sorted(folders))
    if job and "://" not in directory:
        with contextlib.suppress(OSError):  # other jobs have files there
            Path(root).rmdir()


def _moves(staged: Iterable[tuple[str, str]], directory: str) -> dict[str, str]:
    """Temporary paths to final ones, in an order that does not depend on that of `staged`."""
    paths: dict[str, list[str]] = {}
    for name, path in sorted(staged):
        paths.setdefault(name, []).append(path)
    return {
        path: f"{directory}/{name}-{number:05d}-of-{len(members):05d}.parquet"
        for name, members in paths.items()
        for number, path in enumerate(members)
    }


def _check(moves: Iterable[str]) -> None:
    for path in moves:
        if not FileSystems.exists(path):
            raise PublicationError(
                f"{path} is gone, probably because another job has published into the same directory: run "
                "one job at a time there, or write to another directory"
            )


def _rename(moves: dict[str, str]) -> None:
    # FileSystems.split makes a local path absolute, and these are to be compared with the paths of `moves`.
    folders = sorted({path.rpartition("/")[0] for path in moves})
    present = {path for folder in folders for path in _match(f"{folder}/*")}
    sources = [path for path in moves if path in present]
    size = FileSystems.get_chunk_size(sources[0]) if sources else 1
    for start in range(0, len(sources), size):
        chunk = sources[start : start + size]
        FileSystems.rename(chunk, [moves[path] for path in chunk])
    if lost := [path for path in moves.values() if not FileSystems.exists(path)]:
        raise PublicationError(f"{lost[0]} is gone: another program removes files there")


def _match(pattern: str) -> list[str]:
    return [file.path for file in FileSystems.match([pattern])[0].metadata_list]


def _read(path: str) -> bytes:
    if not FileSystems.exists(path):
        return b""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return bytes(file.read())


def _write(path: str, text: bytes, directory: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    folder = f"{directory}/{TEMPORARY}"
    temporary = f"{folder}/{FileSystems.split(path)[1]}"
    with writing(path, "--output"):
        make_directory(folder)
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file.write(text)
        FileSystems.rename([temporary], [path])


def make_directory(path: str) -> None:
    """Makes a directory, unless it is there."""
    try:
        FileSystems.mkdirs(path)
    except OSError:  # Beam's own file system of this machine refuses what is there
        if not FileSystems.exists(path):
            raise


def _delete(paths: Sequence[str]) -> None:
    """Removes what is there of some files or directories."""
    if present := [path for path in paths if FileSystems.exists(path)]:
        FileSystems.delete(present)

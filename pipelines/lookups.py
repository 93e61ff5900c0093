"""What the batch pipeline looks up at launch, so that a job is not started that would fail minutes later."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from transforms.sinks import output_files

PATIENCE: Final = 20.0
"""Seconds for one look at the cloud. A launch never waits longer for what it could do without."""

_T = TypeVar("_T")


def check_output(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where --output cannot be written, or has files of an earlier job.

    Parquet files of two jobs in one directory are read as one output, with rows of both. A gs:// directory
    that may not be listed is left to the job.
    """
    flag = f"--output={args.output}"
    if any(sign in args.output for sign in "*?["):
        parser.error(f"{flag}: *, ? and [ make a pattern of it; give a directory without them")
    if "://" not in args.output:
        _check_local_directory(parser, Path(args.output), flag)
    try:
        found = within(PATIENCE, lambda: output_files(args.output))
    except Exception as error:  # whatever the client of Cloud Storage raises: no permission, no network
        logging.warning("%s: cannot look for files of an earlier job there: %s", flag, error)
        return
    if found and not args.overwrite:
        parser.error(
            f"{flag} has {len(found)} files of an earlier job, such as {found[0]}, whose rows would be mixed "
            "with this one's: give another directory, or --overwrite to replace them"
        )


def _check_local_directory(parser: argparse.ArgumentParser, path: Path, flag: str) -> None:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        parser.error(f"{flag}: {there} is a file, not a directory; give another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        parser.error(f"{flag}: no permission to write in {there}; give another directory")


def within(seconds: float, look: Callable[[], _T]) -> _T:
    """What `look` gives or raises; TimeoutError after `seconds`, whatever it waits for.

    The clients of Google Cloud retry for minutes, and not all of their waits take a limit.
    """
    found: list[_T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(look())
        except Exception as error:  # raised again by the caller's thread
            failed.append(error)

    # A daemon, which does not hold up the end of the program.
    thread = threading.Thread(target=run, name="lookup", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:.0f} seconds")
    return found[0]

"""The standard streams of a command: it ends quietly when nobody reads its output any more, and at Ctrl-C.

A Unix tool whose reader has gone (`| head`, or `| less` that was left) is ended by SIGPIPE, which a shell
shows as status 141. Python ignores that signal, and must: a server outlives a connection that breaks. So a
command ends only when a write to its standard output or standard error fails. It ends as by `sys.exit`, so
that `with` and `finally` stop what it has started.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ClassVar, Final, ParamSpec, TextIO, TypeVar

CUT_STATUS: Final = 128 + signal.SIGPIPE
"""Exit status of a command whose output nobody reads any more: 141, as a shell shows it of a Unix tool."""
INTERRUPTED_STATUS: Final = 128 + signal.SIGINT
"""Exit status of a command that Ctrl-C has ended: 130."""

_STREAMS: Final = ("stdin", "stdout", "stderr")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def ends_quietly(main: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a `main` end without a traceback: with CUT_STATUS, or with INTERRUPTED_STATUS."""

    @functools.wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if _StandardStreams.are_watched:  # by the command that runs this one
            return main(*args, **kwargs)
        with _StandardStreams():
            return main(*args, **kwargs)

    return run


class _StandardStreams:
    """The standard streams of a process while a command runs, as a context manager.

    Streams that are pipes are watched, and a standard output that is a file. Missing ones become os.devnull.
    """

    are_watched: ClassVar[bool] = False

    def __init__(self) -> None:
        self._is_cut = False
        self._is_due = False
        self._is_over = False
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> None:
        missing = [descriptor for descriptor, name in enumerate(_STREAMS) if getattr(sys, name) is None]
        for descriptor in missing:
            _occupy(descriptor)
        for descriptor, name in enumerate(_STREAMS):
            before = getattr(sys, name)
            self._restore.callback(setattr, sys, name, before)
            if descriptor in missing:
                setattr(sys, name, open(os.devnull, "w" if descriptor else "r", encoding="utf-8"))
            elif descriptor:
                setattr(sys, name, self._watched(descriptor, before))
        if threading.current_thread() is threading.main_thread():
            self._restore.callback(signal.signal, signal.SIGPIPE, signal.signal(signal.SIGPIPE, self._end))
        _StandardStreams.are_watched = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What fails after the cut fails because of it. What failed before it must be seen.
        is_shown = not self._is_cut and kind is not None and not issubclass(kind, SystemExit)
        self._is_over = True
        failure = None
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except ValueError:
                pass  # the command has closed it
            except RuntimeError as error:  # from _Watched
                failure = error
        self._restore.close()
        _StandardStreams.are_watched = False
        if failure is not None and not is_shown:
            print(f"error: {failure}", file=sys.stderr)
            raise SystemExit(1) from None
        if self._is_cut and not is_shown:
            raise SystemExit(CUT_STATUS) from None
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            raise SystemExit(INTERRUPTED_STATUS) from None

    def _watched(self, descriptor: int, stream: TextIO) -> TextIO:
        """The stream, or where it is the process's own and no terminal, one that tells why it fails."""
        if stream is not getattr(sys, f"__{_STREAMS[descriptor]}__"):
            return stream
        mode = os.fstat(descriptor).st_mode
        is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        # A log on a full disk is none of the command's results: it does not fail by that.
        is_result = descriptor == 1 and not os.isatty(descriptor)
        if not (is_pipe or is_result) or not isinstance(stream, io.TextIOWrapper):
            return stream
        stream.flush()
        raw: Any = _Watched(descriptor, self.cut)
        return io.TextIOWrapper(
            # Python's own has no buffer where PYTHONUNBUFFERED is set.
            raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def cut(self) -> None:
        """Ends the command: raises SystemExit in the main thread, whichever thread has found the cut."""
        is_known, self._is_cut = self._is_cut, True
        main = threading.main_thread()
        if is_known or self._is_over:
            return  # once: a second stream must not break into the clearing up after the first
        if threading.current_thread() is main:
            raise SystemExit(CUT_STATUS)
        # Raised here, it would end this thread alone, and whoever waits for its work would wait for ever.
        self._is_due = True
        signal.pthread_kill(main.ident or 0, signal.SIGPIPE)

    def _end(self, number: int, frame: FrameType | None) -> None:
        # A connection that breaks sends this signal too. The write to it fails, and that is all.
        is_due, self._is_due = self._is_due, False
        if is_due and not self._is_over:
            raise SystemExit(CUT_STATUS)


class _Watched(io.FileIO):
    """A standard stream that leads to os.devnull once it cannot be written to.

    It calls `cut` when its reader has gone, and raises FileWriteError where the disk is full.
    """

    def __init__(self, descriptor: int, cut: Callable[[], None]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._cut = cut

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if not isinstance(error, BrokenPipeError):
                from common.writing import FileWriteError  # which needs this module

                raise FileWriteError.of("the output", error) from error
            self._cut()
            return len(data)


def _occupy(descriptor: int) -> None:
    """Gives the number of a stream that was closed before the start (`>&-`) to os.devnull.

    Otherwise the next file or socket takes the number, and is the standard stream of every child.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)

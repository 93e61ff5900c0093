"""The habits of every command: its parser, its exit status, its errors.

    @command
    def main(argv: Sequence[str] | None = None) -> int:
        parser = Parser("anomaly query", __doc__, EXAMPLES)
        ...

Exit status: 0 done; 1 failed (CommandError); 2 wrong options (OptionError); 130 ended by Ctrl-C; 141 nobody
reads the output any more. An error is one line on stderr that starts with "error: ".
"""

from __future__ import annotations

import argparse
import errno
import functools
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec

from common.loopback import bypass_proxies
from common.options import OptionError
from common.streams import ends_quietly

_P = ParamSpec("_P")


class CommandError(RuntimeError):
    """A command has failed: the text says what was expected, what came, and what to do."""


class MissingExtraError(CommandError):
    """A command needs packages that are not installed; the text names the extra."""

    def __init__(self, purpose: str, extra: str, error: ImportError) -> None:
        super().__init__(f"{purpose} needs {error.name}: run pip install '.[{extra}]'")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with examples below the help and "error: " before an error.

    Args:
      prog: the command as it is typed, "anomaly query".
      description: text for people; the docstring of the module.
      examples: shown as they stand, one command a line.
    """

    def __init__(
        self, prog: str = "", description: str | None = None, examples: str = "", **more: Any
    ) -> None:
        super().__init__(
            prog=prog or None,
            description=description,
            epilog=f"examples:\n{examples.strip(chr(10))}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **more,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the command with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")


def confirm(question: str) -> bool:
    """Asks on the terminal; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        print(f"{question} Nobody is there to answer: pass --yes.", file=sys.stderr, flush=True)
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _print_error(error: Exception) -> None:
    # Deferred: it takes a library that draws tables.
    from common.output import safe_text

    # What a stranger wrote may be in it: the name of a field, a value, an answer.
    print("error:", "\n".join(map(safe_text, str(error).split("\n"))), file=sys.stderr)


def command(main: Callable[_P, int | None]) -> Callable[_P, int]:
    """Makes errors of a `main` one line and an exit status, as the module says.

    It also keeps proxies away from addresses of this machine, for clients of Google's SDKs and of Beam.
    """

    @functools.wraps(main)
    @ends_quietly
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        bypass_proxies()
        try:
            return main(*args, **kwargs) or 0
        except OptionError as error:
            _print_error(error)
            return 2
        except CommandError as error:
            _print_error(error)
            return 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Of a file that no writer of ours knows, as a temporary one of a library.
            place = error.filename or f"a file, perhaps a temporary one in {tempfile.gettempdir()}"
            print(f"error: cannot write {place}: {error.strerror}; make room there", file=sys.stderr)
            return 1

    return run

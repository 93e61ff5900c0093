"""The sentence in the error of a failed job, whose steps may run elsewhere and send their errors as text."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Final

from common.command import CommandError
from common.options import OptionError

_LAST_LINE: Final = re.compile(r"(?P<module>\w+(?:\.\w+)*)\.(?P<name>\w+): (?P<text>.*)")
"""The end of a traceback."""

_STEP: Final = re.compile(r" \[while running '[^']*'\]$")
"""Words that Beam adds."""


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Makes errors of a job that are written for people a CommandError; others keep their traceback.

    Raises:
      CommandError: a step has failed with words of its own.
      OptionError: the options of the job are wrong.
    """
    try:
        yield
    except OptionError:
        raise
    except Exception as error:
        if text := sentence(error):
            raise CommandError(text) from error
        raise


def sentence(error: BaseException) -> str:
    """Returns the text of an error that is written for people; "" for any other, whose traceback is of use.

    Beam raises the error of a step as it is where the step ran in this process, and as the text of its
    traceback where it ran in another. An error for people is a CommandError, by its class in both cases.

    >>> traceback = "Traceback ...\\ncommon.command.CommandError: a.csv: is empty [while running 'Read']"
    >>> sentence(RuntimeError(traceback))
    'a.csv: is empty'
    """
    text = str(error)
    if not isinstance(error, CommandError):
        last = _LAST_LINE.fullmatch(text.rstrip().rpartition("\n")[2])
        if last is None or not _is_for_people(last["module"], last["name"]):
            return ""
        text = last["text"]
    return _STEP.sub("", text)


def _is_for_people(module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and issubclass(kind, CommandError)

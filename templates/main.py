"""Runs the pipeline that the parameters of a Flex template belong to; the template's launcher starts it.

One image serves both templates, so the parameters tell which pipeline is meant: a stream has a subscription
or a topic, a batch has neither. It must not wait for the job, which starts when this program ends.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from common.command import command
from common.options import NO, OptionError, SwitchAction
from pipelines import batch, streaming

_STREAM_FLAGS = ("--subscription", "--topic")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def is_streaming(argv: Sequence[str]) -> bool:
    """Tells the streaming template's parameters from the batch template's."""
    return any(word.split("=", 1)[0] in _STREAM_FLAGS and not word.endswith("=") for word in argv)


def command_line(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Makes command-line flags from template parameters.

    The launcher passes everything as --name=value. A parameter that the console's form left empty goes, and a
    switch becomes --name or --no_name.
    """
    flags = []
    for word in argv:
        flag, equals, value = word.partition("=")
        action = parser._option_string_actions.get(flag)
        if action is not None and equals and not value:
            continue
        if isinstance(action, SwitchAction) and equals:
            if value.lower() not in (*_TRUE, *_FALSE):
                raise OptionError(f"{flag}: expected true or false, got {value!r}")
            flags.append(flag if value.lower() in _TRUE else f"{NO}{flag.removeprefix('--')}")
        else:
            flags.append(word)
    return flags


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: builds the pipeline and submits it."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    words = list(sys.argv[1:] if argv is None else argv)
    if is_streaming(words):
        streaming.run(command_line(streaming.parser(), words))
    else:
        batch.run(command_line(batch.parser(), words))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the Flex template launcher runs: the pipeline that the parameters belong to.

One image serves both templates, so the parameters tell which pipeline is meant: a stream has a subscription
or a topic, a batch has neither. It must not wait for the job, which starts when this program ends.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from common.streams import ends_quietly
from pipelines import batch, streaming

_STREAM_FLAGS = ("--subscription", "--topic")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def is_streaming(argv: Sequence[str]) -> bool:
    """Whether these are the parameters of the streaming template."""
    return any(word.split("=", 1)[0] in _STREAM_FLAGS and not word.endswith("=") for word in argv)


def command_line(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Template parameters as command-line flags.

    The launcher passes everything as --name=value. A parameter that the console's form left empty goes, and a
    switch becomes --name or --no-name.
    """
    found = []
    for word in argv:
        flag, given, value = word.partition("=")
        action = parser._option_string_actions.get(flag)
        if action is not None and given and not value:
            continue
        if isinstance(action, argparse.BooleanOptionalAction) and given:
            if value.lower() not in (*_TRUE, *_FALSE):
                parser.error(f"{flag}={value}: give true or false")
            found.append(flag if value.lower() in _TRUE else f"--no-{flag.removeprefix('--')}")
        else:
            found.append(word)
    return found


@ends_quietly
def main(argv: Sequence[str] | None = None) -> None:
    """Builds and hands over the pipeline."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    words = list(sys.argv[1:] if argv is None else argv)
    if is_streaming(words):
        streaming.run(command_line(streaming.parser(), words))
    else:
        batch.run(command_line(batch.parser(), words))


if __name__ == "__main__":
    main()

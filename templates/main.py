"""Runs the pipeline that the parameters of a Flex template belong to; the template's launcher starts it.

One image serves both templates, so the parameters tell which pipeline is meant: a stream has a subscription
or a topic, a batch has an input. It must not wait for the job, which starts when this program ends.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from common.command import command
from common.options import NO, OptionError, SwitchAction
from pipelines import batch, streaming
from pipelines.options import beam_parser

_SOURCES: Final = {
    streaming: ("--subscription", "--topic"),
    batch: ("--input", "--input_table", "--input_query"),
}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")

logger = logging.getLogger(__name__)


def pipeline_of(argv: Sequence[str]) -> ModuleType:
    """Tells the streaming template's parameters from the batch template's; for --help either will do.

    Raises:
      OptionError: they name no source.
    """
    passed = {word.partition("=")[0] for word in argv if not word.endswith("=")}
    for pipeline, flags in _SOURCES.items():
        if passed.intersection(flags):
            return pipeline
    if {"--help", "-h"}.intersection(argv):
        return streaming
    expected = "; ".join(
        f"{' or '.join(flag.removeprefix('--') for flag in flags)} for the {template} template"
        for template, flags in zip(("streaming", "batch"), _SOURCES.values(), strict=True)
    )
    raise OptionError(f"the template's parameters: expected a source, {expected}, got none")


def without_unknown(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Leaves out, with a warning, what neither the pipeline nor Beam knows.

    Dataflow checks the parameters against the template. So such a flag comes from a launcher that is newer
    than the image's Beam, and a job must not fail because of it.
    """
    known = {**parser._option_string_actions, **beam_parser()._option_string_actions}
    flags: list[str] = []
    kept = True
    for word in argv:
        if word.startswith("--"):
            name = word.partition("=")[0]
            kept = name in known
            if not kept:
                logger.warning("%s: expected an option of the pipeline or of Beam; left out", name)
        if kept:
            flags.append(word)
    return flags


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
    pipeline = pipeline_of(words)
    parser = pipeline.parser()
    pipeline.run(command_line(parser, without_unknown(parser, words)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

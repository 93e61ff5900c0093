"""A dataclass of dataclasses: one concern each, one command line."""

from dataclasses import dataclass

import pytest

from common.command import Parser
from common.options import OptionError, add_options, group, option, read_options


@dataclass(frozen=True)
class Source:
    path: str | None = option(None, help="file to read")

    def __post_init__(self) -> None:
        if self.path == "":
            raise OptionError("--path is empty: pass a file")


@dataclass(frozen=True, kw_only=True)
class Job:
    source: Source = group("source")
    rows: int = option(7, help="rows to read")


def parsed(*argv: str) -> Job:
    parser = Parser()
    add_options(parser, Job)
    return read_options(Job, parser.parse_args(argv))


def test_flags_of_every_concern_are_read_into_their_own_dataclass():
    assert parsed("--path=x", "--rows=3") == Job(source=Source("x"), rows=3)
    assert parsed() == Job(source=Source(), rows=7)


def test_a_concern_checks_itself():
    with pytest.raises(OptionError, match="--path is empty"):
        parsed("--path=")


def test_the_help_has_a_heading_for_a_concern():
    parser = Parser()
    add_options(parser, Job)
    assert "\nsource:\n  --path PATH" in parser.format_help()

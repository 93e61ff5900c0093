"""Typed options: what argparse reads becomes the fields of a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from common.command import Parser
from common.options import add_options, option, read_options


@dataclass(frozen=True)
class Renaming:
    renamed: tuple[str, ...] = option((), action="append", help="may be passed several times")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [([], ()), (["--renamed=a=b"], ("a=b",)), (["--renamed=a", "--renamed=b"], ("a", "b"))],
)
def test_a_flag_that_is_passed_several_times_is_a_tuple(argv, expected):
    parser = Parser()
    add_options(parser, Renaming)
    assert read_options(Renaming, parser.parse_args(argv)) == Renaming(expected)

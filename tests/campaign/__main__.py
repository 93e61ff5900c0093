"""Kills, stops and cuts the parts of a running pipeline, and counts in the tables: nothing may be lost.

Takes about 25 minutes. It ends with 1 when a message was lost, or when a table holds one that was not sent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.command import Parser, command
from common.options import add_options, option, read_options
from common.output import add_format, print_rows
from common.values import Number
from local.demo import ensure_model
from tests.campaign.scenarios import SCENARIOS, Size

EXAMPLES = """\
  python -m tests.campaign
  python -m tests.campaign --only kill_stream,pause_bigquery --fault_seconds 20 --format json"""


@dataclass(frozen=True)
class CampaignOptions:
    """The extent of a campaign."""

    only: str = option(
        ",".join(SCENARIOS), metavar="NAMES", help="scenarios, with commas between (default: %(default)s)"
    )
    model: Path = option(
        Path("out/model"), type=Path, metavar="DIR", help="artifact; trained where it is missing"
    )
    fault_seconds: float = option(
        150.0, type=Number(whole=False), metavar="S", help="length of an outage (default: %(default)s)"
    )
    soak_seconds: float = option(
        600.0, type=Number(whole=False), metavar="S", help="length of the soak (default: %(default)s)"
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("python -m tests.campaign", __doc__, EXAMPLES)
    add_options(parser, CampaignOptions)
    add_format(parser)
    namespace: argparse.Namespace = parser.parse_args(argv)
    options = read_options(CampaignOptions, namespace)
    names = options.only.split(",")
    if unknown := set(names) - SCENARIOS.keys():
        parser.error(f"--only: expected some of {', '.join(SCENARIOS)}, got {', '.join(sorted(unknown))}")
    ensure_model(options.model)
    model = str(options.model.absolute())
    size = Size(fault_seconds=options.fault_seconds, soak_seconds=options.soak_seconds)
    outcomes = []
    for name in names:
        print(f"{name}: {(SCENARIOS[name].__doc__ or '').strip()}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="campaign-") as directory:
            outcome = SCENARIOS[name](model, Path(directory), size)
        outcomes.append(outcome)
        done = (
            f"{outcome.lost} of {outcome.sent:,} lost, all in the tables after {outcome.recovery_seconds} s"
        )
        print(f"  {done}", file=sys.stderr, flush=True)
    print_rows([asdict(outcome) for outcome in outcomes], namespace.format)
    return int(any(outcome.lost for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

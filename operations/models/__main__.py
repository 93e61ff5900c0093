"""Rolls a model out to running jobs and servers, takes it back, and lists models."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.clients import EndpointOptions
from common.command import Parser, command
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_rows, safe_text
from model import rollout
from operations.models import recalibrate

EXAMPLES: Final = """
  anomaly model promote out/model --to out/live
  anomaly model promote --back --to out/live
  anomaly model promote gs://my-bucket/models/2026-03 --to gs://my-bucket/live
  anomaly model recalibrate --dataset my-project.anomaly --model out/live --output out/recalibrated
  anomaly model list out/live
  anomaly model list gs://my-bucket/models --format json
"""


@dataclass(frozen=True)
class PromoteOptions:
    """The model to roll out.

    Raises:
      OptionError: there is neither a model nor --back, or there are both.
    """

    model: str | None
    to: str = option(
        metavar="DIR",
        help="artifact directory that jobs and servers were started with (--model), local or gs://. The "
        "model that is there is kept in DIR/previous",
    )
    back: bool = option(
        False, action="store_true", help="put the previous model back; a second time undoes it"
    )

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.back):
            raise OptionError("expected either the directory of a model, or --back")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly model`; returns the exit status."""
    parser = Parser("anomaly model", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "promote": "copy a model to where running jobs and servers take it from",
        "recalibrate": "make new thresholds of the scores that a model gave, for the same alert budgets",
        "list": "list models with their versions and thresholds",
    }
    for name, text in texts.items():
        lines = [line for line in EXAMPLES.strip("\n").splitlines() if f" {name} " in line]
        commands.add_parser(name, help=text, description=text, examples="\n".join(lines))
    promote, again, models = (commands.choices[name] for name in texts)
    add_options(again, recalibrate.RecalibrateOptions)
    add_format(again)
    add_options(again, EndpointOptions, "endpoints")
    promote.add_argument("model", nargs="?", metavar="MODEL", help="artifact directory, local or gs://")
    add_options(promote, PromoteOptions)
    models.add_argument(
        "places",
        nargs="+",
        metavar="DIR",
        help="artifact directory, or a directory of such, local or gs://; the previous model is also listed",
    )
    add_format(models)
    arguments = parser.parse_args(argv)
    if arguments.command == "promote":
        _promote(read_options(PromoteOptions, arguments, model=arguments.model))
        return 0
    if arguments.command == "recalibrate":
        options = read_options(recalibrate.RecalibrateOptions, arguments)
        recalibrate.run(options, arguments.bigquery_endpoint, arguments.format)
        return 0
    listed = [one for where in arguments.places for one in rollout.list_models(where)]
    print_rows([_row(one) for one in listed], arguments.format)
    return 0


def _promote(options: PromoteOptions) -> None:
    to = options.to
    change = rollout.go_back(to) if options.model is None else rollout.promote(options.model, to)
    version = change.after.model_version
    if change.is_none:
        print(f"{to}: version {version} was there already")
        return
    before = f" instead of {change.before.model_version}" if change.before else ""
    print(safe_text(f"{to}: version {version}{before}"))
    print("Streams and servers with --model_refresh_seconds take it; others keep theirs.")
    back = change.back
    if change.before and (back is None or back.digest != change.before.digest):
        print(safe_text(f"Version {change.before.model_version} could not be read whole, and is not kept."))
    if back:
        way = f"anomaly model promote --back --to {to}"
        print(safe_text(f"To go back to version {back.model_version}: {way}"))


def _row(listed: rollout.Listed) -> dict[str, Any]:
    manifest = listed.manifest
    figures = manifest.figures.get("scores", {}).get("anomaly_score", {}) if manifest else {}
    return {
        "model": listed.uri,
        "version": manifest.model_version if manifest else None,
        "medium": manifest.thresholds["medium"] if manifest else None,
        "high": manifest.thresholds["high"] if manifest else None,
        "features": len(manifest.features) if manifest else None,
        "average_precision": figures.get("average_precision"),
        "sha256": manifest.digest[:12] if manifest else None,
        "problem": listed.problem or None,
    }


if __name__ == "__main__":
    sys.exit(main())

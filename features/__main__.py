"""Writes a first feature spec from a table, and shows what a spec makes of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.command import CommandError, Parser, command
from common.options import add_options, option, read_options
from common.output import Format, add_format, print_rows, safe_text
from common.writing import writing
from features import reading, samples
from features.columns import ColumnError
from features.guess import guess
from features.preview import preview

EXAMPLES: Final = """
  anomaly features infer --data cards.csv --output features.yaml
  anomaly features infer --data bigquery://my-project.cards.payments
  anomaly features check --features features.yaml --data cards.csv
"""


@dataclass(frozen=True)
class SampleOptions:
    """The rows to look at."""

    data: str = option(
        metavar="SOURCE",
        help=f"CSV, JSON lines or Parquet file, or {samples.BIGQUERY_SCHEME}project.dataset.table",
    )


@dataclass(frozen=True)
class InferOptions:
    """The spec to write."""

    output: str | None = option(None, metavar="FILE", help="file for the spec (default: standard output)")


@dataclass(frozen=True)
class CheckOptions:
    """The spec to check."""

    features: str = option(metavar="FILE", help="feature spec in YAML")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly features`; returns the exit status."""
    parser = Parser("anomaly features", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, options in (
        ("infer", "write a first feature spec from the columns of a table", InferOptions),
        ("check", "show what becomes of each column, with examples", CheckOptions),
    ):
        lines = [line for line in EXAMPLES.strip("\n").splitlines() if f" {name} " in line]
        subparser = commands.add_parser(name, help=text, description=text, examples="\n".join(lines))
        add_options(subparser, SampleOptions)
        add_options(subparser, options)
    add_format(commands.choices["check"])
    arguments = parser.parse_args(argv)
    source = read_options(SampleOptions, arguments).data
    if arguments.command == "infer":
        infer(source, read_options(InferOptions, arguments))
    else:
        check(source, read_options(CheckOptions, arguments), arguments.format)
    return 0


def infer(source: str, options: InferOptions) -> None:
    """Writes a first spec; a file that is there already is kept."""
    text = guess(samples.read_sample(source), Path(source).name)
    if options.output is None:
        print(text)
        return
    path = Path(options.output)
    if path.exists():
        raise CommandError(
            f"--output {path}: expected a new file, and there is one: name another, or remove it"
        )
    with writing(path, "--output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    print(f"{options.output}: read its comments, then run", file=sys.stderr)
    print(f"  anomaly features check --features {options.output} --data {source}", file=sys.stderr)


def check(source: str, options: CheckOptions, form: Format) -> None:
    """Shows what becomes of each column."""
    spec = reading.read(options.features)
    table = samples.read_sample(source, categories=spec.categories)
    try:
        shown = preview(spec, table)
    except ColumnError as error:
        raise CommandError(f"--data {source}: {error}") from error
    print_rows(shown.rows, form)
    print(f"{table.num_rows:,} rows, {len(shown.refused):,} of them refused", file=sys.stderr)
    for row in sorted(shown.refused)[:3]:
        print(f"  row {row + 1}: {safe_text(shown.refused[row])}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""The state of the system as a page: throughput, latency, scores, alerts, dead letters, model versions."""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from google.api_core.exceptions import BadRequest
from google.cloud import bigquery

from common import clients, google
from common.command import CommandError, Parser, command
from common.names import DATASET
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_record, print_rows
from common.values import at_least, moment
from common.writing import writing
from operations import query
from operations.reasons import reasons
from operations.report import page
from operations.report.figures import Figures, read
from operations.report.server import Latest, Server

EXAMPLES: Final = """\
  anomaly report --dataset my-project.anomaly --html out/report.html
  anomaly report --dataset my-project.anomaly --since 6h --serve
  anomaly report --dataset my-project.anomaly --format json"""


def window(text: str) -> Callable[[], dt.datetime]:
    """Reads WHEN of --since as a function, because an age means another moment each time a page is made.

    Raises:
      argparse.ArgumentTypeError: the text is neither an age nor a time.
    """
    moment(text)
    return functools.partial(moment, text)


@dataclass(frozen=True)
class ReportOptions:
    """The options of this command.

    Raises:
      OptionError: --html names a file that cannot be made.
    """

    dataset: str = option(type=DATASET, metavar="PROJECT.DATASET", help="Example: my-project.anomaly")
    since: Callable[[], dt.datetime] = option(
        functools.partial(moment, "24h"),
        type=window,
        metavar="WHEN",
        help="earliest event time: 90m, 24h, 7d, or 2026-03-01T12:00:00Z (default: 24h)",
    )
    html: Path | None = option(None, type=Path, metavar="FILE", help="write the page; its directory is made")
    serve: bool = option(False, help="serve the page on 127.0.0.1 until Ctrl-C")
    port: int = option(
        8090,
        type=at_least(0, 65_535),
        metavar="N",
        help="of --serve; 0 for any free one (default: %(default)s)",
    )
    refresh_seconds: int = option(
        30,
        type=at_least(1, 86_400),
        metavar="N",
        help="between two loads of --serve; the tables are read at most so often (default: %(default)s)",
    )
    max_bytes: int = option(
        10 * 1024**3,
        type=at_least(0),
        metavar="N",
        help="refuse a page whose queries would scan more; 0 for no limit (default: 10 GiB)",
    )

    def __post_init__(self) -> None:
        if self.html and self.serve:
            raise OptionError("--serve: expected without --html, which writes a file and ends")
        if self.html and self.html.is_dir():
            raise OptionError(f"--html: expected a file, got the directory {self.html}")


def figures(options: ReportOptions, client: bigquery.Client, endpoint: str | None = None) -> Figures:
    """Reads the figures.

    Raises:
      CommandError: BigQuery refuses or does not answer; the text says what to do.
    """
    try:
        return read(client, options.dataset, options.since(), options.max_bytes)
    except (*google.ERRORS, ValueError) as error:
        outdated = (
            query.outdated(client, options.dataset, endpoint) if isinstance(error, BadRequest) else None
        )
        raise CommandError(outdated or query.explain(error, options.dataset, endpoint)) from error


def write(path: Path, body: bytes) -> None:
    """Writes the page.

    Raises:
      FileWriteError: the file cannot be written.
    """
    with writing(path, "--html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def print_figures(shown: Figures, form: str) -> None:
    """Prints the figures: a table a statement for people, or one JSON object."""
    if form == "json":
        print_record(asdict(shown), "json")
        return
    for name, rows in shown.rows.items():
        print(f"\n{name.replace('_', ' ').capitalize()}")
        print_rows([_readable(row) for row in rows])


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its reasons as a line of text, for a table."""
    return {name: reasons(value) if isinstance(value, list) else value for name, value in row.items()}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("anomaly report", __doc__, EXAMPLES)
    add_options(parser, ReportOptions)
    add_format(parser)
    add_options(parser, clients.EndpointOptions, "endpoints")
    namespace: argparse.Namespace = parser.parse_args(argv)
    options = read_options(ReportOptions, namespace)
    if namespace.format == "csv":
        raise OptionError("--format: expected table or json, got csv: the figures are several tables")
    if options.serve and namespace.format != "table":
        raise OptionError("--format: expected without --serve, which prints no figures")
    endpoint = namespace.bigquery_endpoint
    try:
        client = clients.BigQueryEndpoints(endpoint).client(options.dataset.rpartition(".")[0])
    except google.ERRORS as error:
        raise CommandError(query.explain(error, options.dataset, endpoint)) from error
    if options.serve:
        _serve(options, lambda: figures(options, client, endpoint))
        return 0
    latest = figures(options, client, endpoint)
    if options.html:
        write(options.html, page.render(latest))
        print(f"Wrote {options.html}", file=sys.stderr)
    if not options.html or namespace.format != "table":
        print_figures(latest, namespace.format)
    return 0


def _serve(options: ReportOptions, read_figures: Callable[[], Figures]) -> None:
    latest = Latest(read_figures, options.refresh_seconds)
    try:
        server = Server(options.port, latest, options.refresh_seconds)
    except OSError as error:
        raise CommandError(
            f"--port={options.port}: {error.strerror}; pass another, or 0 for any free one"
        ) from error
    with server:
        print(f"Serving {options.dataset} at {server.url} until Ctrl-C", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())

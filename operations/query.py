"""Named queries over the tables: anomalies, alert rates, dead letters, latency."""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from google.api_core.exceptions import BadRequest
from google.cloud import bigquery

from common import clients, google
from common.command import CommandError, MissingExtraError, Parser, command
from common.loopback import is_loopback_address
from common.names import DATASET
from common.options import OptionError, add_options, option, read_options
from common.output import add_format, print_rows
from common.retry import LOOK_SECONDS
from common.values import at_least, moment
from common.writing import writing
from operations.pictures import PICTURES, draw
from transforms import tables
from transforms.table_columns import TableError, missing_columns, with_members

EXAMPLES: Final = """\
  anomaly query top_anomalies --dataset my-project.anomaly --since 24h --limit 10
  anomaly query list"""

_SINCE: Final = re.compile(r"TIMESTAMP '[^']*' /\* since \*/")
INT64_MAX: Final = 2**63 - 1
"""The largest number after LIMIT; BigQuery refuses to read a statement with a larger one."""
_LIMIT: Final = re.compile(r"(\d+) /\* limit \*/")
_DATASET: Final = re.compile(r"`anomaly\.")
RETRY: Final = bigquery.DEFAULT_RETRY.with_timeout(LOOK_SECONDS)
"""The client alone would wait ten minutes for an answer, without a word."""


def names() -> list[str]:
    """The names of the queries: the .sql files in operations/queries."""
    files = resources.files("operations").joinpath("queries").iterdir()
    return sorted(file.name.removesuffix(".sql") for file in files if file.name.endswith(".sql"))


def text(name: str) -> str:
    """The SQL of a query as it stands in its file; it runs pasted into the BigQuery console."""
    return resources.files("operations").joinpath("queries", f"{name}.sql").read_text(encoding="utf-8")


def title(name: str) -> str:
    """The first comment of a query, which says what it answers."""
    return text(name).splitlines()[0].removeprefix("-- ")


def sql(name: str, dataset: str, since: dt.datetime | None = None, limit: int | None = None) -> str:
    """A query for a dataset.

    The files name the dataset `anomaly` and mark two literals, `/* since */` and `/* limit */`. Literals, not
    parameters, so that the text printed and the text in the file run anywhere; the values put in are a
    timestamp and an integer, and the dataset's form is checked where the option is read.

    Args:
      name: one of `names()`.
      dataset: "PROJECT.DATASET".
      since: the earliest event time; what the file says when None.
      limit: the most rows; what the file says when None.
    """
    statement = _DATASET.sub(f"`{dataset}.", text(name))
    if since is not None:
        statement = _SINCE.sub(f"TIMESTAMP '{timestamp(since)}' /* since */", statement)
    if limit is not None:
        statement = _LIMIT.sub(f"{limit} /* limit */", statement)
    return statement


def timestamp(moment: dt.datetime) -> str:
    """A point in time as BigQuery reads it; strftime would write the year 1 without its zeros."""
    return moment.astimezone(dt.UTC).replace(tzinfo=None).isoformat(" ", "seconds") + "+00"


def run(client: bigquery.Client, statement: str, max_bytes: int | None = None) -> list[dict[str, Any]]:
    """Runs a statement and gives its rows; `max_bytes` lets BigQuery refuse one that scans more."""
    config = bigquery.QueryJobConfig(maximum_bytes_billed=max_bytes)
    return [dict(row.items()) for row in start(client, statement, config).result(retry=RETRY)]


def start(client: bigquery.Client, statement: str, config: bigquery.QueryJobConfig) -> bigquery.QueryJob:
    """Starts a statement; gives up after LOOK_SECONDS without an answer."""
    # Without job_retry=None the client would start again, for minutes, when RETRY has given up.
    return client.query(statement, job_config=config, retry=RETRY, job_retry=None, timeout=LOOK_SECONDS)


def scanned_bytes(client: bigquery.Client, statement: str) -> int:
    """The bytes that the statement would scan, by a dry run, which is free."""
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    return int(start(client, statement, config).total_bytes_processed or 0)


def explain(
    error: Exception, dataset: str, endpoint: str | None, role: str = "roles/bigquery.dataViewer"
) -> str:
    """Says why a call to BigQuery failed, and what to do about it; `role` is what it takes on the dataset."""
    problem = google.explain(error)
    project = dataset.rpartition(".")[0]
    if problem.kind == "unreachable":
        variable = None if endpoint else os.environ.get(clients.REST_VARIABLE)  # Google's client reads it
        url = endpoint or variable or "https://bigquery.googleapis.com"
        return (
            f"expected an answer at {url} within {LOOK_SECONDS:g} s, got none ({problem.text}). "
            f"Check {clients.REST_VARIABLE if variable else clients.REST_FLAG} and the network"
        )
    step = google.remedy(
        problem,
        project,
        create=f"make it with: {_create(dataset, endpoint)}",
        grant=f"grant roles/bigquery.jobUser on {project} and {role} on {dataset}",
    )
    return f"{dataset}: {problem.text}" + (f"\n{step}" if step else "")


@dataclass(frozen=True)
class QueryOptions:
    """The options of this command."""

    dataset: str | None = option(
        None, type=DATASET, metavar="PROJECT.DATASET", help="Example: my-project.anomaly"
    )
    since: dt.datetime | None = option(
        None,
        type=moment,
        metavar="WHEN",
        help="earliest event time: 90m, 24h, 7d, or 2026-03-01T12:00:00Z (default: 7d)",
    )
    limit: int | None = option(
        None, type=at_least(1, INT64_MAX), metavar="N", help="most rows (default: as the query says)"
    )
    plot: Path | None = option(
        None,
        type=Path,
        metavar="FILE.png",
        help=f"draw the result as well; of {', '.join(PICTURES)}",
    )
    max_bytes: int = option(
        10 * 1024**3,
        type=at_least(0),
        metavar="N",
        help="refuse a query that would scan more; 0 for no limit (default: 10 GiB)",
    )
    show_sql: bool = option(False, help="print the SQL and end")


def parser() -> Parser:
    """The parser of this command."""
    parser = Parser("anomaly query", __doc__, EXAMPLES)
    parser.add_argument(
        "name", choices=["list", *names()], metavar="NAME", help=f"list, or one of: {', '.join(names())}"
    )
    add_options(parser, QueryOptions)
    add_format(parser)
    add_options(parser, clients.EndpointOptions, "endpoints")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    namespace = parser().parse_args(argv)
    options = read_options(QueryOptions, namespace)
    name: str = namespace.name
    if name == "list":
        print_rows([{"query": each, "answers": title(each)} for each in names()], namespace.format)
        return 0
    if options.plot and name not in PICTURES:
        raise OptionError(f"--plot: expected one of {', '.join(PICTURES)}, got {name}, which has no picture")
    if options.plot and not options.plot.suffix:
        raise OptionError(f"--plot: expected a file such as out/{name}.png, got '{options.plot}'")
    if options.plot and not options.plot.absolute().parent.is_dir():
        raise OptionError(f"--plot: no directory {options.plot.parent}; make it first")
    if not options.dataset:
        raise OptionError("--dataset: expected PROJECT.DATASET, got none")
    since = options.since or moment("7d")
    statement = sql(name, options.dataset, since, options.limit)
    if options.show_sql:
        print(statement)
        return 0
    rows = _ask(name, statement, options, namespace.bigquery_endpoint)
    empty = f"No rows since {timestamp(since)}; --since reaches further back."
    print_rows(rows, namespace.format, empty)
    if (limit := _LIMIT.search(statement)) and len(rows) == int(limit[1]):
        print(f"Cut at --limit={len(rows)}: there may be more rows.", file=sys.stderr)
    if options.plot:
        _plot(options.plot, name, rows)
    return 0


def _ask(name: str, statement: str, options: QueryOptions, endpoint: str | None) -> list[dict[str, Any]]:
    """Asks BigQuery for the rows, unless they cost more than --max_bytes allows."""
    dataset = options.dataset or ""
    client = None
    try:
        client = clients.BigQueryEndpoints(endpoint).client(dataset.rpartition(".")[0])
        scans = scanned_bytes(client, statement)
        print(f"{title(name)}\nScans {scans / 1024**2:,.1f} MiB.", file=sys.stderr)
        if options.max_bytes and scans > options.max_bytes:
            raise CommandError(
                f"the query would scan {scans:,} bytes, over --max_bytes={options.max_bytes}: "
                "pass a later --since, or more --max_bytes"
            )
        return run(client, statement, options.max_bytes or None)
    except (*google.ERRORS, ValueError) as error:
        lacking = outdated(client, dataset, endpoint) if client and isinstance(error, BadRequest) else None
        raise CommandError(lacking or explain(error, dataset, endpoint)) from error


def outdated(client: bigquery.Client, dataset: str, endpoint: str | None) -> str | None:
    """Names the columns that a table of an earlier version lacks, and the command that adds them."""
    spec = tables.scores_table()
    try:
        table = client.get_table(f"{dataset}.{spec.name}", retry=RETRY)
        missing = missing_columns(with_members(table.schema, spec.schema), spec.schema)
    except (*google.ERRORS, TableError):
        return None
    if not missing:
        return None
    names = ", ".join(field.name for field in missing)
    return (
        f"{dataset}.{spec.name} is of an earlier version and lacks {names}.\nThe next launch adds what is "
        f"missing, and so does: {_create(dataset, endpoint)}"
    )


def _create(dataset: str, endpoint: str | None) -> str:
    """The command that makes the dataset where it was looked for: people may be signed in to Google."""
    project, _, name = dataset.rpartition(".")
    url = endpoint or os.environ.get(clients.REST_VARIABLE) or ""
    emulators = " --emulators" if is_loopback_address(url) else ""
    return f"anomaly resources create --project {project} --dataset {name}{emulators}"


def _plot(path: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        print(f"--plot: no rows, so {path} was not drawn", file=sys.stderr)
        return
    try:
        with writing(path, "--plot"):
            draw(rows, PICTURES[name], title(name)).savefig(path, dpi=110)
    except ModuleNotFoundError as error:
        raise MissingExtraError("--plot", "local", error) from error
    except ValueError as error:  # an ending that names no format of pictures
        raise CommandError(f"--plot={path}: {error}") from error
    print(f"Wrote {path}", file=sys.stderr)

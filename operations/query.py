"""Named queries over the tables: anomalies, alert rates, dead letters, latency."""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import RequestException, Timeout

from common.command import command
from common.names import DATASET
from pipelines import options
from transforms import clients

if TYPE_CHECKING:  # drawing is an extra
    from matplotlib.figure import Figure

EXAMPLE = """example:
  python -m operations.query top_anomalies --dataset my-project.anomaly --since 24h --limit 10
  python -m operations.query list
"""

_SINCE: Final = re.compile(r"TIMESTAMP '[^']*' /\* since \*/")
_LIMIT: Final = re.compile(r"\d+ /\* limit \*/")
_DATASET: Final = re.compile(r"`anomaly\.")
_AGE: Final = re.compile(r"(\d+)([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
ANSWER_SECONDS: Final = 20
"""How long BigQuery may leave a request without an answer, retries included; the client alone waits for ten
minutes, without a word."""
RETRY: Final = bigquery.DEFAULT_RETRY.with_timeout(ANSWER_SECONDS)
_HEADING_WIDTH: Final = 110
_LABEL_WIDTH: Final = 60


@dataclass(frozen=True)
class Picture:
    """How --plot draws the rows of a query.

    Attributes:
      x: the column of the points in time, or, with `bars`, of the names beside the bars.
      y: the columns with the numbers, an axis each; () for every column of numbers.
      series: a line, or a colour of bars, for each value of this column.
      bars: whether a row is a horizontal bar.
    """

    x: str
    y: tuple[str, ...] = ()
    series: str | None = None
    bars: bool = False


PICTURES: Final = {
    "anomalies_by_account": Picture("account_id", ("alerts", "high", "max_score"), bars=True),
    "anomalies_by_feature": Picture("feature", ("alerts", "high", "mean_contribution"), bars=True),
    "anomalies_by_hour": Picture("hour", ("transactions", "medium", "high", "alert_percent")),
    "dead_letters": Picture("reason", ("messages",), series="stage", bars=True),
    "latency": Picture("minute"),
    "score_drift": Picture(
        "day", ("transactions", "alert_percent", "score_p50", "score_p99"), series="model_version"
    ),
}
"""The queries that can be drawn; the others list single rows."""


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
    found = _DATASET.sub(f"`{dataset}.", text(name))
    if since is not None:
        found = _SINCE.sub(f"TIMESTAMP '{timestamp(since)}' /* since */", found)
    if limit is not None:
        found = _LIMIT.sub(f"{limit} /* limit */", found)
    return found


def timestamp(moment: dt.datetime) -> str:
    """A point in time as BigQuery reads it; strftime would write the year 1 without its zeros."""
    return moment.astimezone(dt.UTC).replace(tzinfo=None).isoformat(" ", "seconds") + "+00"


def since(value: str, now: dt.datetime | None = None) -> dt.datetime:
    """A point in time from "90m", "24h", "7d" (ago), or RFC 3339; without an offset it is UTC.

    Raises:
      argparse.ArgumentTypeError: neither of them.
    """
    age = _AGE.fullmatch(value)
    try:
        if age:
            moment = now or dt.datetime.now(dt.UTC)
            return moment - dt.timedelta(**{_UNITS[age.group(2)]: int(age.group(1))})
        moment = dt.datetime.fromisoformat(value)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    except OverflowError:
        raise argparse.ArgumentTypeError(
            f"{value!r} is before the year 1 or after the year 9999 in UTC; give a time in between"
        ) from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{value!r} is neither an age such as 90m, 24h, 7d nor a time such as 2026-03-01T12:00:00Z"
        ) from None


def run(client: bigquery.Client, statement: str, max_bytes: int | None = None) -> list[dict[str, Any]]:
    """Runs a statement and gives its rows; `max_bytes` lets BigQuery refuse a dearer one before it costs."""
    config = bigquery.QueryJobConfig(maximum_bytes_billed=max_bytes)
    return [dict(row.items()) for row in start(client, statement, config).result(retry=RETRY)]


def start(client: bigquery.Client, statement: str, config: bigquery.QueryJobConfig) -> bigquery.QueryJob:
    """Starts a statement; gives up after ANSWER_SECONDS without an answer."""
    # Without job_retry=None the client would start again, for minutes, when RETRY has given up.
    return client.query(statement, job_config=config, retry=RETRY, job_retry=None, timeout=ANSWER_SECONDS)


def scanned_bytes(client: bigquery.Client, statement: str) -> int:
    """The bytes that the statement would scan, by a dry run, which is free."""
    config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
    return int(start(client, statement, config).total_bytes_processed or 0)


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table for people."""
    if not rows:
        return "No rows."
    cells = [[_cell(value) for value in row.values()] for row in rows]
    numeric = [all(isinstance(row[name], (int, float)) for row in rows) for name in rows[0]]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(rows[0])]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [list(rows[0]), ["-" * width for width in widths], *cells]
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e-3 else f"{value:,.3f}".rstrip("0").rstrip(".")
    return str(value)


def write(rows: Sequence[dict[str, Any]], form: str) -> None:
    """Prints rows as "table", "json" (one array) or "csv"."""
    if form == "json":
        print(json.dumps(rows, indent=1, default=_json))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        if rows:
            writer.writerow(rows[0])
        writer.writerows([_json(value) for value in row.values()] for row in rows)
    else:
        print(table_text(rows))


def _json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.datetime) else value


def draw(rows: Sequence[dict[str, Any]], picture: Picture, heading: str) -> Figure:
    """Draws rows: an axis a number, over time with a line a series, or with a horizontal bar a row.

    Args:
      rows: at least one.
      picture: what stands where.
      heading: wrapped to the width of the figure.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    names = picture.y or tuple(name for name in rows[0] if _is_number(rows, name))
    series = [_label(row[picture.series]) if picture.series else "" for row in rows]
    order = list(dict.fromkeys(series))
    figure = Figure(layout="constrained")
    figure.suptitle(textwrap.fill(heading, _HEADING_WIDTH), x=0.01, ha="left")
    if picture.bars:
        labels = [textwrap.fill(_label(row[picture.x]), _LABEL_WIDTH) for row in rows]
        figure.set_size_inches(11, 1.4 + 0.19 * sum(2 + label.count("\n") for label in labels))
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    else:
        figure.set_size_inches(11, 1.2 + 1.7 * len(names))
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        for number, one in enumerate(order):
            chosen = [i for i, found in enumerate(series) if found == one]
            values = [float("nan") if rows[i][name] is None else rows[i][name] for i in chosen]
            if picture.bars:
                axis.barh(chosen, values, label=one, color=f"C{number}")
            else:
                axis.plot([rows[i][picture.x] for i in chosen], values, marker=".", label=one)
        axis.spines[["top", "right"]].set_visible(False)
        if picture.bars:
            axis.set_yticks(range(len(rows)), labels)
            axis.set_xlabel(name)
            axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        else:
            axis.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center")
            low, high = min(0, axis.get_ylim()[0]), axis.get_ylim()[1]
            axis.set_ylim(low, high + (high - low) / 20)
    if picture.bars:
        axes[0].invert_yaxis()  # the first row on top
    else:
        locator = AutoDateLocator()
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes[-1].set_xlabel(f"{picture.x}, UTC")
    if picture.series:
        axes[0].legend(title=picture.series, fontsize="small")
    return figure


def _is_number(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return all(isinstance(row[name], (int, float)) or row[name] is None for row in rows)


def _label(value: Any) -> str:
    return "(none)" if value is None else str(value).strip()


def explain(error: Exception, dataset: str, endpoint: str | None) -> str:
    """What went wrong, and on a line of its own what to do about it, where BigQuery's own text says less."""
    if isinstance(error, (RetryError, RequestsConnectionError, Timeout)):
        url = endpoint or "https://bigquery.googleapis.com"
        return (
            f"no answer at {url} within {ANSWER_SECONDS} s ({error.__cause__ or error}).\n"
            f"Check {clients.REST_FLAG} and the network.\n"
        )
    project, _, name = dataset.rpartition(".")
    if isinstance(error, NotFound):
        remedy = f"Make it with: python -m cloud.resources create --project {project} --dataset {name}\n"
    elif isinstance(error, Forbidden):
        remedy = (
            f"It takes roles/bigquery.jobUser on {project} and roles/bigquery.dataViewer on {dataset}; "
            "ask its owner.\n"
        )
    elif isinstance(error, GoogleAuthError):
        remedy = "Run `gcloud auth application-default login`.\n"
    else:
        remedy = ""
    return f"{dataset}: {error}\n{remedy}"


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    found = argparse.ArgumentParser(
        prog="python -m operations.query",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "name", choices=["list", *names()], metavar="NAME", help=f"list, or one of: {', '.join(names())}"
    )
    found.add_argument(
        "--dataset", type=DATASET, metavar="PROJECT.DATASET", help="Example: my-project.anomaly"
    )
    found.add_argument(
        "--since",
        type=since,
        default="7d",
        metavar="WHEN",
        help="earliest event time: 90m, 24h, 7d, or 2026-03-01T12:00:00Z (default: %(default)s)",
    )
    found.add_argument(
        "--limit", type=options.at_least(1), metavar="N", help="most rows; default: what the query says"
    )
    found.add_argument("--format", choices=("table", "json", "csv"), default="table")
    found.add_argument(
        "--plot", type=Path, metavar="FILE.png", help=f"draw the result as well; of {', '.join(PICTURES)}"
    )
    found.add_argument(
        "--max-bytes",
        type=options.at_least(0),
        default=10 * 1024**3,
        metavar="N",
        help="refuse a query that would scan more; 0 for no limit (default: 10 GiB)",
    )
    found.add_argument("--show-sql", action="store_true", help="print the SQL and end")
    clients.add_arguments(found)
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    found = parser()
    args = found.parse_args(argv)
    if args.plot and args.name not in PICTURES:
        found.error(f"--plot: {args.name} has no picture; these have one: {', '.join(PICTURES)}")
    if args.name == "list":
        width = max(len(name) for name in names())
        print("\n".join(f"{name.ljust(width)}  {title(name)}" for name in names()))
        return 0
    if not args.dataset:
        found.error("--dataset=PROJECT.DATASET is needed")
    if args.plot and not args.plot.absolute().parent.is_dir():
        found.exit(1, f"{found.prog}: --plot: no directory {args.plot.parent}; make it first\n")
    statement = sql(args.name, args.dataset, args.since, args.limit)
    if args.show_sql:
        print(statement)
        return 0
    try:
        endpoints = clients.BigQueryEndpoints(args.bigquery_endpoint, args.bigquery_storage_endpoint)
        client = endpoints.client(args.dataset.rpartition(".")[0])
        scans = scanned_bytes(client, statement)
        print(f"{title(args.name)}\nScans {scans / 1024**2:,.1f} MiB.", file=sys.stderr)
        if args.max_bytes and scans > args.max_bytes:
            found.exit(
                1,
                f"{found.prog}: the query would scan {scans:,} bytes, over --max-bytes={args.max_bytes}: "
                "give a later --since, or more --max-bytes\n",
            )
        rows = run(client, statement, args.max_bytes or None)
    except (GoogleAPIError, GoogleAuthError, RequestException, ValueError) as error:
        found.exit(1, f"{found.prog}: {explain(error, args.dataset, args.bigquery_endpoint)}")
    write(rows, args.format)
    if args.plot and not rows:
        print(f"--plot: no rows, so {args.plot} was not drawn", file=sys.stderr)
    elif args.plot:
        try:
            draw(rows, PICTURES[args.name], title(args.name)).savefig(args.plot, dpi=110)
        except ModuleNotFoundError:
            found.exit(1, f"{found.prog}: --plot needs matplotlib: pip install 'matplotlib>=3.9'\n")
        except (OSError, ValueError) as error:
            found.exit(1, f"{found.prog}: --plot={args.plot}: {error}\n")
        print(f"Wrote {args.plot}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

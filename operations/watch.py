"""Compares what models saw and raised with their training: drift by feature, alerts, missing values.

Ends with 1 where something is over its limit, so that a scheduler can tell.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from google.api_core.exceptions import BadRequest

from common import clients, google
from common.command import CommandError, Parser, command
from common.names import DATASET
from common.options import add_options, option, read_options
from common.output import add_format, print_rows
from common.values import Number, at_least, moment
from operations import query

EXAMPLES: Final = """\
  anomaly watch --dataset my-project.anomaly
  anomaly watch --dataset my-project.anomaly --since 6h --max_psi=0.5 --format json

exit status: 0 all within their limits; 1 something is over its limit, or there is nothing to judge; 2 wrong
options"""

QUERIES: Final = ("feature_drift", "alert_budget")
LEAST_ALERTS: Final = 5
"""Alerts that the budget must allow before their number is judged."""

Rows = Sequence[dict[str, Any]]
Status = Literal["over", "ok", "too few rows"]
STATUSES: Final[tuple[Status, ...]] = ("over", "ok", "too few rows")


@dataclass(frozen=True)
class Limits:
    """Limits of the checks."""

    max_psi: float = option(
        0.25,
        type=Number(0, whole=False),
        metavar="PSI",
        help="population stability index of a feature or of the score over the 20-quantile bins of the "
        "training: up to 0.1 is usual, 0.25 another distribution. An hour of a day may differ from the "
        "whole day by more (default: %(default)s)",
    )
    max_outside_percent: float = option(
        1.0,
        type=Number(0, whole=False),
        metavar="PERCENT",
        help="values of a feature outside the range of the training (default: %(default)s)",
    )
    max_missing_percent: float = option(
        5.0,
        type=Number(0, whole=False),
        metavar="PERCENT",
        help="rows without a value of a feature, more than in the training (default: %(default)s)",
    )
    max_times_budget: float = option(
        3.0,
        type=Number(0, whole=False),
        metavar="TIMES",
        help="alerts of a severity, as a multiple of the budget that the model's threshold was calibrated "
        "for; a job with --medium_threshold or --high_threshold has another, so pass its multiple "
        "(default: %(default)s)",
    )
    min_rows: int = option(
        1000,
        type=at_least(1),
        metavar="N",
        help="judge a feature from so many counted rows on; fewer differ by chance (default: %(default)s)",
    )


@dataclass(frozen=True)
class WatchOptions:
    """The tables, and the time that is judged."""

    dataset: str = option(type=DATASET, metavar="PROJECT.DATASET", help="Example: my-project.anomaly")
    since: dt.datetime | None = option(
        None,
        type=moment,
        metavar="WHEN",
        help="judge what was scored since: 90m, 24h, 7d, or 2026-03-01T12:00:00Z; alerts by their event time "
        "(default: 24h)",
    )
    model_version: str | None = option(
        None, metavar="VERSION", help="judge this version alone (default: all of this time)"
    )


@dataclass(frozen=True)
class Check:
    """One number beside its limit.

    Attributes:
      check: psi, outside_percent, missing_percent or times_budget.
      name: of the feature, anomaly_score, or the severity.
      model_version: that scored.
      transactions: counted for it.
      value: the number.
      limit: of it.
      status: whether the number is over it.
    """

    check: str
    name: str
    model_version: str
    transactions: int
    value: float
    limit: float
    status: Status


def checks(drift: Rows, budgets: Rows, limits: Limits) -> list[Check]:
    """Judges the rows of the queries feature_drift and alert_budget; the worst first."""
    found = [*_of_features(drift, limits), *_of_alerts(budgets, limits)]
    return sorted(found, key=_rank)


def _rank(check: Check) -> tuple[int, float, str, str]:
    return STATUSES.index(check.status), -check.value / (check.limit or 1), check.check, check.name


def _of_features(drift: Rows, limits: Limits) -> Iterator[Check]:
    for row in drift:
        is_enough = row["transactions"] >= limits.min_rows
        more = row["missing_percent"] - (row["trained_missing_percent"] or 0)
        for name, value, limit in (
            ("psi", row["psi"], limits.max_psi),
            ("outside_percent", row["outside_percent"], limits.max_outside_percent),
            ("missing_percent", max(more, 0.0), limits.max_missing_percent),
        ):
            yield _check(name, row["feature"], row, value, limit, is_enough)


def _of_alerts(budgets: Rows, limits: Limits) -> Iterator[Check]:
    for row in budgets:
        is_enough = row["transactions"] * row["budget_percent"] / 100 >= LEAST_ALERTS
        value, limit = row["times_budget"], limits.max_times_budget
        yield _check("times_budget", row["severity"], row, value, limit, is_enough)


def _check(check: str, name: str, row: dict[str, Any], value: float, limit: float, is_enough: bool) -> Check:
    # Not "over if above": a number that is none, of a damaged profile, would be fine.
    status: Status = "too few rows" if not is_enough else "ok" if value <= limit else "over"
    return Check(check, name, row["model_version"], row["transactions"], value, limit, status)


def _of_version(rows: Iterable[dict[str, Any]], version: str | None) -> list[dict[str, Any]]:
    return [row for row in rows if version is None or row["model_version"] == version]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("anomaly watch", __doc__, EXAMPLES)
    add_options(parser, WatchOptions)
    add_options(parser, Limits, "limits")
    add_format(parser)
    add_options(parser, clients.EndpointOptions, "endpoints")
    namespace: argparse.Namespace = parser.parse_args(argv)
    options, limits = read_options(WatchOptions, namespace), read_options(Limits, namespace)
    since = options.since or moment("24h")
    drift, budgets = _ask(options.dataset, since, namespace.bigquery_endpoint)
    version = options.model_version
    found = checks(_of_version(drift, version), _of_version(budgets, version), limits)
    if not found:
        of = f" of version {version}" if version else ""
        raise CommandError(
            f"{options.dataset}: expected profiles and scores{of} since {query.timestamp(since)}, got none: "
            "does a job run, with --profile_every above 0? Pass an earlier --since"
        )
    print_rows([asdict(each) for each in found], namespace.format)
    over = sum(each.status == "over" for each in found)
    print(f"{over} of {len(found)} checks are over their limit.", file=sys.stderr)
    if all(each.status == "too few rows" for each in found):
        raise CommandError(
            f"{options.dataset}: expected rows enough to judge, got too few for each check: "
            "pass an earlier --since, or a smaller --min_rows"
        )
    return 1 if over else 0


def _ask(dataset: str, since: dt.datetime, endpoint: str | None) -> list[list[dict[str, Any]]]:
    client = None
    try:
        client = clients.BigQueryEndpoints(endpoint).client(dataset.rpartition(".")[0])
        statements = [query.sql(name, dataset, since, query.INT64_MAX) for name in QUERIES]
        return [query.run(client, statement) for statement in statements]
    except (*google.ERRORS, ValueError) as error:
        lacking = (
            query.outdated(client, dataset, endpoint) if client and isinstance(error, BadRequest) else None
        )
        raise CommandError(lacking or query.explain(error, dataset, endpoint)) from error


if __name__ == "__main__":
    sys.exit(main())

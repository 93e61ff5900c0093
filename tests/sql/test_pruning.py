"""A bound on the time reaches the scan of the table, by the planner of DuckDB, the engine of the local stack.

DuckDB has no partitions. But a filter that BigQuery can prune partitions by is one that its planner moves
below windows and views to the table, and DuckDB moves filters by the same rule: through a window only
where the window partitions by the column.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import duckdb
import pyarrow as pa
import pytest
import sqlglot

from operations import query
from tests.sql import rows, statements
from transforms import tables

DATASET: Final = "p.d"
SPECS: Final = [*tables.TABLES, tables.replayed_records_table()]
SINCE: Final = dt.datetime(2026, 3, 8, tzinfo=dt.UTC)
BOUND: Final = ">= '2026-03-08 00:00:00+00'"


class Planner:
    """DuckDB with the tables, the views and a few rows."""

    def __init__(self) -> None:
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'")
        made = rows.Rows(1)
        for spec in SPECS:
            stored = rows.batch(made.table(spec, 30), spec.schema)
            self._connection.register("stored", pa.Table.from_batches([stored]))
            self._connection.execute(f"CREATE TABLE {spec.name} AS SELECT * FROM stored")
            self._connection.execute(f"CREATE VIEW {spec.view} AS {_translated(spec.view_sql(DATASET))}")

    def scans(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
        """The tables that a statement scans, each with the filters that reach it."""
        explain = f"EXPLAIN (FORMAT json) {_translated(sql)}"
        ((_, plan),) = self._connection.execute(explain, dict(parameters or {})).fetchall()
        return [
            (node["extra_info"]["Table"].rpartition(".")[2], str(node["extra_info"].get("Filters", "")))
            for root in json.loads(plan)
            for node in _nodes(root)
            if "Table" in node["extra_info"]
        ]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node["children"]:
        yield from _nodes(child)


def _translated(sql: str) -> str:
    (translated,) = sqlglot.transpile(sql.replace(f"{DATASET}.", ""), read="bigquery", write="duckdb")
    return translated


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner()


@pytest.mark.parametrize("name", query.names())
def test_a_query_reads_the_days_from_since_on(planner, name):
    scans = planner.scans(query.sql(name, DATASET, SINCE))
    (table,) = {table for table, _ in scans}
    columns = {
        tables.ERRORS_TABLE: "timestamp",
        tables.WINDOWS_TABLE: "window_start",
        tables.PROFILES_TABLE: "profiled_at",
    }
    column = columns.get(table, "event_time")
    assert all(f"{column} {BOUND}" in filters for _, filters in scans)


@pytest.mark.parametrize(
    "statement",
    [
        each
        for each in statements.statements()
        if each.site.startswith("operations.report.") and each.arguments["since"] == statements.NOON
    ],
    ids=str,
)
def test_the_page_reads_the_days_from_since_on(planner, statement):
    scans = planner.scans(statement.sql(DATASET)[0])
    assert scans
    for _, filters in scans:
        assert f"event_time {BOUND}".replace("00:00:00", "12:00:00") in filters


@pytest.mark.parametrize(
    "statement", [each for each in statements.statements() if "noted" in each.arguments], ids=str
)
def test_a_replay_reads_the_days_from_since_on(planner, statement):
    sql, parameters = statement.sql(DATASET)
    values = {each.name: SINCE if each.name == "since" else each.value for each in parameters}
    scans = dict(planner.scans(sql, values))
    assert f"timestamp {BOUND}" in scans[tables.ERRORS_TABLE]


@pytest.mark.parametrize("spec", [tables.scores_table(), tables.alerts_table()], ids=lambda spec: spec.view)
def test_through_a_view_the_rows_with_a_time_of_their_own_are_pruned(planner, spec):
    """The others are not: their time is no part of their key. They lie together, by the clustering."""
    own, derived = planner.scans(f"SELECT * FROM `{DATASET}.{spec.view}` WHERE event_time {BOUND}")
    assert own[0] == derived[0] == spec.name
    assert f"event_time {BOUND}" in own[1]
    assert (derived[1], spec.clustering[0]) == ("event_time_derived", "event_time_derived")


def test_a_bound_above_a_window_that_does_not_partition_by_time_reaches_no_scan(planner):
    """The view of the dead letters, which `dead_letters` and the replay went through."""
    ((table, filters),) = planner.scans(
        f"SELECT * FROM `{DATASET}.error_records_latest` WHERE timestamp {BOUND}"
    )
    assert (table, filters) == (tables.ERRORS_TABLE, "")

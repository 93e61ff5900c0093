"""The views and queries on generated rows, executed by ZetaSQL's implementation and by the local stack.

Rows must be equal, in order where the statement orders them. Numbers are compared to nine digits, because
sums are added up in another order. ZetaSQL's implementation lacks APPROX_QUANTILES: in its place stands the
element of the same rank, which the local stack gives and BigQuery approximates.

Where different rows share key and time, either may be the latest, in BigQuery as well. There each engine must
show one of these rows; elsewhere the generated rows leave no choice.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

import pytest

from operations import query
from tests.sql import answers, rows, statements, worlds, zeta
from tests.sql.worlds import World, plain
from transforms import tables

pytestmark = pytest.mark.integration

FIRST: Final = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
NOON: Final = statements.NOON


@dataclass(frozen=True)
class Setting:
    """The way in which the rows of a world are made.

    Attributes:
      seed: of the rows.
      count: rows of each table, about.
      full: whether the scores have every output of the model.
      tied: whether all scores are equal.
      thorough: whether the values of options vary.
    """

    seed: int
    count: int
    full: bool = False
    tied: bool = False
    thorough: bool = False

    @property
    def specs(self) -> list[tables.TableSpec]:
        """The tables."""
        return [tables.scores_table(self.full), *tables.TABLES[1:], tables.replayed_records_table()]

    def runs(self, statement: statements.Statement) -> bool:
        """Tells whether a statement reads these tables, and differs from others in more than a literal."""
        is_query = re.match(r"(--.*\n)*(SELECT|WITH)\b", statement.sql("p.d")[0])
        if not is_query or (statement.spec and statement.spec not in self.specs):
            return False
        if statements.is_of_model(statement):  # no engine here has models
            return False
        since, limit = statement.arguments.get("since", FIRST), statement.arguments.get("limit")
        return (since, limit) == (FIRST, None) or (self.thorough and since != NOON and limit in (None, 3))


SETTINGS: Final = {
    "hostile": Setting(1, 300, thorough=True),
    "ties": Setting(5, 90, tied=True),
    "full": Setting(2, 40, full=True),
    "empty": Setting(3, 0),
}
STATEMENTS: Final = statements.statements()
CASES: Final = [
    pytest.param(name, statement, id=f"{name}-{statement}")
    for name, setting in SETTINGS.items()
    for statement in STATEMENTS
    if setting.runs(statement)
]


@pytest.fixture(scope="module")
def world_of(zetasql, bigquery_emulator):
    endpoints, client = worlds.clients(bigquery_emulator)

    @functools.cache
    def make(name: str, setting: Setting, ambiguous: bool = False) -> World:
        dataset, specs = f"{bigquery_emulator.project}.sql_{name}", setting.specs
        made = rows.Rows(setting.seed, ambiguous, setting.tied)
        stored = {spec.name: made.table(spec, setting.count) for spec in specs}

        def catalog() -> zeta.Catalog:
            return zeta.Catalog(
                zetasql,
                {f"{dataset}.{spec.name}": spec.table(dataset).schema for spec in specs},
                {f"{dataset}.{spec.view}": spec.view_sql(dataset) for spec in specs},
                {f"{dataset}.{spec.name}": stored[spec.name] for spec in specs},
            )

        # A third of the letters were sent before.
        letters = next(each for each in STATEMENTS if setting.runs(each) and "noted" in each.arguments)
        sent = [row["letter"] for row in catalog().execute(*letters.sql(dataset))][::3]
        stored[tables.REPLAYED_TABLE] += made.notes(sent)
        tables.create_tables(client, dataset, specs)
        for spec in specs:
            worlds.store(endpoints, f"{dataset}.{spec.name}", stored[spec.name], spec.schema)
        return World(dataset, stored, catalog(), client)

    return make


def is_ordered(sql: str) -> bool:
    """Tells whether the whole statement has an order, and not only a part in parentheses."""
    before = None
    while sql != before:
        before, sql = sql, re.sub(r"\([^()]*\)", "", sql)
    return "ORDER BY" in sql


@pytest.mark.parametrize(("name", "statement"), CASES)
def test_both_engines_give_the_same_rows(world_of, name, statement):
    world = world_of(name, SETTINGS[name])
    sql, parameters = statement.sql(world.dataset)
    expected, actual = world.expected(sql, parameters), world.actual(sql, parameters)
    assert expected or name != "hostile"
    assert [list(row) for row in actual] == [list(row) for row in expected]  # the names
    expected, actual = [plain(row) for row in expected], [plain(row) for row in actual]
    if not is_ordered(sql):
        expected, actual = sorted(expected, key=repr), sorted(actual, key=repr)
    assert actual == expected


QUERIES: Final = [case for case in CASES if case.values[1].site == "operations.query.sql"]


@pytest.mark.parametrize(("name", "statement"), QUERIES)
def test_a_query_gives_what_the_rows_say(world_of, name, statement):
    """The local stack gives the same rows: see above."""
    world = world_of(name, SETTINGS[name])
    assert world.expected(*statement.sql(world.dataset)) == answers.answer(
        stored=world.stored, **statement.arguments
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_view_shows_what_the_rows_say(world_of, name):
    world = world_of(name, SETTINGS[name])
    for spec in SETTINGS[name].specs:
        shown = world.expected(f"SELECT * FROM `{world.dataset}.{spec.view}`")
        expected = answers.view(spec.name, world.stored[spec.name])
        assert sorted(map(repr, map(plain, shown))) == sorted(map(repr, map(plain, expected)))


def test_every_query_is_executed_in_every_world():
    for name in SETTINGS:
        executed = {case.values[1].site for case in CASES if case.values[0] == name}
        assert len(executed) > 3
        queries = {case.values[1].arguments.get("name") for case in CASES if case.values[0] == name}
        assert queries >= set(query.names())


def test_letters_that_were_sent_are_not_read_again(world_of):
    world = world_of("hostile", SETTINGS["hostile"])
    forms = [each for each in STATEMENTS if "noted" in each.arguments][:2]
    all_letters, left = (len(world.actual(*form.sql(world.dataset))) for form in forms)
    assert 0 < left < all_letters


def test_either_of_two_latest_rows_is_the_latest(world_of):
    setting = Setting(9, 300)
    world = world_of("ambiguous", setting, ambiguous=True)
    for spec in setting.specs:
        stored: dict[str, list[Any]] = defaultdict(list)
        for row in world.stored[spec.name]:
            stored[rows.identity(row, spec)].append(plain(row))
        assert any(len(set(map(repr, same))) > 1 for same in stored.values())
        sql = f"SELECT * FROM `{world.dataset}.{spec.view}`"
        shown = [world.expected(sql), world.actual(sql)]
        expected, actual = (sorted(rows.identity(row, spec) for row in each) for each in shown)
        assert actual == expected
        for row in itertools.chain(*shown):
            assert plain(row) in stored[rows.identity(row, spec)]

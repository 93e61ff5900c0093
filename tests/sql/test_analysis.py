"""Every statement that the product can send, judged by ZetaSQL, Google's own analyzer of BigQuery's SQL.

The tables have the columns that `transforms.tables` declares. What the analyzer cannot know:

- whether the caller may run the statement, and whether a role of a GRANT exists;
- quotas and limits: the size of a statement, partitions in one query, bytes billed;
- REQUIRED columns, partitions, clustering, and which partitions a filter prunes;
- a table or column that an installation has and the declaration does not have, or the other way round;
- what the Storage Read API refuses in a row filter beyond SQL, and what a view refuses beyond its query;
- functions and syntax that BigQuery has and this version of ZetaSQL lacks (SEARCH; ML is in `test_models`).
"""

from __future__ import annotations

import dataclasses
import re

import pytest
from google.cloud import bigquery
from zetasql.core import ServerError

from features.ulb import FEATURES, LABEL
from tests.sql import language, statements, zeta
from transforms import tables

STATEMENTS = statements.statements()
EXAMPLES = statements.examples()
DATASETS = ["example.com:my-project.anomaly", "anomaly"]
"""The first is in a project of an organization's domain; the second is what the files of the queries say."""
INPUT = [*(bigquery.SchemaField(name, "FLOAT64") for name in FEATURES), bigquery.SchemaField(LABEL, "INT64")]


def catalog_of(zetasql, dataset, specs):
    return zeta.Catalog(
        zetasql,
        {f"{dataset}.{spec.name}": spec.table("p.d").schema for spec in specs},
        {f"{dataset}.{spec.view}": spec.view_sql(dataset) for spec in specs},
    )


@pytest.fixture(scope="module")
def catalogs(zetasql):
    """The tables and their views by dataset and by the detail of the scores."""
    others = [*tables.TABLES[1:], tables.replayed_records_table()]
    return {
        dataset: catalog_of(zetasql, dataset, [tables.scores_table(full), *others])
        for dataset, full in zip(DATASETS, (False, True), strict=True)
    }


@pytest.fixture(scope="module")
def catalog(catalogs):
    return catalogs[DATASETS[0]]


ON_TABLES = [each for each in STATEMENTS if each.spec is None and not statements.is_of_model(each)]


@pytest.mark.parametrize("statement", ON_TABLES, ids=str)
def test_bigquery_accepts_what_the_product_sends(catalogs, statement):
    for dataset, catalog in catalogs.items():
        catalog.analyze(*statement.sql(dataset))


@pytest.mark.parametrize("spec", statements.declared(), ids=lambda spec: f"{spec.name}-{len(spec.schema)}")
def test_bigquery_accepts_the_statements_of_a_table_and_its_view(zetasql, spec):
    catalog = catalog_of(zetasql, "p.d", [spec])
    own = [statement for statement in STATEMENTS if statement.spec == spec]
    assert {statement.site.rpartition(".")[2] for statement in own} >= {"view_sql", "create_view_sql"}
    for statement in own:
        catalog.analyze(*statement.sql("p.d"))
    assert catalog.columns(f"p.d.{spec.view}") == catalog.columns(f"p.d.{spec.name}")


@pytest.fixture(scope="module")
def examples_catalog(zetasql):
    """Our tables as they are, and every other table in the ULB layout, as the sources of a batch have it."""
    # In backquotes, or plain after FROM and JOIN.
    pattern = re.compile(r"`([^`]+\.[^`]+)`|\b(?:FROM|JOIN)\s+([\w-]+(?:\.[\w-]+)+)")
    names = {name for each in EXAMPLES for pair in pattern.findall(each.sql) for name in pair if name}
    ours = catalog_of(zetasql, DATASETS[0], [*tables.TABLES, tables.replayed_records_table()])
    ours.add(dict.fromkeys({*names, "source"} - set(ours.names), INPUT))
    return ours


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.where}-{example.sql}"[:70])
def test_bigquery_accepts_what_pages_and_help_texts_show(examples_catalog, example):
    if example.condition:
        examples_catalog.analyze_condition(example.sql, "source")
        return
    for sql in filter(str.strip, example.sql.split(";")):
        examples_catalog.analyze(sql)


@pytest.mark.parametrize(
    "table",
    [
        "`example.com:my-project.anomaly.scores`",
        "`example.com:my-project`.anomaly.scores",
        "anomaly.scores",
        "`anomaly`.scores",
        "`anomaly.scores`",
    ],
)
def test_every_way_to_write_the_name_of_a_table_is_known(catalogs, table):
    catalog = catalogs["anomaly"] if "my-project" not in table else catalogs[DATASETS[0]]
    catalog.analyze(f"SELECT severity FROM {table}")


def test_there_are_examples():
    assert {example.condition for example in EXAMPLES} == {False, True}


SCORES = f"`{DATASETS[0]}.scores`"


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        (f"SELECT no_such_column FROM {SCORES}", "Unrecognized name: no_such_column"),
        (
            f"SELECT anomaly_scores FROM {SCORES}",
            "Did you mean anomaly_score",
        ),
        (f"SELECT 1 FROM `{DATASETS[0]}.score`", "Table not found"),
        (f"SELECT account_id + 1 FROM {SCORES}", "No matching signature for operator \\+"),
        (f"SELECT 1 FROM {SCORES} WHERE event_time >= 7", "No matching signature for operator >="),
        (f"SELECT top_features[OFFSET(0)].score FROM {SCORES}", "Field name score does not exist"),
        (f"SELECT encoded.x FROM {SCORES}", "Cannot access field x on a value with type ARRAY<FLOAT64>"),
        ("SELECT list_value(1)", "Function not found: list_value"),  # DuckDB's
        ("SELECT ARRAY_MAX([1, 2])", "Function not found: ARRAY_MAX"),  # Spanner's
        (f"SELECT account_id::STRING FROM {SCORES}", "Syntax error"),  # PostgreSQL's
        (f"SELECT 1 FROM {SCORES} WHERE account_id ILIKE 'a%'", "Syntax error"),
        (
            f"SELECT 1 FROM {SCORES} WHERE encoded = encoded",
            "Equality is not defined for arguments",
        ),
        (
            f"SELECT 1 FROM {SCORES} WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY anomaly_score) = 1",
            "Partitioning by expressions of type FLOAT64 is not allowed",
        ),
        (f"SELECT account_id, COUNT(*) FROM {SCORES}", "neither grouped nor aggregated"),
        (f"SELECT 1 FROM {SCORES} LIMIT 9223372036854775808", "Invalid integer literal"),
        ("SELECT TIMESTAMP '2026-13-01 00:00:00+00'", "Invalid TIMESTAMP literal"),
        ("SELECT @unknown", "Query parameter 'unknown' not found"),
        ("CREATE VIEW v OPTIONS (descripton = 'x') AS SELECT 1 AS a", "Unknown option: descripton"),
        ("CREATE VIEW v OPTIONS (description = 1) AS SELECT 1 AS a", "description"),
        ("CREATE VIEW v AS SELECT 1", "CREATE VIEW columns must be named"),
        ("GRANT ON SCHEMA d TO 'x'", "Syntax error"),
        ("VACUUM", "Syntax error"),
    ],
)
def test_what_bigquery_refuses_is_refused(catalog, sql, reason):
    with pytest.raises(ServerError, match=reason):
        catalog.analyze(sql)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("Amount > 'a lot'", "No matching signature for operator >"),
        ("Amount", "No matching signature for operator IS TRUE"),
        ("amounts > 100", "Unrecognized name: amounts"),
        ("SUM(Amount) > 1", "Aggregate function SUM not allowed"),
        ("Amount > 100; SELECT 1", "Syntax error"),
    ],
)
def test_a_row_filter_that_bigquery_refuses_is_refused(examples_catalog, condition, reason):
    with pytest.raises(ServerError, match=reason):
        examples_catalog.analyze_condition(condition, "source")


def test_a_parameter_of_the_wrong_type_is_refused(catalog):
    (statement, *_) = [each for each in STATEMENTS if each.arguments.get("stage")]
    text, parameters = statement.sql(DATASETS[0])
    catalog.analyze(text, parameters)
    wrong = [bigquery.ScalarQueryParameter(each.name, "INT64", 1) for each in parameters]
    with pytest.raises(ServerError, match="No matching signature for operator"):
        catalog.analyze(text, wrong)
    with pytest.raises(ServerError, match="Query parameter 'since' not found"):
        catalog.analyze(text, parameters[1:])


def test_a_builder_that_goes_wrong_is_caught(catalog, monkeypatch):
    """The whole way: the key of the letters names a column that is not there."""
    statement = next(each for each in STATEMENTS if "noted" in each.arguments)
    catalog.analyze(*statement.sql(DATASETS[0]))
    wrong = dataclasses.replace(tables.error_records_table(), key=("stages",))
    monkeypatch.setattr(tables, "error_records_table", lambda: wrong)
    with pytest.raises(ServerError, match="Unrecognized name: stages"):
        catalog.analyze(*statement.sql(DATASETS[0]))


def test_a_function_that_zetasql_does_not_have_either_is_taken_off_the_list():
    with pytest.raises(KeyError, match="flatten"):
        language.functions(dict.fromkeys(language.LACKING - {"flatten"}, (1,)))

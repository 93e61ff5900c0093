"""Checks of BigQuery before a launch: tables of earlier versions, and source tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.cloud import bigquery

from cloud.checks import services
from cloud.checks.finding import Finding
from cloud.resources.base import Clients
from cloud.resources.tables import Table, column_differences
from features.ulb import FEATURES
from tests.cloud.test_preflight import job, only, tables_clients
from tests.model.serving.artifacts import build_own_artifact
from tests.model.serving.test_app_own_features import CARDS, learnt_of
from transforms import tables

__all__ = ["tables_clients"]

OWN_COLUMNS = ("amount", "pass_through", "top_features.value")
"""Columns that came with own features, and members of records."""


def without(field: bigquery.SchemaField, path: str = "") -> bigquery.SchemaField | None:
    """A column as it was before own features; None where it was not there."""
    path = f"{path}{field.name}"
    if path in OWN_COLUMNS:
        return None
    inner = [old for member in field.fields if (old := without(member, f"{path}."))]
    return bigquery.SchemaField.from_api_repr(
        field.to_api_repr() | ({"fields": [member.to_api_repr() for member in inner]} if inner else {})
    )


@pytest.mark.integration
def test_tables_of_before_own_features_get_their_columns(
    tables_clients: Clients, dataset: str, bigquery_client: bigquery.Client, capsys
):
    name = f"local-project.{dataset}"
    for spec in tables.TABLES:
        table = spec.table(name)
        table.schema = [old for field in table.schema if (old := without(field))]
        bigquery_client.create_table(table)
    found = services.check_dataset(tables_clients, name, full=False, create=False)
    failed = {one.subject.rpartition(".")[2]: one for one in found if one.status == "failed"}
    assert {"scores", "alerts"} <= set(failed)
    for one in failed.values():
        assert "cannot be changed" not in one.problem
        assert one.remedy.startswith("anomaly resources create")
    assert "column amount is none, declared FLOAT64" in failed["scores"].problem
    assert "column top_features.value is none, declared STRING" in failed["scores"].problem
    found = services.check_dataset(tables_clients, name, full=False, create=True)
    assert {finding.status for finding in found} == {"ok", "note"}

    for spec in tables.TABLES:
        table = Table(f"{name}.{spec.name}", spec=spec)
        state = table.inspect(tables_clients)
        table.repair(tables_clients, state)
        assert column_differences(bigquery_client.get_table(table.name), spec) == []
    found = services.check_dataset(tables_clients, name, full=False, create=False)
    assert {finding.status for finding in found} == {"ok"}


@pytest.mark.integration
def test_source_tables_and_queries(
    tables_clients: Clients, dataset: str, bigquery_client: bigquery.Client, model_dir: Path
):
    name = f"local-project.{dataset}.source"

    def check(table: str, model: Path = model_dir, *flags: str) -> Finding:
        request = job("batch", f"--input_table={table}", f"--model={model}", *flags)
        return only(services.check_input_table(tables_clients, table, request.pipeline))

    assert check(name).problem == "does not exist"
    fields = [bigquery.SchemaField(feature, "FLOAT64") for feature in FEATURES if feature != "V7"]
    bigquery_client.create_table(bigquery.Table(name, fields))
    assert "V7" in check(name).problem
    assert check(name, model_dir / "none").status == "note"
    view = f"{name}_view"
    bigquery_client.query_and_wait(f"CREATE VIEW `{view}` AS SELECT * FROM `{name}`")
    assert check(view).problem == "is a view, which has no rows of its own"
    found = only(services.check_input_query(tables_clients, f"SELECT *, 0.5 AS V7 FROM `{name}`"))
    assert found.status == "ok"
    found = only(services.check_input_query(tables_clients, f"SELECT V7 FROM `{name}`"))
    assert found.status == "failed"


@pytest.mark.integration
def test_a_source_table_is_compared_with_the_features_of_the_model(
    tables_clients: Clients, dataset: str, bigquery_client: bigquery.Client, tmp_path: Path
):
    model = build_own_artifact(tmp_path / "own", CARDS, learnt_of(CARDS)).uri
    name = f"local-project.{dataset}.payments"
    field, string = bigquery.SchemaField, "STRING"
    columns = [
        field("amount", "NUMERIC"),
        field("card", "RECORD", fields=[field("risk", "FLOAT64")]),
        field("present", "BOOL"),
        field("time", "TIMESTAMP"),
        field("merchant", "RECORD", fields=[field("category", string), field("country", string)]),
    ]
    command = job("batch", f"--input_table={name}", f"--model={model}").pipeline
    bigquery_client.create_table(bigquery.Table(name, columns[:-1]))
    finding = only(services.check_input_table(tables_clients, name, command))
    assert finding.status == "failed"
    assert "merchant.category" in finding.problem
    bigquery_client.delete_table(name)
    bigquery_client.create_table(bigquery.Table(name, columns))
    assert only(services.check_input_table(tables_clients, name, command)).status == "ok"

from __future__ import annotations

import dataclasses
import datetime as dt

import pyarrow as pa
import pytest
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient

from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream
from transforms.dead_letter import dead_letters
from transforms.schema import ERROR_RECORDS, SCORES, SCORES_FULL, to_bigquery
from transforms.table_columns import TableError, missing_columns, with_members
from transforms.tables import (
    TABLES,
    alerts_table,
    create_tables,
    error_records_table,
    scores_table,
)

T0 = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def score(transaction_id: str, value: float, minutes: int) -> dict:
    return {
        "transaction_id": transaction_id,
        "account_id": None,
        "event_time": T0,
        "event_time_derived": False,
        "anomaly_score": value,
        "severity": "high",
        "encoded": [1.0, 2.0, 3.0, 4.0],
        "top_features": [{"feature": "V4", "contribution": 0.5}],
        "model_version": "1",
        "scored_at": T0 + dt.timedelta(minutes=minutes),
    }


def append(client: BigQueryWriteClient, table: str, rows: list[dict], schema: pa.Schema) -> None:
    appender = Appender(WriteChannel(lambda: client), default_stream(table), schema)
    assert appender.append([pa.RecordBatch.from_pylist(rows, schema)]).rows == len(rows)
    appender.close()


def test_scores_are_partitioned_by_event_day_and_clustered():
    table = scores_table().table("p.d")
    assert table.full_table_id is None
    assert str(table.reference) == "p.d.scores"
    assert (table.time_partitioning.type_, table.time_partitioning.field) == ("DAY", "event_time")
    assert table.clustering_fields == ["event_time_derived", "severity", "account_id", "transaction_id"]


@pytest.mark.parametrize("spec", [*TABLES, scores_table(full=True)], ids=lambda spec: spec.view)
def test_every_table_and_column_is_described_and_its_keys_exist(spec):
    table = spec.table("p.d")
    assert table.description
    assert all(field.description for field in table.schema), [
        f.name for f in table.schema if not f.description
    ]
    types = {field.name: field for field in table.schema}
    assert types[table.time_partitioning.field].field_type == "TIMESTAMP"
    assert set(table.clustering_fields) <= set(types)
    assert len(table.clustering_fields) <= 4


def test_view_keeps_the_latest_row_of_each_transaction():
    assert scores_table().view_sql("p.d") == (
        "SELECT * FROM `p.d.scores` WHERE event_time_derived IS NOT TRUE QUALIFY ROW_NUMBER() OVER "
        "(PARTITION BY transaction_id, event_time ORDER BY scored_at DESC, event_time DESC) = 1"
        " UNION ALL "
        "SELECT * FROM `p.d.scores` WHERE event_time_derived QUALIFY ROW_NUMBER() OVER "
        "(PARTITION BY transaction_id ORDER BY scored_at DESC, event_time DESC) = 1"
    )


def test_missing_columns_are_those_that_the_full_output_adds():
    missing = missing_columns(to_bigquery(SCORES), SCORES_FULL)
    assert [field.name for field in missing] == SCORES_FULL.names[len(SCORES.names) :]
    assert all(field.mode in ("NULLABLE", "REPEATED") for field in missing)


def test_members_that_a_record_lacks_are_added_to_a_copy():
    existing = [bigquery.SchemaField("top", "RECORD", fields=[bigquery.SchemaField("feature", "STRING")])]
    wanted = pa.schema([("top", pa.struct([("feature", pa.string()), ("value", pa.string())]))])
    (extended,) = with_members(existing, wanted)
    assert [member.name for member in extended.fields] == ["feature", "value"]
    assert [member.name for member in existing[0].fields] == ["feature"]
    assert extended != existing[0], "create_tables updates a table by this difference"


def test_legacy_type_names_count_as_equal():
    existing = [bigquery.SchemaField("n", "INTEGER"), bigquery.SchemaField("x", "FLOAT", mode="REPEATED")]
    wanted = pa.schema([("n", pa.int64()), ("x", pa.list_(pa.float64()))])
    assert missing_columns(existing, wanted) == []


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        (bigquery.SchemaField("x", "STRING"), "column 'x' is STRING, the rows have FLOAT64"),
        (
            bigquery.SchemaField("x", "FLOAT64", mode="REPEATED"),
            "column 'x' is REPEATED FLOAT64, the rows have FLOAT64",
        ),
    ],
)
def test_a_column_of_another_type_is_named(existing, message):
    with pytest.raises(TableError, match=message):
        missing_columns([existing], pa.schema([("x", pa.float64())]))


@pytest.mark.integration
class TestOnTheEmulator:
    def test_creating_twice_changes_nothing(self, bigquery_client, dataset):
        full_name = f"{bigquery_client.project}.{dataset}"
        for _ in range(2):
            create_tables(bigquery_client, dataset)
            tables = {table.table_id: table.table_type for table in bigquery_client.list_tables(dataset)}
            assert tables == {
                "scores": "TABLE",
                "scores_latest": "VIEW",
                "alerts": "TABLE",
                "alerts_latest": "VIEW",
                "error_records": "TABLE",
                "error_records_latest": "VIEW",
                "score_windows": "TABLE",
                "score_windows_latest": "VIEW",
                "feature_profiles": "TABLE",
                "feature_profiles_latest": "VIEW",
            }
        scores = bigquery_client.get_table(f"{full_name}.scores")
        assert scores.time_partitioning.field == "event_time"
        assert scores.clustering_fields == ["event_time_derived", "severity", "account_id", "transaction_id"]
        assert {field.name: field.mode for field in scores.schema} == {
            field.name: field.mode for field in to_bigquery(SCORES)
        }
        assert scores.schema[0].description == SCORES.field(0).metadata[b"description"].decode()

    def test_columns_of_the_full_output_are_added_to_an_existing_table(self, bigquery_client, dataset):
        create_tables(bigquery_client, dataset, [scores_table()])
        create_tables(bigquery_client, dataset, [scores_table(full=True)])
        table = bigquery_client.get_table(f"{dataset}.scores")
        assert [field.name for field in table.schema] == SCORES_FULL.names
        view = bigquery_client.get_table(f"{dataset}.scores_latest")
        assert [field.name for field in view.schema] == SCORES_FULL.names
        assert list(bigquery_client.query_and_wait(f"SELECT * FROM {dataset}.scores_latest")) == []

    def test_a_table_of_an_earlier_version_gets_the_column_and_keeps_its_rows(
        self, bigquery_client, write_client, dataset
    ):
        earlier = pa.schema([field for field in SCORES if field.name != "event_time_derived"])
        spec = dataclasses.replace(scores_table(), schema=earlier, clustering=("severity",), parts=())
        create_tables(
            bigquery_client, dataset, [dataclasses.replace(spec, key=("transaction_id", "event_time"))]
        )
        name = f"{bigquery_client.project}.{dataset}.scores"
        old = [score("a", 1.0, 0), score("a", 2.0, 5), score("a", 3.0, 0) | {"event_time": T0 - DAY}]
        append(write_client, name, old, earlier)
        create_tables(bigquery_client, dataset, [scores_table()])
        new = [
            score("b", float(i), i) | {"event_time": T0 + i * DAY, "event_time_derived": True} for i in (4, 5)
        ]
        append(write_client, name, [*new, score("a", 6.0, 6)], SCORES)
        result = bigquery_client.query(
            "SELECT transaction_id, event_time, event_time_derived, anomaly_score "
            f"FROM {dataset}.scores_latest ORDER BY transaction_id, event_time"
        ).result()
        assert [tuple(row) for row in result] == [
            ("a", T0 - DAY, None, 3.0),
            ("a", T0, False, 6.0),
            ("b", T0 + 5 * DAY, True, 5.0),
        ]

    def test_a_table_that_cannot_take_the_rows_is_an_error_that_names_it(self, bigquery_client, dataset):
        full_name = f"{bigquery_client.project}.{dataset}"
        bigquery_client.create_table(
            bigquery.Table(f"{full_name}.alerts", [bigquery.SchemaField("transaction_id", "INT64")])
        )
        with pytest.raises(TableError, match=rf"Table {full_name}\.alerts: column 'transaction_id' is INT64"):
            create_tables(bigquery_client, dataset, [alerts_table()])

    def test_a_table_without_a_required_column_is_an_error_that_names_it(self, bigquery_client, dataset):
        full_name = f"{bigquery_client.project}.{dataset}"
        fields = [field for field in to_bigquery(ERROR_RECORDS) if field.name != "stage"]
        bigquery_client.create_table(bigquery.Table(f"{full_name}.error_records", fields))
        with pytest.raises(TableError, match="error_records lacks stage"):
            create_tables(bigquery_client, dataset, [error_records_table()])

    def test_the_view_of_scores_keeps_one_row_per_transaction(self, bigquery_client, write_client, dataset):
        create_tables(bigquery_client, dataset, [scores_table()])
        rows = [score("a", 1.0, 0), score("a", 2.0, 5), score("b", 3.0, 0), score("b", 3.0, 0)]
        append(write_client, f"{bigquery_client.project}.{dataset}.scores", rows, SCORES)
        result = bigquery_client.query(
            f"SELECT transaction_id, anomaly_score FROM {dataset}.scores_latest ORDER BY transaction_id"
        ).result()
        assert [tuple(row) for row in result] == [("a", 2.0), ("b", 3.0)]

    def test_the_view_of_error_records_keeps_equal_payloads_of_different_messages(
        self, bigquery_client, write_client, dataset
    ):
        create_tables(bigquery_client, dataset, [error_records_table()])
        batch = dead_letters(
            [b"\xff", b"\xff", b"\xff", b"{}"],
            ["not UTF-8", "not UTF-8", "not UTF-8", "features: absent"],
            "parse",
            [{"message_id": "1"}, {"message_id": "1"}, {"message_id": "2"}, {}],
            timestamp=1_700_000_000_000_000,
        )
        appender = Appender(
            WriteChannel(lambda: write_client),
            default_stream(f"{bigquery_client.project}.{dataset}.error_records"),
            ERROR_RECORDS,
        )
        assert appender.append([batch]).rows == 4
        appender.close()
        result = bigquery_client.query(
            "SELECT payloadBytes, errorMessage, ARRAY_LENGTH(attributes) "
            f"FROM {dataset}.error_records_latest ORDER BY errorMessage, payloadBytes"
        ).result()
        assert [tuple(row) for row in result] == [
            (b"{}", "features: absent", 0),
            (b"\xff", "not UTF-8", 1),
            (b"\xff", "not UTF-8", 1),
        ]

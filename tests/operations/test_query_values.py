"""The named queries over rows that come twice: scored again, delivered again, without a time of their own."""

import dataclasses
import datetime as dt

import pyarrow as pa
import pytest

from operations import query
from tests.sql import worlds
from transforms import tables
from transforms.dead_letter import dead_letters
from transforms.schema import ALERTS, ERROR_RECORDS, SCORES

pytestmark = pytest.mark.integration

NOON = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
DAY = dt.timedelta(days=1)


def score(name, value, scored_at, event_time=NOON, **changes):
    severity = "high" if value >= 20 else "medium" if value >= 10 else "normal"
    return {
        "transaction_id": name,
        "account_id": "acc-1",
        "event_time": event_time,
        "event_time_derived": False,
        "anomaly_score": value,
        "severity": severity,
        "encoded": [],
        "top_features": [{"feature": "V14", "contribution": value}],
        "model_version": "v1",
        "scored_at": scored_at,
    } | changes


def test_a_table_of_an_earlier_version_is_named_with_the_command_that_brings_it_up_to_date(
    bigquery_emulator, bigquery_client, dataset, capsys
):
    spec = tables.scores_table()
    earlier = pa.schema([field for field in SCORES if field.name != "event_time_derived"])
    old = dataclasses.replace(spec, schema=earlier, clustering=("severity",))
    bigquery_client.create_table(old.table(f"{bigquery_emulator.project}.{dataset}"))
    argv = ["latency", f"--dataset={bigquery_emulator.project}.{dataset}", "--limit=1"]
    assert query.main([*argv, f"--bigquery_endpoint={bigquery_emulator.bigquery}"]) == 1
    said = capsys.readouterr().err
    assert "scores is of an earlier version and lacks event_time_derived." in said
    assert f"anomaly resources create --project {bigquery_emulator.project} --dataset {dataset}" in said


@pytest.fixture
def ask(bigquery_emulator, dataset):
    """Stores scores and dead letters, and runs a query over them."""
    endpoints, client = worlds.clients(bigquery_emulator)
    full_name = f"{bigquery_emulator.project}.{dataset}"
    tables.create_tables(client, full_name)

    def run(name, scores=(), letters=(), **values):
        for table, rows, schema in (
            ("scores", list(scores), SCORES),
            ("alerts", [row | {"threshold": 10.0} for row in scores if row["severity"] != "normal"], ALERTS),
            ("error_records", [row for batch in letters for row in batch.to_pylist()], ERROR_RECORDS),
        ):
            if rows:
                kept = [{column: row.get(column) for column in schema.names} for row in rows]
                worlds.store(endpoints, f"{full_name}.{table}", kept, schema)
        return query.run(client, query.sql(name, full_name, **values))

    return run


BACKFILL = [
    score("a", 30.0, NOON + SECOND),
    score("b", 5.0, NOON + 3 * SECOND),
    score("a", 2.0, NOON + 7 * DAY, model_version="v2"),
    score("b", 6.0, NOON + 7 * DAY, model_version="v2"),
]
"""Two transactions, scored within seconds, and again by another model a week later."""


def test_latency_is_that_of_the_first_scoring(ask):
    (row,) = ask("latency", BACKFILL)
    known = {
        name: value for name, value in row.items() if value is not None
    }  # no step is known of these rows
    assert known == {"minute": NOON, "transactions": 2, "p50_ms": 1000, "p99_ms": 3000, "max_ms": 3000}


def test_alerts_are_those_of_the_latest_scores_in_every_query(ask):
    assert ask("anomalies_by_account", BACKFILL) == []
    assert ask("anomalies_by_feature") == []
    (hour,) = ask("anomalies_by_hour")
    assert (hour["transactions"], hour["medium"], hour["high"]) == (2, 0, 0)
    assert [row["anomaly_score"] for row in ask("top_anomalies")] == [6.0, 2.0]


def test_drift_compares_two_models_on_the_same_transactions(ask):
    rows = ask("score_drift", BACKFILL)
    assert [(row["model_version"], row["transactions"], row["alert_percent"]) for row in rows] == [
        ("v1", 2, 50.0),
        ("v2", 2, 0.0),
    ]
    assert {row["day"] for row in rows} == {NOON.replace(hour=0)}
    assert [row["score_p99"] for row in rows] == [30.0, 6.0]


def test_two_models_are_compared_on_one_day_where_the_times_are_those_of_two_jobs(ask):
    jobs = [
        score("a", 2.0, day, day, event_time_derived=True, model_version=version)
        for version, day in (("v1", NOON), ("v2", NOON + DAY))
    ]
    rows = ask("score_drift", jobs)
    assert [(row["day"], row["model_version"]) for row in rows] == [
        (NOON.replace(hour=0), "v1"),
        (NOON.replace(hour=0), "v2"),
    ]


def test_a_transaction_without_a_time_of_its_own_counts_once(ask):
    """One batch twice over a file, and a message that was published twice."""
    jobs = [
        score(name, 12.0, moment + SECOND, moment, event_time_derived=True)
        for name in ("a", "b", "c")
        for moment in (NOON, NOON + DAY)
    ]
    (hour,) = ask("anomalies_by_hour", jobs)
    assert (hour["hour"], hour["transactions"]) == (NOON + DAY, 3)
    (account,) = ask("anomalies_by_account")
    assert account["alerts"] == 3


def test_rows_of_an_earlier_version_are_told_apart_by_id_and_time(ask):
    rows = [score("a", 12.0, NOON, NOON + i * DAY, event_time_derived=None) for i in (0, 1)]
    assert [row["transactions"] for row in ask("anomalies_by_hour", [*rows, rows[0]])] == [1, 1]


def test_scores_are_ordered_as_they_are_and_not_as_they_are_shown(ask):
    rows = [score(f"tx-{i}", value, NOON, account_id=f"acc-{i}") for i, value in enumerate((12.301, 12.304))]
    (top,) = ask("top_anomalies", rows, limit=1)
    assert (top["transaction_id"], top["anomaly_score"]) == ("tx-1", 12.3)
    (account,) = ask("anomalies_by_account", limit=1)
    assert (account["account_id"], account["max_score"]) == ("acc-1", 12.3)


def test_equal_scores_have_one_order(ask):
    rows = [score("a", 12.0, NOON, event_time_derived=derived) for derived in (True, False)]
    orders = [ask("top_anomalies", each)[:1] for each in (rows, rows[::-1])]
    assert orders[0] == orders[1]
    assert [row["transaction_id"] for row in ask("top_anomalies")] == ["a", "a"]


def test_no_account_is_no_account(ask):
    rows = [score(f"tx-{i}", 12.0, NOON, account_id=None) for i in range(3)] + [score("a", 12.0, NOON)]
    assert [(row["account_id"], row["alerts"]) for row in ask("anomalies_by_account", rows)] == [("acc-1", 1)]


def letter(moment, pairs):
    batch = dead_letters([b"{"], ["payload: not JSON"], "parse", timestamp=round(moment.timestamp() * 1e6))
    field = ERROR_RECORDS.field("attributes")
    attributes = pa.array([[{"key": key, "value": value} for key, value in pairs]], field.type)
    return batch.set_column(batch.schema.names.index("attributes"), field, attributes)


def test_a_message_that_is_rejected_again_was_first_seen_the_first_time(ask):
    """The second time by another process, in whose map the attributes have another order."""
    pairs = [("type", "card"), ("message_id", "1")]
    (row,) = ask("dead_letters", letters=[letter(NOON, pairs), letter(NOON + DAY, pairs[::-1])])
    assert (row["messages"], row["first_seen"], row["last_seen"]) == (1, NOON, NOON + DAY)


def test_attributes_are_written_in_one_order():
    first, second = (
        dead_letters([b""], ["r"], "parse", [attributes], timestamp=0)
        for attributes in ({"b": "1", "a": "2"}, {"a": "2", "b": "1"})
    )
    assert first.equals(second)

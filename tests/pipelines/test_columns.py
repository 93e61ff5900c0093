"""Id, account and time under other names: at launch, in a job, in tables, and after a replay."""

from __future__ import annotations

import datetime as dt
import json
import logging
import shutil
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery, pubsub_v1

from common.options import OptionError
from features.roles import Roles, unused_columns
from features.ulb import FEATURES
from local.gcs import local_gcs
from pipelines import batch, lookups
from pipelines.options import MessageOptions
from tests.operations.test_replay import options_of, stored, stream, summary_of

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def rows(count: int = 5) -> list[dict]:
    """Transactions as a shop exports them, numbers as text."""
    return [
        {"transactionId": i, "timestamp": int(NOW.timestamp()) * 1000 + i, "Card": f"c-{i}"}
        | {name: str(i + k / 7) for k, name in enumerate(FEATURES)}
        for i in range(count)
    ]


@pytest.fixture(params=["jsonl", "parquet"])
def argv(request, model_dir, tmp_path) -> list[str]:
    path = tmp_path / f"rows.{request.param}"
    if request.param == "jsonl":
        path.write_bytes(b"\n".join(map(orjson.dumps, rows())))
    else:
        pq.write_table(pa.Table.from_pylist(rows()), path)
    return [f"--input={path}", f"--model={model_dir}", f"--output={tmp_path / 'scored'}"]


def scored(tmp_path) -> list[dict]:
    (path,) = (tmp_path / "scored").glob("scores-*.parquet")
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: row["event_time"])


def test_a_job_says_which_columns_are_not_used_and_how_many_ids_and_times_are_not_the_rows_own(
    argv, tmp_path, caplog, capsys
):
    assert batch.main(argv) == 0
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for words in (
        "there is no column transaction_id; 'transactionId' may be it: pass --id_column=transactionId",
        "there is no column account_id; 'Card' may be it: pass --account_column=Card",
        "there is no column event_time; 'timestamp' may be it: pass --event_time_column=timestamp",
        "columns that are not used: transactionId, timestamp, Card",
    ):
        assert [line for line in said if line.endswith(words)], words
    assert capsys.readouterr().out == (
        "rows in: 5, rows scored: 5, dead letters: 0, alerts: 5, ids derived: 5, times defaulted: 5\n"
    )


@pytest.mark.parametrize("kind", ["glob", "directory", "cloud storage", "pattern of cloud storage"])
def test_a_launch_says_it_of_any_place_of_the_files(argv, tmp_path, caplog, kind):
    path = Path(argv[0].partition("=")[2])
    (tmp_path / "bucket/rows").mkdir(parents=True)
    for number in range(2):  # the same columns twice are said once
        shutil.copy(path, tmp_path / f"bucket/rows/{number}{path.suffix}")
    place = {
        "glob": f"{tmp_path}/bucket/r*/*{path.suffix}",
        "directory": f"{tmp_path}/bucket/rows",
        "cloud storage": "gs://bucket/rows/",
        "pattern of cloud storage": f"gs://bucket/rows/*{path.suffix}",
    }[kind]
    with local_gcs(tmp_path):
        assert batch.main([f"--input={place}", *argv[1:]]) == 0
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    words = "there is no column event_time; 'timestamp' may be it: pass --event_time_column=timestamp"
    (line,) = (line for line in said if line.endswith(words))
    assert line.startswith(f"--input={place}")


def test_a_launch_says_it_of_each_file_with_other_columns(argv, tmp_path, caplog):
    directory = tmp_path / "rows"
    directory.mkdir()
    for name, row in (("a", {"ts": 1}), ("b", {"timestamp": 1}), ("c", {"timestamp": 2})):
        row |= dict.fromkeys(FEATURES, 1.0)
        pq.write_table(pa.Table.from_pylist([row]), directory / f"{name}.parquet")
    assert batch.main([f"--input={directory}", *argv[1:]]) == 0
    said = "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert said.count("columns that are not used: ") == 2
    assert f"{directory}/a.parquet: columns that are not used: ts" in said
    assert f"{directory}/b.parquet: columns that are not used: timestamp" in said


def test_a_file_elsewhere_that_cannot_be_looked_at_is_left_to_the_job(caplog):
    caplog.set_level(logging.INFO)
    assert lookups.find_remote_file("no-such-file-system://there/rows.csv", "csv") == []
    assert "no-such-file-system://there/rows.csv: cannot look at its columns, which is left" in caplog.text
    with (
        local_gcs(Path("/nowhere")),
        pytest.raises(OptionError, match=r"gs://bucket/rows\.csv: no such file"),
    ):
        lookups.find_remote_file("gs://bucket/rows.csv", "csv")


def test_columns_that_are_named_are_read(argv, tmp_path, caplog, capsys):
    named = ["--id_column=transactionId", "--account_column=Card", "--event_time_column=timestamp"]
    assert batch.main([*argv, *named]) == 0
    assert not [record for record in caplog.records if "not used" in record.getMessage()]
    assert capsys.readouterr().out.endswith("ids derived: 0, times defaulted: 0\n")
    assert [(row["transaction_id"], row["account_id"], row["event_time"]) for row in scored(tmp_path)] == [
        (str(i), f"c-{i}", NOW + dt.timedelta(milliseconds=i)) for i in range(5)
    ]


def test_a_named_column_that_is_not_there_is_refused(tmp_path, model_dir):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), path)
    argv = [f"--input={path}", f"--model={model_dir}", f"--output={tmp_path / 'o'}", "--id_column=nr"]
    with pytest.raises(OptionError, match="--id_column: there is no column nr; it has transactionId, time"):
        batch.run(argv)


@pytest.mark.parametrize(
    ("options", "flag", "shown"),
    [
        ({"id_column": ""}, "--id_column", "''"),
        ({"id_column": "account_id"}, "--id_column", "'account_id'"),
        ({"account_column": "features"}, "--account_column", "'features'"),
        ({"id_column": "x", "event_time_column": "x"}, "--id_column", "'x'"),
    ],
)
def test_a_column_has_one_role(options, flag, shown):
    with pytest.raises(OptionError, match=f"^{flag}: expected a column that no other field .* got {shown}"):
        MessageOptions(**options)
    assert MessageOptions(account_column="a").roles() == Roles(account_id="a")


def test_what_a_row_without_a_field_gets_is_said_where_nothing_resembles_it():
    unused = unused_columns(["Time", "V1", "Class"], Roles(), FEATURES)
    assert unused.warnings == []
    assert unused.notes == [
        "there is no column transaction_id: a row without an id gets one from its content",
        "there is no column account_id: a row without an account has none in the results",
        "there is no column event_time: a row without a time takes that of the launch",
        "columns that are not used: Class",
    ]
    assert unused_columns(["TRANSACTION_ID", "account_id", "Event_Time"], Roles(), FEATURES) == ([], [])


@pytest.mark.integration
def test_letters_of_a_table_with_integer_ids_and_numeric_features_are_scored_when_replayed(
    local_stack, dataset, channel, bigquery_client, model_dir, capsys
):
    name = f"{bigquery_client.project}.{dataset}.transactions"
    kinds = {"TRANSACTION_ID": "INT64", "account": "INT64", "EVENT_TIME": "DATETIME"}
    kinds |= {feature.upper(): "NUMERIC" if feature != "Time" else "STRING" for feature in FEATURES}
    bigquery_client.create_table(
        bigquery.Table(name, [bigquery.SchemaField(column, kind) for column, kind in kinds.items()])
    )
    old = NOW - dt.timedelta(days=100)
    table = [
        {"TRANSACTION_ID": i, "account": 7, "EVENT_TIME": old.replace(tzinfo=None).isoformat()}
        | {feature.upper(): str(i + k / 8) for k, feature in enumerate(FEATURES)}
        for i in range(20)
    ]
    assert bigquery_client.insert_rows_json(name, table) == []
    options = [f"--model={model_dir}", f"--output_dataset={local_stack.project}.{dataset}"]
    options += [f"--bigquery_endpoint={local_stack.bigquery}", "--account_column=account"]
    options += [f"--bigquery_storage_endpoint={local_stack.bigquery_storage}", "--runner=FnApiRunner"]
    assert batch.main([f"--input_table={name}", *options, "--max_event_age_days=30"]) == 1  # none is scored
    assert "dead letters: 20, alerts: 0, ids derived: 0" in capsys.readouterr().out
    sent = summary_of(capsys, options_of(local_stack, dataset, channel.topic))
    assert (sent["read"], sent["sent"]) == (20, 20)
    own = ["--account_column=account", "--id_column=txId"]
    assert stream(local_stack, dataset, channel, model_dir, 20, *own) == (20, 0)
    scores = stored(bigquery_client, dataset, "scores_latest")
    assert sorted(int(row["transaction_id"]) for row in scores) == list(range(20))
    assert {row["account_id"] for row in scores} == {"7"}
    assert {row["event_time"] for row in scores} == {old}


@pytest.mark.integration
def test_an_array_of_exported_rows_is_counted_and_stored_row_by_row(
    local_stack, dataset, channel, bigquery_client, model_dir
):
    exported = [
        {"txId": str(i), "ts": f"{NOW - dt.timedelta(hours=1):%Y-%m-%d %H:%M:%S} UTC"}
        | {feature: str(k / 8) for k, feature in enumerate(FEATURES)}
        for i in range(6)
    ]
    exported[4]["V3"] = "none"
    publisher = pubsub_v1.PublisherClient()
    publisher.publish(channel.topic, json.dumps(exported[:5]).encode()).result()
    publisher.publish(channel.topic, json.dumps(exported[5]).encode()).result()
    own = ["--id_column=txId", "--event_time_column=ts"]
    assert stream(local_stack, dataset, channel, model_dir, 6, *own) == (5, 1)
    scores = stored(bigquery_client, dataset, "scores_latest")
    assert sorted(row["transaction_id"] for row in scores) == ["0", "1", "2", "3", "5"]
    assert {row["event_time"] for row in scores} == {NOW - dt.timedelta(hours=1)}
    assert not any(row["event_time_derived"] for row in scores)
    (letter,) = stored(bigquery_client, dataset, "error_records_latest")
    assert letter["errorMessage"] == "features: V3 is a text, not a finite float32"
    assert json.loads(letter["payloadBytes"]) == exported[4]

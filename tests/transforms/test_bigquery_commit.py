"""The end of a batch job: no written row is lost there, and no alert is visible without its score."""

from __future__ import annotations

import time
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest

from common.bigquery import table_path
from common.clients import BigQueryEndpoints
from common.limits import MAX_SHARES
from tests.transforms.bigquery_server import ScriptedBigQuery
from transforms.bigquery import AppendError, Commit, WriteBatches
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import LIFE_SECONDS, MAX_STREAMS_PER_COMMIT, PendingStream
from transforms.dead_letter import dead_letters
from transforms.detect import Detected
from transforms.schema import ALERTS, SCORES
from transforms.sinks import WriteTables

TABLES = ("p.d.scores", "p.d.alerts", "p.d.error_records")
SCORES_PATH, ALERTS_PATH, ERRORS_PATH = map(table_path, TABLES)
SCHEMA = pa.schema([("id", pa.string())])


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    with ScriptedBigQuery(*TABLES) as server:
        yield server


def one_row(schema: pa.Schema) -> pa.RecordBatch:
    """A row of nulls, which the server takes."""
    bare = pa.schema([field.with_nullable(True) for field in schema])
    return pa.RecordBatch.from_pylist([dict.fromkeys(schema.names)], bare)


def run(server: ScriptedBigQuery) -> None:
    with beam.Pipeline("FnApiRunner") as p:
        detected = Detected(
            p | "Scores" >> beam.Create([one_row(SCORES)]),
            p | "Alerts" >> beam.Create([one_row(ALERTS)]),
            p | "Letters" >> beam.Create([dead_letters([b"x"], ["bad"], "parse")]),
        )
        _ = detected | WriteTables("p.d", endpoints=BigQueryEndpoints(storage=server.address))


def committed(server: ScriptedBigQuery) -> list[str]:
    return [names[0].partition("/streams/")[0] for names in server.commits]


def test_scores_are_committed_first_and_dead_letters_last(server):
    run(server)
    assert committed(server) == [SCORES_PATH, ALERTS_PATH, ERRORS_PATH]
    assert [len(server.rows(path)) for path in (SCORES_PATH, ALERTS_PATH, ERRORS_PATH)] == [1, 1, 1]


def test_no_alert_is_visible_where_the_scores_are_not(server):
    server.refuse_commits = {SCORES_PATH}
    with pytest.raises(Exception, match=rf"{SCORES_PATH}: nothing was committed, 1 streams have errors"):
        run(server)
    assert server.visible == []


def test_scores_are_visible_where_the_alerts_are_not(server):
    server.refuse_commits = {ALERTS_PATH}
    with pytest.raises(Exception, match=rf"{ALERTS_PATH}: nothing was committed, 1 streams have errors"):
        run(server)
    assert [len(server.rows(path)) for path in (SCORES_PATH, ALERTS_PATH, ERRORS_PATH)] == [1, 0, 0]


def test_rows_outlive_a_job_of_many_hours(server):
    """BigQuery keeps the rows of a finalized stream for 4 hours: no stream is finalized before the commit."""
    server.is_slow = True
    with beam.Pipeline("FnApiRunner") as p:
        first = p | "First" >> beam.Create([pa.record_batch([["a"]], SCHEMA)])
        second = p | "Second" >> beam.Create([pa.record_batch([["b"]], SCHEMA)])
        endpoints = BigQueryEndpoints(storage=server.address)
        sinks = [WriteBatches(table, SCHEMA, endpoints=endpoints, commit=False) for table in TABLES[:2]]
        # The second table is written by bundles that follow those of the first.
        before = first | "First table" >> sinks[0]
        wait = beam.Map(lambda row, _: row, beam.pvalue.AsList(before.dead_letters))
        after = second | wait.with_output_types(pa.RecordBatch) | "Second table" >> sinks[1]
        _ = (before.streams, after.streams) | beam.Flatten() | Commit(endpoints)
    assert sorted(row["id"] for row in server.visible) == ["a", "b"]


def test_a_job_that_is_too_old_to_commit_is_refused_before_it_writes_more(server):
    channel = WriteChannel(BigQueryEndpoints(storage=server.address).write_client)
    now = time.time()
    PendingStream(channel, TABLES[0], SCHEMA, launched=now - LIFE_SECONDS + 600).append(
        [pa.record_batch([["a"]], SCHEMA)]
    )
    stream = PendingStream(channel, TABLES[0], SCHEMA, launched=now - LIFE_SECONDS - 1)
    with pytest.raises(AppendError, match=r"tables/scores: the job was launched over 23 hours ago, and BigQ"):
        stream.append([pa.record_batch([["b"]], SCHEMA)])
    assert len(server.streams) == len(server.requests) == 1
    channel.close()


def test_the_launch_of_a_job_is_that_of_its_sink(server, monkeypatch):
    sink = WriteBatches(TABLES[0], SCHEMA, endpoints=BigQueryEndpoints(storage=server.address), launched=0)
    p = beam.Pipeline("FnApiRunner")
    _ = p | beam.Create([pa.record_batch([["a"]], SCHEMA)]) | sink
    with pytest.raises(Exception, match="the job was launched over 23 hours ago"):
        p.run().wait_until_finish()


def test_the_streams_of_a_source_fit_into_one_commit_and_one_hour():
    assert MAX_SHARES * len(TABLES) <= MAX_STREAMS_PER_COMMIT

from __future__ import annotations

import pyarrow as pa
import pytest

from common.retry import Patience
from tests.transforms.bigquery_cases import SCHEMA, TABLE, batch, ids, refused
from tests.transforms.bigquery_server import Fault
from transforms.bigquery.answers import AppendError, TransientAppendError
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.rows import SchemaMismatchError
from transforms.bigquery.streams import CommitError, Finished, PendingStream, commit_streams

pytest_plugins = ("tests.transforms.bigquery_fixtures",)

TRANSIENT = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"]


class TestRequests:
    def test_rows_arrive_as_they_were(self, server, appender):
        rows = [{"id": "a", "values": [1.0, 2.0]}, {"id": "b", "values": []}]
        result = appender.append([pa.RecordBatch.from_pylist(rows, SCHEMA)])
        assert server.visible == rows
        assert (result.rows, result.refused, result.calls, result.retries) == (2, [], 1, 0)

    def test_a_connection_is_kept_and_has_the_schema_once_accepted(self, server, appender):
        server.refuse = lambda row: "bad" if row["id"] == "bad" else None
        appender.append([batch("bad")])
        appender.append([batch("a", "b", "c")])
        appender.append([batch("d")])
        assert {(r.connection, r.stream) for r in server.requests} == {(0, server.default_stream)}
        assert [r.rows for r in server.requests] == [1, 1, 2, 1]
        schemas = [r.schema for r in server.requests]
        assert schemas[:2] == [True, True]  # the first request was refused
        assert schemas[-1] is False
        assert ids(server.visible) == ["a", "b", "c", "d"]

    def test_the_routing_header_names_the_stream(self, server, appender):
        appender.append([batch("a")])
        assert server.requests[0].routing == f"write_stream={server.default_stream}"

    def test_the_default_stream_takes_no_offsets_and_a_pending_one_does(self, server, appender, pending):
        appender.append([batch("a", "b", "c")])
        pending.append([batch("d", "e", "f")])
        pending.append([batch("g")])
        assert [r.offset for r in server.requests] == [None, None, 0, 1, 3]

    def test_small_batches_share_a_request(self, server, new_appender):
        appender = new_appender()
        appender.append([batch(str(i)) for i in range(100)])
        assert [r.rows for r in server.requests] == [100]
        assert ids(server.visible) == [str(i) for i in range(100)]

    def test_requests_stay_below_the_limit_in_bytes(self, server, new_appender):
        appender = new_appender(max_request_bytes=4_000)
        names = [f"{i:04d}" * (1 + i % 20) for i in range(500)]
        assert appender.append([batch(*names)]).rows == 500
        assert ids(server.visible) == names
        overhead = 1_000  # schema, stream name, envelope
        assert max(r.bytes for r in server.requests) < 4_000 + overhead
        assert len(server.requests) > 5

    def test_a_row_too_large_for_any_request_is_refused_and_its_neighbours_are_stored(
        self, server, new_appender
    ):
        appender = new_appender(max_request_bytes=4_000)
        result = appender.append([batch("a", "x" * 10_000, "b")])
        assert ids(server.visible) == ["a", "b"]
        ((name, reason),) = refused(result)
        assert name == "x" * 10_000
        assert "over the limit of 4000 for one request" in reason

    def test_nothing_to_append_opens_no_connection(self, server, appender):
        result = appender.append([batch(), batch()])
        assert (result.rows, result.calls) == (0, 0)
        assert server.requests == []

    def test_further_columns_are_left_out_and_null_lists_become_empty(self, server, appender):
        wide = pa.RecordBatch.from_pylist([{"more": 1, "values": None, "id": "a"}])
        appender.append([wide])
        assert server.visible == [{"id": "a", "values": []}]

    def test_a_missing_column_is_named(self, appender):
        with pytest.raises(SchemaMismatchError, match="Column 'values' is missing from the rows"):
            appender.append([pa.RecordBatch.from_pylist([{"id": "a"}])])


@pytest.mark.parametrize("code", TRANSIENT)
@pytest.mark.parametrize("in_band", [True, False], ids=["answer", "connection"])
class TestTransientErrors:
    def test_the_request_is_repeated_on_the_default_stream(self, server, appender, sleeps, code, in_band):
        server.script = {1: Fault(code, in_band)}
        result = appender.append([batch("a", "b", "c", "d", "e")])
        assert sorted(ids(server.visible)) == ["a", "b", "c", "d", "e"]
        assert (result.rows, result.retries) == (5, 1)
        assert len(sleeps) == 1

    def test_every_row_is_stored_once_on_a_pending_stream(
        self, server, new_appender, pending, sleeps, code, in_band
    ):
        # One request at a time, so that the numbers of the script hold.
        appender = new_appender(pending.stream, max_request_rows=2, window=1)
        server.script = {1: Fault(code, in_band), 3: Fault(code, in_band, stored=True)}
        result = appender.append([batch("a", "b", "c", "d", "e", "f", "g", "h")])
        assert ids(server.streams[pending.stream].rows) == ["a", "b", "c", "d", "e", "f", "g", "h"]
        assert (result.rows, appender.rows, result.retries) == (8, 8, 2)
        # 0, 2 failed, 2 again, 4 stored without an answer, 4 again, which ALREADY_EXISTS, 6
        assert [r.offset for r in server.requests] == [0, 2, 2, 4, 4, 6]

    def test_a_lost_answer_may_store_rows_twice_on_the_default_stream_and_never_loses_one(
        self, server, appender, code, in_band
    ):
        server.script = {0: Fault(code, in_band, stored=True)}
        result = appender.append([batch("a", "b")])
        assert ids(server.visible) == ["a", "b", "a", "b"]
        assert result.rows == 2

    def test_it_is_raised_when_the_attempts_are_used_up(self, server, new_appender, sleeps, code, in_band):
        server.script = {i: Fault(code, in_band) for i in range(100)}
        patience = Patience(first=0.5, longest=32, tries=4, seconds=1e9)
        appender = new_appender(patience=patience, quota_patience=patience)
        with pytest.raises(TransientAppendError, match=rf"gave up after 4 attempts in \d+ s: {code}"):
            appender.append([batch("a")])
        assert len(server.requests) == 4
        assert len(sleeps) == 3


class TestPendingStreams:
    def write(self, client, *batches: pa.RecordBatch) -> Finished | None:
        stream = PendingStream(WriteChannel(lambda: client), TABLE, SCHEMA)
        stream.append(batches)
        return stream.finish()

    def test_rows_are_visible_after_the_commit_and_not_before(self, server, client):
        names = [self.write(client, batch("a", "b")), self.write(client, batch("c"))]
        assert server.visible == []
        assert commit_streams(client, names) == 2
        assert ids(server.visible) == ["a", "b", "c"]

    def test_a_stream_without_rows_is_not_to_be_committed(self, server, client):
        assert self.write(client) is None
        assert self.write(client, batch()) is None

    def test_no_streams_no_commit(self, server, client):
        assert commit_streams(client, []) == 0
        assert server.commits == []

    def test_a_commit_can_be_repeated(self, server, client):
        names = [self.write(client, batch("a")), self.write(client, batch("b"))]
        assert [commit_streams(client, names) for _ in range(2)] == [2, 2]
        assert ids(server.visible) == ["a", "b"]

    def test_a_commit_whose_answer_is_lost_is_repeated_and_succeeds(self, server, client):
        server.lose_commit_answers = 1
        assert commit_streams(client, [self.write(client, batch("a"))]) == 1
        assert len(server.commits) == 2
        assert ids(server.visible) == ["a"]

    def test_a_stream_that_is_gone_commits_nothing_and_is_named(self, server, client):
        good = self.write(client, batch("a"))
        gone = f"{server.parent}/streams/gone"
        with pytest.raises(CommitError, match=rf"nothing was committed.*{gone}: STREAM_NOT_FOUND"):
            commit_streams(client, [good, Finished(gone, 1)])
        assert server.visible == []

    def test_a_stream_committed_by_somebody_else_is_an_error(self, server, client):
        first, second = self.write(client, batch("a")), self.write(client, batch("b"))
        commit_streams(client, [first])
        with pytest.raises(CommitError, match="STREAM_ALREADY_COMMITTED"):
            commit_streams(client, [first, second])
        assert ids(server.visible) == ["a"]

    def test_more_streams_than_one_commit_takes_are_an_error_before_anything_is_committed(
        self, server, client
    ):
        names = [Finished(f"{server.parent}/streams/{i}", 1) for i in range(10_001)]
        with pytest.raises(CommitError, match="10001 streams, BigQuery commits 10000 at once"):
            commit_streams(client, names)
        assert server.commits == []

    def test_a_row_count_that_differs_is_an_error(self, server, client):
        server.finalize_off_by = -1
        with pytest.raises(AppendError, match="2 rows were appended, BigQuery counts 1"):
            commit_streams(client, [self.write(client, batch("a", "b"))])
        assert server.commits == []

    def test_a_table_that_does_not_exist_is_named(self, client):
        with pytest.raises(AppendError, match="projects/p/datasets/d/tables/other"):
            PendingStream(WriteChannel(lambda: client), "p.d.other", SCHEMA).append([batch("a")])

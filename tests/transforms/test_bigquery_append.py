from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient, types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.retry import Patience
from tests.transforms.bigquery_server import Fault, ScriptedBigQuery
from transforms.bigquery.append import (
    Appender,
    AppendError,
    AppendOptions,
    TransientAppendError,
)
from transforms.bigquery.rows import SchemaMismatchError
from transforms.bigquery.streams import CommitError, Finished, PendingStream, commit_streams, default_stream
from transforms.clients import BigQueryEndpoints

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("values", pa.list_(pa.float64()))])
TRANSIENT = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"]
TABLE = "p.d.t"


def batch(*ids: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"id": i, "values": [1.0]} for i in ids], SCHEMA)


def ids(rows: list[dict]) -> list[str]:
    return [row["id"] for row in rows]


def refused(result) -> list[tuple[str, str]]:
    return [
        (row["id"], reason)
        for part in result.refused
        for row, reason in zip(part.rows.to_pylist(), part.reasons, strict=True)
    ]


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    with ScriptedBigQuery(TABLE) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[BigQueryWriteClient]:
    client = BigQueryEndpoints(storage=server.address).write_client()
    yield client
    client.transport.close()


@pytest.fixture
def sleeps() -> list[float]:
    return []


@pytest.fixture
def appender(client, sleeps) -> Iterator[Appender]:
    """To the default stream, two rows a request."""
    options = AppendOptions(max_request_rows=2, response_timeout=20)
    appender = Appender(client, default_stream(TABLE), SCHEMA, options, sleep=sleeps.append)
    yield appender
    appender.close()


@pytest.fixture
def pending(server, client, sleeps) -> Iterator[Appender]:
    """To a pending stream, two rows a request."""
    stream = client.create_write_stream(
        parent=server.parent, write_stream=types.WriteStream(type_=types.WriteStream.Type.PENDING)
    )
    options = AppendOptions(max_request_rows=2, response_timeout=20)
    appender = Appender(client, stream.name, SCHEMA, options, sleep=sleeps.append)
    yield appender
    appender.close()


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

    def test_small_batches_share_a_request(self, server, client):
        appender = Appender(client, default_stream(TABLE), SCHEMA)
        appender.append([batch(str(i)) for i in range(100)])
        appender.close()
        assert [r.rows for r in server.requests] == [100]
        assert ids(server.visible) == [str(i) for i in range(100)]

    def test_requests_stay_below_the_limit_in_bytes(self, server, client):
        options = AppendOptions(max_request_bytes=4_000)
        appender = Appender(client, default_stream(TABLE), SCHEMA, options)
        names = [f"{i:04d}" * (1 + i % 20) for i in range(500)]
        assert appender.append([batch(*names)]).rows == 500
        appender.close()
        assert ids(server.visible) == names
        overhead = 1_000  # schema, stream name, envelope
        assert max(r.bytes for r in server.requests) < 4_000 + overhead
        assert len(server.requests) > 5

    def test_a_row_too_large_for_any_request_is_refused_and_its_neighbours_are_stored(self, server, client):
        options = AppendOptions(max_request_bytes=4_000)
        appender = Appender(client, default_stream(TABLE), SCHEMA, options)
        result = appender.append([batch("a", "x" * 10_000, "b")])
        appender.close()
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
        self, server, client, pending, sleeps, code, in_band
    ):
        # One request at a time, so that the numbers of the script hold.
        options = AppendOptions(max_request_rows=2, window=1)
        appender = Appender(client, pending.stream, SCHEMA, options, sleep=sleeps.append)
        server.script = {1: Fault(code, in_band), 3: Fault(code, in_band, stored=True)}
        result = appender.append([batch("a", "b", "c", "d", "e", "f", "g", "h")])
        appender.close()
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

    def test_it_is_raised_when_the_attempts_are_used_up(self, server, client, sleeps, code, in_band):
        server.script = {i: Fault(code, in_band) for i in range(100)}
        options = AppendOptions(patience=Patience(first=0.5, longest=32, tries=4))
        appender = Appender(client, default_stream(TABLE), SCHEMA, options, sleep=sleeps.append)
        with pytest.raises(TransientAppendError, match=rf"gave up after 4 attempts: {code}"):
            appender.append([batch("a")])
        assert len(server.requests) == 4
        assert len(sleeps) == 3


class TestConnections:
    def test_waits_grow_with_jitter_up_to_the_maximum(self, server, client, sleeps):
        server.script = {i: Fault() for i in range(100)}
        options = AppendOptions(patience=Patience(first=0.5, longest=8, tries=12))
        appender = Appender(client, default_stream(TABLE), SCHEMA, options, sleep=sleeps.append)
        with pytest.raises(TransientAppendError):
            appender.append([batch("a")])
        assert len(set(sleeps)) > 5
        assert sleeps[0] <= 0.5
        assert 1 < max(sleeps) <= 8

    def test_progress_gives_new_attempts(self, server, client, sleeps):
        # Every other request fails: three failures in all, with two attempts a time.
        server.script = {0: Fault(), 2: Fault(), 4: Fault()}
        options = AppendOptions(max_request_rows=1, window=1, patience=Patience(tries=2))
        appender = Appender(client, default_stream(TABLE), SCHEMA, options, sleep=sleeps.append)
        result = appender.append([batch("a", "b", "c")])
        appender.close()
        assert ids(server.visible) == ["a", "b", "c"]
        assert result.retries == 3

    def test_a_silent_service_counts_as_a_lost_connection(self, server, client, sleeps):
        server.script = {0: Fault(silent=True)}
        options = AppendOptions(response_timeout=0.2)
        appender = Appender(client, default_stream(TABLE), SCHEMA, options, sleep=sleeps.append)
        assert appender.append([batch("a")]).retries == 1
        appender.close()
        assert ids(server.visible) == ["a"]
        assert [r.connection for r in server.requests] == [0, 1]

    def test_a_connection_closed_while_idle_is_replaced_without_a_retry(self, server, appender, sleeps):
        appender.append([batch("a")])
        server.script = {1: Fault("ABORTED", in_band=False)}
        # The service ends the call: sent outside append(), nobody waits for its answer.
        appender._connection.send(batch("lost"), None)
        appender._connection._thread.join(timeout=10)
        result = appender.append([batch("b")])
        assert ids(server.visible) == ["a", "b"]
        assert (result.retries, sleeps) == (0, [])

    @pytest.mark.parametrize("code", ["NOT_FOUND", "PERMISSION_DENIED", "FAILED_PRECONDITION"])
    @pytest.mark.parametrize("in_band", [True, False], ids=["answer", "connection"])
    def test_a_permanent_error_is_raised_at_once_and_names_the_stream(self, server, appender, code, in_band):
        server.script = {0: Fault(code, in_band)}
        with pytest.raises(AppendError, match=rf"{server.default_stream}: {code}: the script says so"):
            appender.append([batch("a")])
        assert len(server.requests) == 1

    def test_a_table_that_lacks_a_column_is_a_schema_mismatch(self, server, appender):
        extra = types.StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS
        server.script = {0: Fault("INVALID_ARGUMENT", storage_code=extra)}
        with pytest.raises(SchemaMismatchError, match="Create the tables again"):
            appender.append([batch("a", "b")])
        assert len(server.requests) == 1


class TestRefusedRows:
    @pytest.fixture(params=["default", "pending"])
    def either(self, request, appender, pending) -> Appender:
        return appender if request.param == "default" else pending

    @pytest.fixture(autouse=True)
    def _bad_rows(self, server):
        server.refuse = lambda row: f"{row['id']} is bad" if row["id"].startswith("bad") else None

    def test_a_bad_row_costs_its_neighbours_nothing(self, server, either):
        result = either.append([batch("a", "bad1", "b", "c", "d", "bad2", "bad3", "bad4", "e")])
        assert sorted(ids(server.streams[either.stream].rows)) == ["a", "b", "c", "d", "e"]
        assert sorted(refused(result)) == [(f"bad{i}", f"bad{i} is bad") for i in range(1, 5)]
        assert (result.rows, result.retries) == (5, 0)

    def test_rows_that_the_answer_has_no_room_to_name_are_found_by_sending_again(self, server, client):
        server.max_row_errors = 1
        appender = Appender(client, default_stream(TABLE), SCHEMA)
        result = appender.append([batch("bad1", "a", "bad2", "bad3")])
        appender.close()
        assert ids(server.visible) == ["a"]
        assert refused(result) == [("bad1", "bad1 is bad"), ("bad2", "bad2 is bad"), ("bad3", "bad3 is bad")]
        assert result.calls == 4

    def test_rows_that_the_service_does_not_name_are_found_by_halves(self, server, client):
        server.name_rows = False
        appender = Appender(client, default_stream(TABLE), SCHEMA)
        good = [f"good{i}" for i in range(15)]
        result = appender.append([batch(*good[:7], "bad", *good[7:])])
        appender.close()
        assert sorted(ids(server.visible)) == sorted(good)
        assert refused(result) == [("bad", "bad is bad")]
        assert result.calls == 9  # 16 rows, four halvings of two requests each

    def test_a_request_that_is_refused_whatever_is_in_it_is_an_error(self, server, client):
        server.name_rows = False
        server.refuse = lambda row: "field values has the wrong type"
        options = AppendOptions(max_isolated=5)
        appender = Appender(client, default_stream(TABLE), SCHEMA, options)
        with pytest.raises(AppendError, match="INVALID_ARGUMENT: field values has the wrong type"):
            appender.append([batch(*(str(i) for i in range(1_000)))])
        assert len(server.requests) < 50

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_few_rows_refused_before_any_was_taken_are_an_error(self, server, appender, rows):
        server.name_rows = False
        with pytest.raises(AppendError, match="INVALID_ARGUMENT: bad0 is bad"):
            appender.append([batch(*(f"bad{i}" for i in reversed(range(rows))))])
        appender.append([batch("good")])
        assert refused(appender.append([batch("bad0")])) == [("bad0", "bad0 is bad")]

    def test_all_rows_refused_is_no_error_when_the_service_names_them(self, server, either):
        result = either.append([batch("bad1", "bad2", "bad3")])
        assert result.rows == 0
        assert len(refused(result)) == 3

    def test_an_error_after_a_refused_row_shifts_no_offset(self, server, pending):
        server.script = {4: Fault("UNAVAILABLE", in_band=False), 6: Fault("INTERNAL", stored=True)}
        names = ["a", "bad1", "b", "c", "bad2", "d", "e", "f"]
        result = pending.append([batch(*names)])
        assert ids(server.streams[pending.stream].rows) == ["a", "b", "c", "d", "e", "f"]
        assert [name for name, _ in refused(result)] == ["bad1", "bad2"]


FAULTS = st.builds(
    Fault, code=st.sampled_from(TRANSIENT), in_band=st.booleans(), stored=st.booleans(), silent=st.just(False)
)


@given(
    good=st.lists(st.booleans(), min_size=1, max_size=25),
    script=st.dictionaries(st.integers(0, 25), FAULTS, max_size=6),
    name_rows=st.booleans(),
    window=st.integers(1, 4),
    rows=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_a_pending_stream_has_every_good_row_once_and_in_order(
    good, script, name_rows, window, rows
):
    names = [f"{'good' if ok else 'bad'}{i}" for i, ok in enumerate(good)]
    with ScriptedBigQuery(TABLE) as server:
        server.script = script
        server.name_rows = name_rows
        server.refuse = lambda row: "bad" if row["id"].startswith("bad") else None
        client = BigQueryEndpoints(storage=server.address).write_client()
        options = AppendOptions(
            max_request_rows=rows, window=window, max_isolated=100, patience=Patience(first=0, tries=8)
        )
        stream = PendingStream(client, TABLE, SCHEMA, options)
        try:
            result = stream.append([batch(*names)])
            finished = stream.finish()
        except TransientAppendError:
            return  # the bundle is run again, on a new stream
        except AppendError:
            assert not name_rows
            assert not any(good)
            return
        finally:
            stream.close()
            client.transport.close()
        stored = ids(server.streams[finished.name].rows) if finished else []
    assert stored == [n for n in names if n.startswith("good")]
    assert [n for n, _ in refused(result)] == [n for n in names if n.startswith("bad")]
    assert result.rows == len(stored)


class TestPendingStreams:
    def write(self, client, *batches: pa.RecordBatch) -> Finished | None:
        stream = PendingStream(client, TABLE, SCHEMA)
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
            PendingStream(client, "p.d.other", SCHEMA).append([batch("a")])

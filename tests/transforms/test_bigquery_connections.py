from __future__ import annotations

import pytest
from google.cloud.bigquery_storage_v1 import types

from common import clients
from common.clients import BigQueryEndpoints
from common.retry import Patience
from tests.transforms.bigquery_cases import SCHEMA, TABLE, batch, ids, new_pending_stream
from tests.transforms.bigquery_server import SLOW, Fault
from tests.transforms.silent_proxy import SilentProxy
from transforms.bigquery.answers import AppendError, AppendOptions, TransientAppendError
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.rows import SchemaMismatchError
from transforms.bigquery.streams import default_stream

pytest_plugins = ("tests.transforms.bigquery_fixtures",)


class TestConnections:
    def test_waits_grow_with_jitter_up_to_the_maximum(self, server, new_appender, sleeps):
        server.script = {i: Fault() for i in range(100)}
        appender = new_appender(patience=Patience(seconds=600, first=0.5, longest=8, tries=12))
        with pytest.raises(TransientAppendError):
            appender.append([batch("a")])
        assert len(set(sleeps)) > 5
        assert sleeps[0] <= 0.5
        assert 1 < max(sleeps) <= 8

    def test_progress_gives_new_attempts(self, server, new_appender, sleeps):
        # Every other request fails: three failures in all, with two attempts a time.
        server.script = {0: Fault(), 2: Fault(), 4: Fault()}
        appender = new_appender(max_request_rows=1, window=1, patience=Patience(tries=2))
        result = appender.append([batch("a", "b", "c")])
        assert ids(server.visible) == ["a", "b", "c"]
        assert result.retries == 3

    def test_a_silent_service_counts_as_a_lost_connection(self, server, new_appender, sleeps):
        server.script = {0: Fault(silent=True)}
        appender = new_appender(response_timeout=0.2)
        assert appender.append([batch("a")]).retries == 1
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


class TestLostConnections:
    @pytest.fixture
    def proxy(self, server):
        with SilentProxy(server.address) as proxy:
            yield proxy

    @pytest.fixture
    def through(self, proxy, clock):
        channel = WriteChannel(BigQueryEndpoints(storage=proxy.address).write_client)
        options = AppendOptions(response_timeout=0.5)
        appender = Appender(channel, default_stream(TABLE), SCHEMA, options, clock.sleep, clock)
        yield appender
        appender.close()
        channel.close()

    def test_a_connection_that_died_silently_is_replaced_at_the_first_retry(self, server, proxy, through):
        through.append([batch("a")])
        proxy.freeze()
        result = through.append([batch("b")])
        assert ids(server.visible) == ["a", "b"]
        assert (result.calls, result.errors, result.retries) == (2, 1, 1)
        assert proxy.connections == 2

    def test_new_clients_do_not_share_the_dead_connection(self, server, proxy, through):
        through.append([batch("a")])
        proxy.freeze()
        with BigQueryEndpoints(storage=proxy.address).write_client() as client:
            pending = types.WriteStream(type_=types.WriteStream.Type.PENDING)
            # Without a pool of its own, this call waits on the connection that died.
            client.create_write_stream(parent=server.parent, write_stream=pending, retry=None, timeout=10)
        assert proxy.connections == 2

    def test_a_dead_connection_is_noticed_before_a_long_time_to_answer_is_over(
        self, server, proxy, clock, monkeypatch, caplog
    ):
        # As to another machine, a hundred times as fast.
        quick = [(name, value // 100) for name, value in clients.KEEPALIVE]
        monkeypatch.setattr(clients, "CHANNEL_OPTIONS", [*clients.CHANNEL_OPTIONS, *quick])
        channel = WriteChannel(BigQueryEndpoints(storage=proxy.address).write_client)
        limits = AppendOptions(response_timeout=30)
        appender = Appender(channel, default_stream(TABLE), SCHEMA, limits, clock.sleep, clock)
        appender.append([batch("a")])
        proxy.freeze()
        assert appender.append([batch("b")]).retries == 1
        appender.close()
        channel.close()
        assert ids(server.visible) == ["a", "b"]
        assert "UNAVAILABLE: Stream removed (ping timeout)" in caplog.text

    @pytest.mark.parametrize("kind", ["default", "pending"])
    def test_after_an_outage_the_first_attempt_succeeds(self, server, write_channel, clock, kind):
        # gRPC's own back-off would answer with the old error for up to two minutes.
        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if len(clock.sleeps) == 7:
                server.__enter__()
                started.append(len(server.requests))

        started: list[int] = []
        stream = default_stream(TABLE) if kind == "default" else new_pending_stream(server, write_channel)
        appender = Appender(write_channel, stream, SCHEMA, AppendOptions(), sleep, clock)
        appender.append([batch("a")])
        server.stop()
        result = appender.append([batch("b")])
        appender.close()
        assert ids(server.streams[stream].rows) == ["a", "b"]
        assert (result.retries, len(server.requests) - started[0]) == (7, 1)

    def test_a_job_outlives_an_outage_of_an_hour_with_the_four_tries_of_a_runner(
        self, server, new_appender, clock
    ):
        server.fault_of = lambda request: Fault() if clock.now < 3_500 else None
        appender = new_appender()
        for _ in range(3):
            with pytest.raises(
                TransientAppendError, match=r"gave up after \d+ attempts in (8\d\d|900) s: UNAVAILABLE"
            ):
                appender.append([batch("a")])
        assert appender.append([batch("a")]).rows == 1


class TestPatienceByCause:
    @pytest.mark.parametrize("kind", ["default", "pending"])
    def test_a_quota_that_refills_after_ten_minutes_costs_no_attempt_of_the_bundle(
        self, server, write_channel, new_appender, clock, kind
    ):
        server.fault_of = lambda request: Fault("RESOURCE_EXHAUSTED") if clock.now < 600 else None
        stream = default_stream(TABLE) if kind == "default" else new_pending_stream(server, write_channel)
        appender = new_appender(stream)
        result = appender.append([batch("a")])
        assert ids(server.streams[stream].rows) == ["a"]
        assert result.throttled == result.waited == pytest.approx(clock.now)
        assert result.calls < 40  # it does not hammer at a quota that is used up

    def test_other_failures_do_not_count_as_throttled(self, server, new_appender):
        server.script = {0: Fault("UNAVAILABLE")}
        result = new_appender().append([batch("a")])
        assert (result.retries, result.throttled) == (1, 0)
        assert result.waited > 0

    def test_the_time_to_wait_for_an_answer_grows_with_late_answers(self, server, write_channel, clock):
        server.fault_of = lambda request: Fault(SLOW, delay=0.5)
        patience = Patience(seconds=900, first=0, tries=8)
        options = AppendOptions(
            response_timeout=0.1, longest_timeout=20, window=1, max_request_rows=1, patience=patience
        )
        appender = Appender(write_channel, default_stream(TABLE), SCHEMA, options, clock.sleep)
        result = appender.append([batch("a", "b", "c")])
        appender.close()
        assert result.rows == 3
        # 0.1, 0.2 and 0.4 s are too short for the first row; the others are sent once.
        assert ids(server.visible).count("b") == ids(server.visible).count("c") == 1

    def test_out_of_range_goes_on_after_the_last_success(self, server, pending):
        server.script = {1: Fault("OUT_OF_RANGE"), 3: Fault("OUT_OF_RANGE")}
        result = pending.append([batch("a", "b", "c", "d", "e", "f", "g", "h")])
        assert ids(server.streams[pending.stream].rows) == ["a", "b", "c", "d", "e", "f", "g", "h"]
        assert result.rows == 8

    def test_out_of_range_of_a_stream_without_offsets_is_an_error(self, server, appender):
        server.script = {0: Fault("OUT_OF_RANGE")}
        with pytest.raises(AppendError, match="OUT_OF_RANGE"):
            appender.append([batch("a")])

    @pytest.mark.parametrize("kind", ["default", "pending"])
    def test_a_throttled_stream_does_not_send_its_window_again(
        self, server, write_channel, new_appender, kind
    ):
        # A quota of one request a pause: what is sent beyond it is refused, and counts for nothing.
        allowed = [1]

        def fault_of(request):
            allowed[0] -= 1
            return None if allowed[0] >= 0 else Fault("RESOURCE_EXHAUSTED")

        def sleep(seconds: float) -> None:
            allowed[0] = 1

        server.fault_of = fault_of
        stream = default_stream(TABLE) if kind == "default" else new_pending_stream(server, write_channel)
        appender = Appender(write_channel, stream, SCHEMA, AppendOptions(max_request_rows=1), sleep)
        appender.append([batch(*(f"{i:02d}" for i in range(20)))])
        appender.close()
        assert sorted(ids(server.streams[stream].rows)) == [f"{i:02d}" for i in range(20)]
        # The first window, and then two or three requests for each row that is stored.
        assert len(server.requests) <= 20 + 3 * 20

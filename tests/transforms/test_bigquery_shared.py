"""Threads that share the appender of a table."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.clients import BigQueryEndpoints
from common.retry import Patience
from tests.transforms.bigquery_cases import SCHEMA, TABLE, batch, ids, refused
from tests.transforms.bigquery_server import SLOW, Fault, ScriptedBigQuery
from transforms.bigquery import shared
from transforms.bigquery.answers import AppendError, AppendOptions, TransientAppendError

pytest_plugins = ("tests.transforms.bigquery_fixtures",)

THREADS = 8


def target(server: ScriptedBigQuery, **options) -> shared.Target:
    return shared.Target(TABLE, SCHEMA, BigQueryEndpoints(storage=server.address), AppendOptions(**options))


def test_users_of_a_table_get_one_appender_and_the_last_one_closes_it(server):
    first, second = shared.acquire(target(server)), shared.acquire(target(server))
    assert first is second
    first.append([batch("a")])
    shared.release(target(server))
    second.append([batch("b")])
    assert {request.connection for request in server.requests} == {0}
    shared.release(target(server))
    assert first._connection is None
    third = shared.acquire(target(server))
    third.append([batch("c")])
    shared.release(target(server))
    assert third is not first
    assert ids(server.visible) == ["a", "b", "c"]


def test_other_tables_and_other_options_have_their_own(server):
    targets = [target(server), target(server, window=1), target(server)._replace(table="p.d.other")]
    assert len({id(shared.acquire(each)) for each in targets}) == 3
    for each in targets:
        shared.release(each)


def test_threads_send_over_one_connection_without_waiting_for_each_other(server, new_appender):
    # No answer comes before each thread has sent its request.
    all_sent = threading.Event()

    def fault_of(request):
        return Fault(SLOW, until=all_sent) if not server.requests else None

    server.fault_of = fault_of
    appender = new_appender()
    begun = threading.Barrier(THREADS)

    def run(number: int) -> int:
        sending = appender.begin()
        appender.submit(sending, [batch(f"{number}")])
        if begun.wait() == 0:
            all_sent.set()
        return appender.finish(sending).rows

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(run, range(THREADS))) == [1] * THREADS
    assert server.impatient == 0
    assert {request.connection for request in server.requests} == {0}
    assert sorted(ids(server.visible)) == [f"{number}" for number in range(THREADS)]


def test_a_bad_row_is_the_affair_of_its_sender(server, new_appender):
    server.refuse = lambda row: f"{row['id']} is bad" if row["id"].startswith("bad") else None
    appender = new_appender(max_request_rows=2)

    def run(number: int) -> list[tuple[str, str]]:
        names = [f"{number}.{i}" for i in range(5)] + [f"bad{number}"] * (number % 2)
        return refused(appender.append([batch(*names)]))

    with ThreadPoolExecutor(THREADS) as threads:
        outcome = list(threads.map(run, range(THREADS)))
    assert outcome == [[(f"bad{n}", f"bad{n} is bad")] if n % 2 else [] for n in range(THREADS)]
    assert len(server.visible) == THREADS * 5


def test_a_permanent_error_is_the_affair_of_the_request_that_it_answers(server, new_appender):
    appender = new_appender()
    good, bad, other = (appender.begin() for _ in range(3))
    server.script = {1: Fault("FAILED_PRECONDITION")}
    for sending, name in ((good, "a"), (bad, "b"), (other, "c")):
        appender.submit(sending, [batch(name)])
    assert appender.finish(other).rows == 1
    assert appender.finish(good).rows == 1
    with pytest.raises(AppendError, match="FAILED_PRECONDITION"):
        appender.finish(bad)
    assert ids(server.visible) == ["a", "c"]


def test_a_failure_is_waited_out_once_for_all(server, new_appender, clock):
    appender = new_appender()
    server.script = {i: Fault("RESOURCE_EXHAUSTED") for i in range(THREADS)}
    sendings = [appender.begin() for _ in range(THREADS)]
    for number, sending in enumerate(sendings):
        appender.submit(sending, [batch(f"{number}")])
    results = [appender.finish(sending) for sending in sendings]
    assert len(clock.sleeps) == 1
    assert [(result.rows, result.retries, result.throttled) for result in results] == [
        (1, 1, clock.now)
    ] * THREADS


def test_who_comes_late_to_an_outage_has_a_patience_of_its_own(server, new_appender, clock):
    server.fault_of = lambda request: Fault()
    appender = new_appender(patience=Patience(seconds=100, first=10, longest=10, steady=1.0))
    early = appender.begin()
    appender.submit(early, [batch("a")])
    clock.now = 0.0
    for _ in range(4):  # 40 of its 100 seconds
        with appender._lock:
            appender._step(early)
            appender._step(early)
    late = appender.begin()
    appender.submit(late, [batch("b")])
    with pytest.raises(TransientAppendError, match="in 100 s"):
        appender.finish(early)
    assert late.error is None
    with pytest.raises(TransientAppendError, match="in 100 s"):
        appender.finish(late)
    assert clock.now == 140


def test_who_adds_to_a_full_window_waits(server, new_appender):
    answer = threading.Event()
    server.fault_of = lambda request: Fault(SLOW, until=answer)
    appender = new_appender(window_bytes=1)
    sending = appender.begin()
    submitting = threading.Thread(target=appender.submit, args=(sending, [batch("a")]))
    submitting.start()
    submitting.join(0.5)
    assert submitting.is_alive()
    answer.set()
    submitting.join(20)
    assert not submitting.is_alive()
    assert appender.finish(sending).rows == 1


def test_rows_of_a_caller_who_gave_up_are_not_sent_again(server, new_appender):
    appender = new_appender(max_request_rows=1, window=1)
    given_up, other = appender.begin(), appender.begin()
    server.script = {0: Fault()}
    appender.submit(given_up, [batch("a", "b", "c")])
    appender.abandon(given_up)
    appender.submit(other, [batch("d")])
    assert appender.finish(other).rows == 1
    assert ids(server.visible) == ["d"]


FAULTS = st.builds(
    Fault,
    code=st.sampled_from(["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"]),
    in_band=st.booleans(),
    stored=st.booleans(),
)


@given(
    script=st.dictionaries(st.integers(0, 40), FAULTS, max_size=12),
    name_rows=st.booleans(),
    window=st.integers(1, 8),
    rows=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_each_thread_has_its_good_rows_stored_and_its_bad_ones_refused(
    script, name_rows, window, rows
):
    patience = Patience(first=0, tries=20)
    options = {"window": window, "max_request_rows": rows, "patience": patience, "quota_patience": patience}
    with ScriptedBigQuery(TABLE) as server:
        server.script, server.name_rows = script, name_rows
        server.refuse = lambda row: "bad" if row["id"].startswith("bad") else None
        appender = shared.acquire(target(server, **options))

        def run(number: int) -> tuple[int, list[str]]:
            names = [f"{'bad' if i % 4 == number else ''}{number}.{i}" for i in range(6)]
            result = appender.append([batch(*names)])
            return result.rows, sorted(name for name, _ in refused(result))

        with ThreadPoolExecutor(4) as threads:
            outcome = list(threads.map(run, range(4)))
        shared.release(target(server, **options))
        bad = [[f"bad{n}.{i}" for i in range(6) if i % 4 == n] for n in range(4)]
        assert outcome == [(6 - len(names), names) for names in bad]
        good = {f"{n}.{i}" for n in range(4) for i in range(6) if i % 4 != n}
        assert set(ids(server.visible)) == good
        assert appender._queue.bytes == 0

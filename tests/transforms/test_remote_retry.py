from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.retry import Patience
from transforms import remote_retry
from transforms.remote_protocol import MalformedError, RejectedError, SuspectError, TransientError
from transforms.remote_retry import PATIENCE, Caller, CallStats


class Script:
    """A call that goes through a list of outcomes: an exception to raise, or a result."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def caller(waits: list[float], draw: float = 1.0, **patience) -> Caller:
    return Caller(replace(PATIENCE, **patience), sleep=waits.append, draw=lambda: draw)


def test_waits_double_up_to_the_cap():
    waits: list[float] = []
    script = Script(*[TransientError("busy")] * 6, "scored")
    stats = CallStats()
    assert caller(waits, first=1.0, longest=5.0).retry(script, stats) == "scored"
    assert waits == [1, 2, 4, 5, 5, 5]
    assert (stats.calls, stats.retries, stats.waited, stats.throttled) == (7, 6, 22.0, 0.0)


def test_jitter_takes_up_to_half_of_a_wait_away():
    patience = replace(PATIENCE, first=8.0, longest=8.0)
    assert [patience.wait(1, lambda d=d: d) for d in (0, 0.5, 1)] == [4, 6, 8]


def test_after_the_last_attempt_the_error_is_raised_with_their_number():
    waits: list[float] = []
    script = Script(*[TransientError("HTTP 503: busy")] * 3)
    with pytest.raises(TransientError, match=r"HTTP 503: busy \(after 3 attempts\)"):
        caller(waits, tries=3).retry(script, CallStats())
    assert len(waits) == 2


def test_a_broken_answer_to_one_row_is_asked_for_again_before_the_row_is_blamed():
    waits: list[float] = []
    script = Script(MalformedError("malformed answer: <html>"), MalformedError("malformed answer"), "scored")
    stats = CallStats()
    (part,) = caller(waits).bisect(4, 5, lambda start, stop: script(), stats)
    assert part == (4, 5, "scored", None)
    assert (stats.calls, stats.retries, stats.rejected) == (3, 2, 2)
    assert waits == [0.5, 1.0]
    always = Script(*[MalformedError("malformed answer: null")] * 3)
    (part,) = caller([]).bisect(4, 5, lambda start, stop: always(), CallStats())
    assert part == (4, 5, None, "malformed answer: null")


def test_a_row_that_is_refused_is_not_asked_for_again():
    script = Script(RejectedError("HTTP 400: no"))
    (part,) = caller([]).bisect(0, 1, lambda start, stop: script(), CallStats())
    assert part == (0, 1, None, "HTTP 400: no")


SUSPECT = "HTTP 400: no such amount"


class Wrapping:
    """A server that answers requests with bad rows as it would answer when nothing is deployed.

    `control` fails with the same error once `healthy` requests have been answered.
    """

    def __init__(self, bad, healthy=math.inf):
        self.bad, self.healthy, self.asked = set(bad), healthy, []

    def __call__(self, start, stop):
        self.asked.append((start, stop))
        if self.bad & set(range(start, stop)) or len(self.asked) > self.healthy:
            raise SuspectError(SUSPECT)
        return list(range(start, stop))

    def control(self):
        if len(self.asked) > self.healthy:
            raise SuspectError(SUSPECT)


@given(st.integers(1, 70), st.sets(st.integers(0, 69)))
def test_rows_that_fail_as_the_server_would_are_found_while_the_server_answers_others(n, bad):
    bad = {row for row in bad if row < n}
    server, waits = Wrapping(bad), []
    parts = list(caller(waits, tries=4).bisect(0, n, server, CallStats(), server.control))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n))
    assert {part.start for part in parts if part.result is None} == bad
    assert all(part.reason.startswith(SUSPECT) for part in parts if part.result is None)
    # The long patience is spent once, on the whole request, and not at every level of the halving.
    assert server.asked.count((0, n)) == ((4 if n > 1 else 4 + 2) if bad else 1)
    assert len(waits) == (3 + 2 * len(bad) if bad else 0)


@pytest.mark.parametrize("n", [1, 8])
def test_an_outage_that_may_be_about_rows_stays_an_outage(n):
    server = Wrapping(set(), healthy=0)
    stats = CallStats()
    with pytest.raises(SuspectError, match=r"no such amount \(after 4 attempts\)"):
        list(caller([], tries=4).bisect(0, n, server, stats, server.control))
    assert server.asked == [(0, n)] * 4
    assert (stats.calls, stats.rejected) == (5, 0)
    with pytest.raises(SuspectError):  # no row is known to be good: nothing tells rows from the server
        list(caller([], tries=4).bisect(0, n, Wrapping({0}), CallStats()))


def test_a_server_that_goes_away_during_the_halving_costs_no_row():
    """Row 3 of 8 is bad; the server stops answering anything after its halves, before a row is blamed."""
    server = Wrapping({3}, healthy=5)
    with pytest.raises(SuspectError, match=SUSPECT):
        list(caller([], tries=2).bisect(0, 8, server, CallStats(), server.control))
    assert server.asked[:5] == [(0, 8), (0, 8), (0, 4), (0, 2), (2, 4)]


def test_a_suspected_row_is_asked_for_again_before_it_is_blamed():
    script = Script(*[SuspectError("HTTP 500: boom")] * 3, "scored")
    (part,) = caller([], tries=2).bisect(0, 1, lambda start, stop: script(), CallStats(), lambda: None)
    assert part == (0, 1, "scored", None)


def test_an_outage_is_told_at_the_first_attempt_and_not_at_each(caplog, monkeypatch):
    monkeypatch.setattr(remote_retry, "_told_at", -math.inf)
    script = Script(*[TransientError("HTTP 503: busy")] * 5, "scored")
    caller([]).retry(script, CallStats())
    assert caplog.messages == ["remote scorer: HTTP 503: busy (attempt 1 of 8); trying again"]


def test_a_refusal_is_not_repeated():
    script = Script(RejectedError("HTTP 400: no"))
    with pytest.raises(RejectedError):
        caller([]).retry(script, CallStats())
    assert script.calls == 1


@pytest.mark.parametrize(("asked", "waited"), [(0.1, 0.5), (7.0, 7.0), (1e9, 60.0)])
def test_a_longer_retry_after_is_obeyed_within_reason(asked, waited):
    waits: list[float] = []
    stats = CallStats()
    script = Script(TransientError("busy", retry_after=asked, throttled=True), "scored")
    caller(waits).retry(script, stats)
    assert waits == [waited]
    assert stats.throttled == waited


def test_a_very_late_attempt_still_waits_the_cap():
    assert PATIENCE.wait(5000, lambda: 1.0) == 30


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"first": -1}, {"first": 2, "longest": 1}, {"steady": 2}])
def test_a_patience_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="expected tries >= 1"):
        Patience(**wrong)


@given(st.integers(0, 70), st.sets(st.integers(0, 69)))
def test_bisecting_finds_exactly_the_bad_rows_and_covers_every_row_once(n, bad):
    bad = {row for row in bad if row < n}
    sent = []

    def call(start, stop):
        sent.append((start, stop))
        if bad & set(range(start, stop)):
            raise RejectedError("HTTP 400: bad row")
        return list(range(start, stop))

    stats = CallStats()
    parts = list(caller([]).bisect(0, n, call, stats)) if n else []
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n))
    assert {part.start for part in parts if part.result is None} == bad
    assert all(part.reason == "HTTP 400: bad row" for part in parts if part.result is None)
    assert [row for part in parts if part.result for row in part.result] == sorted(set(range(n)) - bad)
    assert stats.calls == len(sent) <= max(2 * n - 1, 0)
    if len(bad) == 1:
        assert len(sent) <= 2 * (n - 1).bit_length() + 1


def test_a_transient_failure_on_the_way_down_is_retried_and_then_raised():
    script = Script(RejectedError("bad"), TransientError("reset"), [0], TransientError("reset"), [1])
    parts = list(caller([]).bisect(0, 2, lambda start, stop: script(), CallStats()))
    assert [part.result for part in parts] == [[0], [1]]
    hopeless = Script(RejectedError("bad"), [0], *[TransientError("gone")] * 2)
    with pytest.raises(TransientError, match="gone"):
        list(caller([], tries=2).bisect(0, 2, lambda start, stop: hopeless(), CallStats()))


def test_stats_add_up_over_threads():
    stats = CallStats()
    threads = [
        threading.Thread(target=lambda: [stats.add(calls=1, waited=0.5) for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stats.calls, stats.waited) == (8000, 4000.0)

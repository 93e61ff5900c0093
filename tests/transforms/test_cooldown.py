"""The pause of an account and the limit of the job: sent + suppressed = alerts, whatever the order."""

from __future__ import annotations

import datetime as dt
import itertools
import json

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from transforms.cooldown import BUCKETS, Cooldown, Fate, Minute, cool, decide, divided, limit
from transforms.cooldown_accounts import KEPT_MICROS, REMEMBERED, Accounts
from transforms.schema import ALERTS

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
MINUTE = 60_000_000


def alert(identifier, account="a", severity="medium", minute=0.0):
    return {
        "transaction_id": identifier,
        "account_id": account,
        "event_time": NOON,
        "anomaly_score": 9.0,
        "severity": severity,
        "threshold": 8.0,
        "model_version": "v1",
        "scored_at": NOON + dt.timedelta(minutes=minute),
    }


def micros(moment):
    return int(moment.timestamp() * 1e6)


def batch(*rows):
    return pa.RecordBatch.from_pylist(list(rows), ALERTS)


def sent(marked):
    return [row["transaction_id"] for row in marked.to_pylist() if row["fate"] == Fate.SENT]


def suppressed(marked):
    return [row["transaction_id"] for row in marked.to_pylist() if row["suppressed"]]


def test_the_first_goes_out_a_higher_severity_passes_and_the_next_says_how_many_were_suppressed():
    state = Accounts()
    marked = cool(
        batch(
            alert("first"),
            alert("again", minute=1),
            alert("other account", "b", minute=1),
            alert("higher", severity="high", minute=2),
            alert("lower", minute=3),
            alert("also high", severity="high", minute=4),
            alert("in time", minute=11.9),
            alert("after", minute=12),
        ),
        state,
        10 * MINUTE,
    )
    assert sent(marked) == ["first", "other account", "higher", "after"]
    assert suppressed(marked) == ["again", "lower", "also high", "in time"]
    before = {row["transaction_id"]: row["suppressed_before"] for row in marked.to_pylist()}
    assert {name: count for name, count in before.items() if count} == {"higher": 1, "after": 3}


def test_alerts_without_an_account_are_never_suppressed():
    state = Accounts()
    marked = cool(batch(*(alert(f"t{i}", None) for i in range(5))), state, 10 * MINUTE)
    assert (len(sent(marked)), suppressed(marked)) == (5, [])
    again = cool(batch(alert("t3", None)), state, 10 * MINUTE)
    assert (sent(again), suppressed(again)) == ([], [])


def test_alerts_that_are_delivered_again_get_no_message_and_keep_their_mark():
    state = Accounts()
    rows = batch(alert("first"), alert("second", minute=1), alert("third", minute=2))
    cool(rows, state, 10 * MINUTE)
    again = cool(rows, state, 10 * MINUTE)
    assert (sent(again), suppressed(again)) == ([], ["second", "third"])
    later = cool(batch(alert("later", minute=30)), state, 10 * MINUTE)
    assert later.to_pylist()[0]["suppressed_before"] == 2


def test_a_flood_of_one_account_does_not_fill_the_state():
    state = Accounts()
    cool(batch(*(alert(f"t{i}") for i in range(1_000))), state, 10 * MINUTE)
    account = Accounts(state.to_bytes()).get("a")
    assert len(account.known) == REMEMBERED
    assert account.suppressed == 999


def test_accounts_without_alerts_are_forgotten():
    state = Accounts()
    cool(batch(alert("old"), alert("old b", "b")), state, 10 * MINUTE)
    state = Accounts(state.to_bytes())
    assert [state.get(name).last for name in "ab"] == [micros(NOON)] * 2
    cool(batch(alert("new", "b", minute=KEPT_MICROS / MINUTE + 1)), state, 10 * MINUTE)
    state = Accounts(state.to_bytes())
    assert (len(state), state.get("a")) == (1, None)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 2)), max_size=50))
def test_messages_of_one_severity_are_apart_by_the_pause(alerts):
    accounts, times = Accounts(), []
    for i, (at, severity) in enumerate(sorted(alerts)):
        if decide(accounts, "a", str(i), severity, at, 10).fate == Fate.SENT:
            times.append((at, severity))
    for (before, low), (after, high) in itertools.pairwise(times):
        assert after - before >= 10 or high > low


def test_the_limit_lets_so_many_through_a_minute_and_says_so_once():
    state, minute = Accounts(), Minute()
    flood = cool(batch(*(alert(f"t{i}", f"a{i}") for i in range(7))), state, MINUTE)
    marked, summaries = limit(flood, minute, 3)
    assert sent(marked) == ["t0", "t1", "t2"]
    assert suppressed(marked) == ["t3", "t4", "t5", "t6"]
    (summary,) = summaries
    assert summary.attributes == {"kind": "summary"}
    assert json.loads(summary.data)["minute"] == "2026-03-01T12:00:00+00:00"
    more = cool(batch(*(alert(f"u{i}", f"b{i}", minute=0.5) for i in range(2))), state, MINUTE)
    assert [len(each) for each in (sent(limit(more, minute, 3)[0]), limit(more, minute, 3)[1])] == [0, 0]
    later = cool(batch(*(alert(f"v{i}", f"c{i}", minute=1) for i in range(4))), state, MINUTE)
    marked, (summary,) = limit(later, minute, 3)
    assert sent(marked) == ["v0", "v1", "v2"]
    assert json.loads(summary.data)["suppressed_since_last_summary"] == 8


def test_what_the_cooldown_suppressed_does_not_count_for_the_limit():
    marked, summaries = limit(
        cool(batch(*(alert(f"t{i}") for i in range(9)), alert("b", "b")), Accounts(), MINUTE), Minute(), 2
    )
    assert (sent(marked), summaries) == (["t0", "b"], [])
    assert len(suppressed(marked)) == 8


def test_the_alerts_of_an_account_have_one_bucket_and_buckets_are_even():
    rows = batch(*(alert(f"t{i}", f"account-{i % 1_000}") for i in range(3_000)), *[alert("none", None)] * 2)
    parts = list(divided(rows))
    assert sum(part.num_rows for _, part in parts) == 3_002
    assert len({bucket for bucket, _ in parts}) == len(parts) > BUCKETS / 2
    names = [{row["account_id"] for row in part.to_pylist()} for _, part in parts]
    assert sum(len(each) for each in names) == len(set().union(*names)) == 1_001


@pytest.mark.parametrize(("per_minute", "expected"), [(0, 21), (5, 6)])
def test_every_alert_reaches_the_table_and_is_sent_or_suppressed(per_minute, expected):
    rows = [alert(f"t{i}", f"a{i % 20}") for i in range(200)] + [alert("none", None)]
    with beam.Pipeline("FnApiRunner") as p:
        alerts = p | beam.Create([batch(*rows[i : i + 30]) for i in range(0, len(rows), 30)])
        quiet = alerts | Cooldown(600, per_minute)
        kept = quiet.alerts | beam.FlatMap(lambda each: each.to_pylist())
        marks = kept | beam.Map(lambda row: row["suppressed"]) | beam.combiners.Count.PerElement()
        n_sent = min(21, per_minute or 21)
        assert_that(marks, equal_to([(True, 201 - n_sent), (False, n_sent)]), label="table")
        sizes = quiet.messages | beam.combiners.Count.Globally()
        assert_that(sizes, equal_to([expected]), label="topic")
        bodies = quiet.messages | beam.Map(lambda message: "suppressed" in json.loads(message.data))
        assert_that(bodies, lambda found: not any(found) or pytest.fail("marked"), label="no mark")

"""Sent + suppressed = alerts, and the next message tells of all that were suppressed, by whichever rule."""

from __future__ import annotations

import itertools
import json

import apache_beam as beam
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from model.thresholds import SEVERITIES
from tests.transforms.test_cooldown import MINUTE, alert, batch
from transforms.cooldown import Cooldown, Fate, Minute, cool, limit, settle
from transforms.cooldown_accounts import REMEMBERED, Accounts


class Chain:
    """The steps one after the other, with states that go through bytes as they do on a runner."""

    def __init__(self, cooldown: int, most: int) -> None:
        self.cooldown, self.most = cooldown * MINUTE, most
        self.paused, self.held, self.minute = Accounts(), Accounts(), Minute()

    def __call__(self, rows: list[dict]) -> list[dict]:
        self.paused, self.held = Accounts(self.paused.to_bytes()), Accounts(self.held.to_bytes())
        marked = cool(batch(*rows), self.paused, self.cooldown)
        if self.most:
            marked = settle(limit(marked, self.minute, self.most)[0], self.held)
        return marked.to_pylist()

    def untold(self, account: str | None) -> int:
        states = (self.paused.get(account or ""), self.held.get(account or ""))
        return sum(each.suppressed for each in states if each)


def test_the_message_after_one_over_the_limit_tells_of_it_and_of_those_in_the_pause_before():
    chain = Chain(cooldown=10, most=1)
    assert [row["fate"] for row in chain([alert("t1")])] == [Fate.SENT]
    chain([alert("t2", minute=1), alert("t3", minute=1)])  # in the pause
    other, fourth = chain([alert("u1", "b", minute=10.1), alert("t4", minute=10.2)])
    assert (other["suppressed"], fourth["suppressed"], fourth["suppressed_before"]) == (False, True, None)
    (again,) = chain([alert("t4", minute=11)])
    assert (again["fate"], again["suppressed"]) == (Fate.OVER, True)
    (fifth,) = chain([alert("t5", minute=30)])
    assert (fifth["fate"], fifth["suppressed_before"]) == (Fate.SENT, 3)
    (sixth,) = chain([alert("t6", minute=45)])
    assert sixth["suppressed_before"] is None


ALERT = st.tuples(
    st.sampled_from(["a", "b", "Zoë", None]),
    st.integers(0, 30),
    st.sampled_from(SEVERITIES[1:]),
    st.none() | st.integers(0, 60),
)
"""Account, minute, severity; the number of an earlier alert that is delivered again instead."""


@given(
    st.lists(ALERT, max_size=REMEMBERED),
    st.sampled_from([0, 1, 5, 20]),
    st.sampled_from([0, 1, 2, 5]),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_nothing_is_lost_and_messages_tell_of_all_that_were_suppressed(alerts, cooldown, most, cuts):
    """In any order of times, in any batches, with any of the rules, where alerts come again."""
    chain, rows = Chain(cooldown, most), []
    for account, minute, severity, again in alerts:
        is_new = again is None or not rows
        name = f"t{len(rows)}" if is_new else rows[again % len(rows)]["transaction_id"]
        account = account if is_new else rows[again % len(rows)]["account_id"]
        rows.append(alert(name, account, severity, minute))
    is_suppressed: dict[str, bool] = {}
    untold: dict[str | None, set[str]] = {}
    for low, high in itertools.pairwise([0, *sorted(cuts), len(rows)]):
        for row in chain(rows[low:high]):
            name, account = row["transaction_id"], row["account_id"]
            waiting = untold.setdefault(account, set())
            if name in is_suppressed:
                assert (row["fate"] != Fate.SENT, row["suppressed"]) == (True, is_suppressed[name])
            else:
                assert row["suppressed"] == (row["fate"] != Fate.SENT)
                waiting |= {name} if row["suppressed"] else set()
            if row["fate"] == Fate.SENT:
                assert (row["suppressed_before"] or 0) == len(waiting)
                waiting.clear()
            else:
                assert row["suppressed_before"] is None
            is_suppressed[name] = row["suppressed"]
    assert set(is_suppressed) == {row["transaction_id"] for row in rows}
    for account, waiting in untold.items():
        assert chain.untold(account) == len(waiting)


def test_on_a_runner_the_table_and_the_topic_agree():
    rows = [alert(f"t{i}", f"a{i % 7}" if i % 5 else None, minute=i * 0.25) for i in range(240)]
    with beam.Pipeline("FnApiRunner") as p:
        alerts = p | beam.Create([batch(*rows[i : i + 20]) for i in range(0, len(rows), 20)])
        quiet = alerts | Cooldown(seconds=600, per_minute=2)
        kept = quiet.alerts | beam.FlatMap(lambda each: each.to_pylist())
        marks = kept | beam.Map(lambda row: (row["transaction_id"], row["suppressed"]))
        bodies = quiet.messages | beam.Map(lambda message: json.loads(message.data))
        own = bodies | beam.Filter(lambda body: "summary" not in body)
        sent = own | beam.Map(lambda body: (body["transaction_id"], None))

        def check(found):
            table = {name: mark for name, mark in found if mark is not None}
            topic = [name for name, mark in found if mark is None]
            assert set(table) == {row["transaction_id"] for row in rows}
            assert len(table) + len(topic) == len(found)
            assert sorted(topic) == sorted(name for name, mark in table.items() if not mark)
            assert 0 < len(topic) < len(table)

        assert_that((marks, sent) | beam.Flatten(), check)

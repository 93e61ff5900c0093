"""A bundle of alerts that fails, and is run again by the local streaming runner: no message is lost."""

from __future__ import annotations

import json

import apache_beam as beam
import pyarrow as pa
import pytest

from local.runner import run_until_drained
from tests.local.runner_cases import CALLS, new_pipeline, publish
from tests.transforms.test_cooldown import alert, batch
from transforms.cooldown import Cooldown

pytestmark = pytest.mark.integration

ALERTS: list[dict] = []
SENT: list[str] = []


class Once(beam.DoFn):
    """Fails once, where rows come that were decided about; then keeps them."""

    def process(self, element):
        if not CALLS["failed"]:
            CALLS["failed"] += 1
            raise RuntimeError("planted")
        ALERTS.extend(element.to_pylist())


class Keep(beam.DoFn):
    """Keeps the accounts of the messages."""

    def process(self, message):
        SENT.append(json.loads(message.data)["account_id"])


def rows(payload: bytes) -> pa.RecordBatch:
    name, account = payload.decode().split(",")
    return batch(alert(name, account))


def test_what_was_decided_in_a_failed_bundle_is_decided_again(channel):
    CALLS.clear(), ALERTS.clear(), SENT.clear()
    pipeline = new_pipeline()
    messages = pipeline | beam.io.ReadFromPubSub(subscription=channel.subscription)
    quiet = messages | beam.Map(rows) | Cooldown(seconds=600)
    _ = quiet.alerts | "Fail once" >> beam.ParDo(Once())
    _ = quiet.messages | "Keep" >> beam.ParDo(Keep())
    result = pipeline.run()
    payloads = [f"t{i},a{i % 3}".encode() for i in range(30)]
    publish(channel.topic, payloads)
    run_until_drained(result, lambda: len(ALERTS) >= 30 and len(SENT) >= 3, timeout=60)
    assert CALLS["failed"] == 1
    assert {row["transaction_id"] for row in ALERTS} == {f"t{i}" for i in range(30)}
    marks = [row["suppressed"] for row in ALERTS]
    assert (marks.count(False), marks.count(True)) == (3, 27)
    assert sorted(SENT) == ["a0", "a1", "a2"]

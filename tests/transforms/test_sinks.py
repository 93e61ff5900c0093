from __future__ import annotations

import logging

import apache_beam as beam
import pytest

from common.clients import BigQueryEndpoints
from tests.transforms.bigquery_server import ScriptedBigQuery
from transforms import metrics
from transforms.dead_letter import dead_letters
from transforms.detect import Detected
from transforms.metrics import UNSTORED
from transforms.schema import ALERTS, SCORES, empty
from transforms.sinks import WriteTables

TABLES = ("p.d.scores", "p.d.alerts", "p.d.error_records")
SECRET = "4000001234567899"


def detected(p: beam.Pipeline, letters) -> Detected:
    return Detected(
        p | "Scores" >> beam.Create([empty(SCORES)]),
        p | "Alerts" >> beam.Create([empty(ALERTS)]),
        p | "Letters" >> beam.Create([letters]),
    )


@pytest.mark.parametrize("size", [1, 10_000, 10_000_000])
def test_a_letter_that_bigquery_refuses_is_counted_and_logged_without_its_payload(caplog, size):
    payload = SECRET.encode() * (size // len(SECRET) + 1)
    attributes = {"card": SECRET, "message_id": "m-17"}
    letters = dead_letters([payload], ["payload: too long"], "parse", [attributes])
    with ScriptedBigQuery(*TABLES) as server:
        server.refuse = lambda row: "no " * 500_000
        p = beam.Pipeline("FnApiRunner")
        endpoints = BigQueryEndpoints(storage=server.address)
        _ = detected(p, letters) | WriteTables("p.d", streaming=True, endpoints=endpoints)
        with caplog.at_level(logging.INFO):
            result = p.run()
            result.wait_until_finish()
        assert server.visible == []
    assert metrics.totals(result)[UNSTORED] == 1
    (record,) = [record for record in caplog.records if "refused a dead letter" in record.getMessage()]
    message_id = "m-17" if size < 5_000_000 else "unknown"
    assert (
        f"(stage {'parse' if size < 5_000_000 else 'unknown'}, message id {message_id}, "
        in record.getMessage()
    )
    assert "dead letter, which is lost: no no no" in record.getMessage()
    assert not [record for record in caplog.records if SECRET in record.getMessage()]
    assert max(len(record.getMessage()) for record in caplog.records) < 100_000

from __future__ import annotations

import os

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from common.clients import BigQueryEndpoints
from tests.transforms.bigquery_server import ScriptedBigQuery
from transforms.bigquery import WriteBatches
from transforms.bigquery.rows import MAX_REQUEST_BYTES, oversized, serialized_size
from transforms.dead_letter import (
    MAX_ATTRIBUTE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_BYTES,
    dead_letters,
    is_cut,
)
from transforms.schema import ERROR_RECORDS

PUBSUB_ATTRIBUTES = {f"{i:03d}".ljust(256, "k"): "v" * 1024 for i in range(100)}
"""The most that Pub/Sub allows."""

LONGEST = {
    "of 4 MB": (b"x" * 4_000_000, "payload: too long", {}),
    "the longest of Pub/Sub": (b"x" * 10_000_000, "payload: too long", PUBSUB_ATTRIBUTES),
    "the longest line of a file": (b"x" * 16 * 1024**2, "payload: too long", {}),
    "no text": (os.urandom(5_000_000), "payload: not UTF-8", {}),
    "characters of four bytes": ("\N{FIRE}".encode() * 2_000_000, "payload: too long", {}),
    "everything too long": (b"x" * 20_000_000, "r" * 10**6, {f"{i}": "v" * 50_000 for i in range(200)}),
    "many short attributes": (b"x" * 20_000_000, "r", {f"{i}": "" for i in range(500_000)}),
}


def reason(row: dict) -> str:
    return row["errorMessage"]


def letter(name: str) -> pa.RecordBatch:
    payload, reason, attributes = LONGEST[name]
    return dead_letters([payload], [reason], "parse", [attributes], timestamp=0)


@pytest.mark.parametrize("name", LONGEST)
def test_every_letter_fits_into_one_request(name):
    assert oversized(letter(name)) is None


def test_the_limits_leave_little_unused():
    longest = dead_letters([b"x" * 20_000_000], ["r" * 10**6], "parse", [{"k": "v" * MAX_ATTRIBUTE_BYTES}])
    assert MAX_REQUEST_BYTES - serialized_size(longest) < MAX_ATTRIBUTE_BYTES + MAX_REASON_BYTES


def test_every_letter_is_stored_by_the_real_sink():
    letters = [letter(name) for name in LONGEST]
    with ScriptedBigQuery("p.d.error_records") as server:
        with beam.Pipeline("FnApiRunner") as p:
            sink = WriteBatches(
                "p.d.error_records",
                ERROR_RECORDS,
                streaming=True,
                endpoints=BigQueryEndpoints(storage=server.address),
            )
            written = p | beam.Create(letters) | sink
            assert_that(written.dead_letters | beam.Map(lambda batch: batch.to_pylist()), equal_to([]))
        expected = [row for batch in letters for row in batch.to_pylist()]
        assert sorted(server.visible, key=reason) == sorted(expected, key=reason)
        assert max(request.bytes for request in server.requests) < 10_000_000


def test_a_cut_payload_says_so_and_is_its_begin():
    payload = bytes(range(97, 123)) * 400_000
    (row,) = dead_letters([payload], ["payload: too long"], "parse").to_pylist()
    assert row["errorMessage"] == "payload: too long (payload cut from 10400000 bytes)"
    assert row["payloadBytes"] == payload[:MAX_PAYLOAD_BYTES]
    assert is_cut(row["errorMessage"])


@pytest.mark.parametrize("shift", range(4))
def test_a_cut_text_is_a_text(shift):
    text = "x" * shift + "\N{FIRE}" * 1_000_000
    (row,) = dead_letters([text.encode()], ["payload: too long"], "parse").to_pylist()
    assert row["payloadString"] == text[: len(row["payloadString"])]
    assert row["payloadBytes"] == row["payloadString"].encode()
    assert MAX_PAYLOAD_BYTES - 4 < len(row["payloadBytes"]) <= MAX_PAYLOAD_BYTES


def test_a_payload_that_fits_exactly_is_whole():
    (row,) = dead_letters([b"x" * MAX_PAYLOAD_BYTES], ["reason"], "parse").to_pylist()
    assert len(row["payloadBytes"]) == MAX_PAYLOAD_BYTES
    assert not is_cut(row["errorMessage"])


def test_all_attributes_of_a_message_of_pubsub_are_kept():
    (row,) = dead_letters([b"x"], ["reason"], "parse", [PUBSUB_ATTRIBUTES]).to_pylist()
    assert {pair["key"]: pair["value"] for pair in row["attributes"]} == PUBSUB_ATTRIBUTES
    assert row["errorMessage"] == "reason"


def test_attributes_beyond_the_limit_are_left_out_and_the_reason_says_so():
    attributes = {"kept": "v", "long": "v" * MAX_ATTRIBUTE_BYTES, "the last": "v"}
    (row,) = dead_letters([b"x"], ["reason"], "parse", [attributes]).to_pylist()
    assert row["attributes"] == [{"key": "kept", "value": "v"}]
    assert row["errorMessage"] == "reason (attributes cut from 3 to 1)"
    assert is_cut(row["errorMessage"])


def test_a_reason_that_quotes_the_mark_of_a_cut_is_not_cut():
    assert not is_cut("attribute t: '(payload cut from 5 bytes)' is neither RFC 3339 nor a number")

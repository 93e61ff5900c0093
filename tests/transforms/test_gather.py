from __future__ import annotations

import datetime as dt
import logging

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows

from common.limits import MAX_BATCH_BYTES
from transforms.files import ReadJsonLines
from transforms.gather import BatchMessages, Messages, MessagesCoder, message_bytes

DIRECT = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
"""Runs a TestStream, each of whose events is a bundle."""
FOREVER = 10**10


def streaming() -> beam.Pipeline:
    options = PipelineOptions(["--allow_unsafe_triggers"])
    options.view_as(StandardOptions).streaming = True
    return beam.Pipeline(DIRECT, options)


def in_a_bundle(messages: list, gather: BatchMessages, expected: list) -> None:
    with beam.Pipeline("FnApiRunner") as p:
        lists = p | beam.Create(messages, reshuffle=False) | gather
        assert_that(lists, equal_to(expected))


def in_bundles(bundles: list[list], gather: BatchMessages, expected: list) -> None:
    stream = test_stream.TestStream()
    for bundle in bundles:
        stream = stream.add_elements(bundle)
    stream = stream.advance_processing_time(FOREVER).advance_watermark_to_infinity()
    with streaming() as p:
        assert_that(p | stream | gather, equal_to(expected))


def test_a_list_has_the_wanted_rows_at_most():
    in_a_bundle([b"%d" % i for i in range(5)], BatchMessages(rows=2), [[b"0", b"1"], [b"2", b"3"], [b"4"]])


def test_a_list_has_the_allowed_bytes_at_most():
    gather = BatchMessages(max_bytes=10)
    messages = [b"a" * 4, b"b" * 6, b"c", b"d" * 11, b"e", b"f" * 9]
    in_a_bundle(messages, gather, [messages[:2], messages[2:3], messages[3:4], messages[4:]])


def test_attributes_count_as_bytes():
    message = PubsubMessage(b"data", {"ключ": "value"})
    assert message_bytes(message) == 4 + 4 + 5
    in_a_bundle([message] * 3, BatchMessages(max_bytes=30), [[message] * 2, [message]])


@pytest.mark.parametrize("read", [BatchMessages(), BatchMessages(millis=50), ReadJsonLines("*.jsonl")])
def test_beam_estimates_the_size_of_a_list_by_a_few_messages(read):
    p = beam.Pipeline()
    lists = (p if isinstance(read, ReadJsonLines) else p | beam.Create([b"a"])) | read
    coder = beam.coders.registry.get_coder(lists.element_type)
    assert coder == MessagesCoder()
    messages: list = [b"ab", PubsubMessage(b"a", {"k": ""})] * 5000
    assert coder.estimate_size(messages) == coder.get_impl().get_estimated_size_and_observables(messages)[0]
    assert coder.estimate_size(messages) == 20_000
    others: list = [None] * 10_000  # are not looked at
    others[::313] = [b"ab"] * 32
    assert coder.estimate_size(others) == 20_000
    assert coder.estimate_size([]) == 0


def test_a_list_of_messages_comes_out_of_its_coder_as_it_was():
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    messages = [b"a", PubsubMessage(b"b", {"k": "v"}, "7", publish_time=moment), b""]
    coder = beam.coders.registry.get_coder(Messages)
    assert coder.decode(coder.encode(messages)) == messages


def test_messages_of_the_longest_kind_do_not_add_up():
    message = b"x" * 3_000_000
    in_a_bundle([message] * 5, BatchMessages(), [[message] * 2, [message] * 2, [message]])
    assert 3 * len(message) > MAX_BATCH_BYTES


def test_messages_wait_for_those_of_other_bundles():
    in_bundles([[b"1"], [b"2", b"3"], [b"4"]], BatchMessages(millis=50), [[b"1", b"2", b"3", b"4"]])


def test_messages_do_not_wait_for_other_bundles_by_themselves():
    in_bundles([[b"1"], [b"2", b"3"], [b"4"]], BatchMessages(), [[b"1"], [b"2", b"3"], [b"4"]])


def test_what_waits_has_the_wanted_rows_at_most():
    bundles = [[b"1"], [b"2", b"3"], [b"4"], [b"5"]]
    in_bundles(bundles, BatchMessages(rows=3, millis=50), [[b"1", b"2", b"3"], [b"4", b"5"]])
    in_bundles(bundles, BatchMessages(rows=2, millis=50), [[b"1"], [b"2", b"3"], [b"4", b"5"]])


def test_what_waits_has_the_allowed_bytes_at_most():
    small, large = b"s" * 10, b"l" * 1000
    gather = BatchMessages(millis=50, max_bytes=900)
    in_bundles([[small], [small], [large], [small], [small]], gather, [[small] * 2, [large], [small] * 2])


def test_a_timer_lets_go_what_waits():
    stream = (
        test_stream.TestStream().add_elements([b"1"]).advance_processing_time(FOREVER).add_elements([b"2"])
    )
    with streaming() as p:
        lists = p | stream.advance_watermark_to_infinity() | BatchMessages(millis=50)
        assert_that(lists, equal_to([[b"1"], [b"2"]]))


def test_a_message_that_waited_is_as_it_came():
    message = PubsubMessage(b"data", {"key": "value"}, "id-1", dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    in_bundles([[message]], BatchMessages(millis=50), [[message]])


def test_other_windows_are_refused():
    p = beam.Pipeline("FnApiRunner")
    windows = p | beam.Create([b"1"]) | beam.WindowInto(FixedWindows(60))
    with pytest.raises(ValueError, match="BatchMessages: expected the global window, got FixedWindows"):
        windows | BatchMessages()


@pytest.mark.parametrize("millis", [0, 50])
def test_bundles_leave_no_lines_in_the_log(caplog, millis):
    def lines(bundles: int) -> int:
        caplog.clear()
        in_bundles([[b"1"]] * bundles, BatchMessages(rows=1, millis=millis), [[b"1"]] * bundles)
        return len(caplog.records)

    with caplog.at_level(logging.INFO):
        assert lines(20) == lines(1)

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.options.pipeline_options import PipelineOptions

from local.runner import LocalStreamingRunner, run_until_drained
from tests.local.runner_cases import publish

SEEN: list[bytes] = []


def see(payload: bytes) -> None:
    SEEN.append(payload)


@pytest.mark.integration
def test_a_checkpoint_of_a_stream_delays_no_acknowledgement(channel):
    SEEN.clear()
    publish(channel.topic, [b"a", b"b"])
    pipeline = beam.Pipeline(runner=LocalStreamingRunner(), options=PipelineOptions(["--streaming"]))
    messages = pipeline | ReadFromPubSub(subscription=channel.subscription)
    _ = messages | beam.Reshuffle() | beam.Map(see)
    result = pipeline.run()
    # A shuffle would be a step with state: its messages count as processed after some seconds.
    assert result._progress.ack_delay == 0
    run_until_drained(result, is_done=lambda: len(SEEN) == 2, timeout=60)
    assert sorted(SEEN) == [b"a", b"b"]

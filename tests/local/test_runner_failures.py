"""The local streaming runner when a step fails or its process dies, on the Pub/Sub emulator."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.runners.runner import PipelineState
from google.api_core.exceptions import NotFound

from local import topics
from local.runner import LocalResult, run_until_drained
from tests.local.runner_cases import (
    CALLS,
    GATE,
    SEEN,
    Collect,
    FailOn,
    WaitForGate,
    left_in,
    new_pipeline,
    publish,
    until,
)

pytestmark = pytest.mark.usefixtures("clean_records")

ROOT = Path(__file__).resolve().parents[2]


def outstanding(subscription):
    """The number of messages that are pulled and not acknowledged."""
    return sum(len(ack_ids) for _, ack_ids in subscription._pulled)


@pytest.mark.integration
def test_messages_are_acknowledged_after_they_were_processed(channel):
    publish(channel.topic, [b"a"])
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(WaitForGate())
    result = pipeline.run()
    (subscription,) = result._progress.subscriptions.values()
    until(lambda: SEEN)
    assert outstanding(subscription) == 1  # in the middle of the step
    GATE.set()
    until(lambda: outstanding(subscription) == 0)
    result.cancel()
    assert left_in(channel.subscription) == []


@pytest.mark.integration
def test_a_failed_pipeline_hands_its_messages_back(channel):
    publish(channel.topic, [b"good", b"bad"])
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(FailOn(b"bad", times=100))
    result = pipeline.run()
    until(lambda: result.state == PipelineState.FAILED)  # nobody has waited for it yet
    with pytest.raises(RuntimeError, match="planted"):
        result.wait_until_finish()
    assert result.state == PipelineState.FAILED
    assert CALLS["failed"] == 4  # as on Dataflow in batch mode
    assert sorted(left_in(channel.subscription)) == [b"bad", b"good"]


@pytest.mark.integration
def test_a_bundle_that_fails_once_is_tried_again_on_a_fresh_dofn(channel):
    publish(channel.topic, [b"a", b"bad", b"c"])
    pipeline = new_pipeline()
    (
        pipeline
        | ReadFromPubSub(subscription=channel.subscription)
        | "Fail" >> beam.ParDo(FailOn(b"bad", times=1))
        | "Collect" >> beam.ParDo(Collect())
    )
    run_until_drained(pipeline, is_done=lambda: len(SEEN) >= 3, timeout=60)
    assert sorted(SEEN) == [b"a", b"bad", b"c"]
    assert CALLS["setup"] == 3  # Fail twice, Collect once


@pytest.mark.integration
def test_run_until_drained_raises_what_made_the_pipeline_fail(channel):
    publish(channel.topic, [b"bad"])
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(FailOn(b"bad", times=100))
    with pytest.raises(RuntimeError, match="planted"):
        run_until_drained(pipeline, is_done=lambda: False, timeout=60)


@pytest.mark.integration
def test_a_failure_just_after_the_wait_is_raised_as_well(channel, monkeypatch):
    publish(channel.topic, [b"bad"])
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(FailOn(b"bad", times=100))
    result = pipeline.run()
    until(lambda: result.state == PipelineState.FAILED)
    monkeypatch.setattr(result, "_wait", lambda seconds: False)
    with pytest.raises(RuntimeError, match="planted"):
        result.wait_until_finish(duration=200)


@pytest.mark.integration
def test_run_until_drained_gives_up_and_says_how_far_it_came(channel):
    publish(channel.topic, [b"a", b"b"])
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(Collect())
    with pytest.raises(TimeoutError, match="2 messages were read"):
        run_until_drained(pipeline, is_done=lambda: False, timeout=2)
    assert sorted(SEEN) == [b"a", b"b"]


@pytest.mark.integration
def test_waiting_for_a_while_and_cancelling(channel):
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(Collect())
    result = pipeline.run()
    assert isinstance(result, LocalResult)
    assert result.wait_until_finish(duration=200) == PipelineState.RUNNING
    assert result.cancel() == PipelineState.CANCELLED
    assert result.wait_until_finish() == PipelineState.CANCELLED
    publish(channel.topic, [b"after"])
    assert left_in(channel.subscription) == [b"after"]
    assert SEEN == []


@pytest.mark.integration
def test_a_killed_process_loses_no_message(channel, pubsub_emulator, tmp_path):
    slow = topics.create_subscription(
        pubsub_emulator.project,
        f"{channel.topic.rsplit('/', 1)[1]}-slow",
        channel.topic,
        ack_deadline_seconds=10,
    )
    publish(channel.topic, [b"%d" % i for i in range(5)])
    marker = tmp_path / "started"
    program = f"""
        import pathlib, time
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from local.runner import LocalStreamingRunner

        class Hang(beam.DoFn):
            def process(self, element):
                pathlib.Path({str(marker)!r}).touch()
                time.sleep(600)

        pipeline = beam.Pipeline(runner=LocalStreamingRunner(), options=PipelineOptions(["--streaming"]))
        pipeline | beam.io.ReadFromPubSub(subscription={slow!r}) | beam.ParDo(Hang())
        pipeline.run().wait_until_finish()
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=environment)
    try:
        until(marker.exists)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = []
    until(lambda: found.extend(left_in(slow, 0.2)) or len(set(found)) == 5)
    topics.delete(slow)


@pytest.mark.integration
def test_a_missing_subscription_fails_the_pipeline(pubsub_emulator):
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription="projects/local-project/subscriptions/nowhere") | beam.Map(print)
    with pytest.raises(NotFound):
        run_until_drained(pipeline, timeout=60)

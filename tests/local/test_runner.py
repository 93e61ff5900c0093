"""The local streaming runner, on the Pub/Sub emulator."""

import collections
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms import window
from apache_beam.transforms.external import ExternalTransform
from apache_beam.transforms.util import BatchElements
from google.api_core.exceptions import NotFound
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.types import PullRequest, ReceivedMessage

from local import topics
from local.runner import LocalResult, LocalStreamingRunner, run_until_drained
from local.subscription import to_beam

ROOT = Path(__file__).resolve().parents[2]
SEEN: list = []
CALLS: collections.Counter = collections.Counter()
GATE = threading.Event()


@pytest.fixture(autouse=True)
def clean():
    SEEN.clear()
    CALLS.clear()
    GATE.clear()
    yield
    GATE.set()


class Collect(beam.DoFn):
    def setup(self):
        CALLS["setup"] += 1

    def start_bundle(self):
        CALLS["start_bundle"] += 1

    def process(self, element):
        SEEN.append(element)

    def finish_bundle(self):
        CALLS["finish_bundle"] += 1

    def teardown(self):
        CALLS["teardown"] += 1


class FailOn(beam.DoFn):
    """Fails on one payload, the first `times` times."""

    def __init__(self, payload, times):
        self.payload, self.times = payload, times

    def setup(self):
        CALLS["setup"] += 1

    def process(self, element):
        if element == self.payload and CALLS["failed"] < self.times:
            CALLS["failed"] += 1
            raise RuntimeError("planted")
        yield element


class WaitForGate(beam.DoFn):
    def process(self, element):
        SEEN.append(element)
        GATE.wait(60)


def publish(topic, payloads, **attributes):
    publisher = PublisherClient()
    for future in [publisher.publish(topic, payload, **attributes) for payload in payloads]:
        future.result(timeout=60)
    publisher.transport.close()


def new_pipeline(runner=None):
    return beam.Pipeline(runner=runner or LocalStreamingRunner(), options=PipelineOptions(["--streaming"]))


def left_in(subscription, wait=1.0):
    """The payloads that a subscription still delivers."""
    found = []
    deadline = time.monotonic() + wait
    with SubscriberClient() as client:
        while time.monotonic() < deadline:
            request = {"subscription": subscription, "max_messages": 100, "return_immediately": True}
            answer = client.transport.pull(PullRequest(request), timeout=30)
            found += [received.message.data for received in answer.received_messages]
            if not answer.received_messages:
                time.sleep(0.05)
    return found


def until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


# Reading -------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_drains_a_backlog_and_leaves_nothing_behind(channel):
    payloads = [b"%d" % i for i in range(2500)]
    publish(channel.topic, payloads, kind="x")
    pipeline = new_pipeline()
    (
        pipeline
        | ReadFromPubSub(subscription=channel.subscription, with_attributes=True)
        | beam.ParDo(Collect())
    )
    result = run_until_drained(pipeline, is_done=lambda: len(SEEN) >= len(payloads), timeout=60)
    assert sorted(message.data for message in SEEN) == sorted(payloads)
    assert {(type(message), message.attributes["kind"]) for message in SEEN} == {(PubsubMessage, "x")}
    assert all(message.message_id and message.publish_time.tzinfo for message in SEEN)
    assert (result.state, result.messages_read) == (PipelineState.CANCELLED, 2500)
    assert left_in(channel.subscription) == []


@pytest.mark.integration
def test_a_dofn_is_set_up_once_for_all_bundles(channel):
    publish(channel.topic, [b"%d" % i for i in range(300)])
    pipeline = new_pipeline(LocalStreamingRunner(max_messages=50))
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(Collect())
    run_until_drained(pipeline, quiet=0.3, timeout=60)
    assert len(SEEN) == 300
    assert CALLS["start_bundle"] == CALLS["finish_bundle"] >= 6
    assert (CALLS["setup"], CALLS["teardown"]) == (1, 1)


@pytest.mark.integration
def test_batches_that_wait_for_a_timer_are_drained_too(channel):
    publish(channel.topic, [b"%d" % i for i in range(700)])
    pipeline = new_pipeline()
    (
        pipeline
        | ReadFromPubSub(subscription=channel.subscription)
        | BatchElements(min_batch_size=500, max_batch_size=500, max_batch_duration_secs=0.4)
        | beam.ParDo(Collect())
    )
    run_until_drained(pipeline, quiet=0.2, timeout=60)
    assert sum(len(batch) for batch in SEEN) == 700
    assert left_in(channel.subscription) == []


@pytest.mark.integration
def test_several_outputs_and_runner_by_name(channel):
    class Route(beam.DoFn):
        def process(self, element):
            if int(element) % 2:
                yield beam.pvalue.TaggedOutput("odd", element)
            else:
                yield element

    publish(channel.topic, [b"%d" % i for i in range(10)])
    options = PipelineOptions(
        ["--streaming", "--runner=local.runner.LocalStreamingRunner", "--project=local-project"]
    )
    pipeline = beam.Pipeline(options=options)
    routed = (
        pipeline
        | ReadFromPubSub(subscription=channel.subscription)
        | beam.ParDo(Route()).with_outputs("odd", main="even")
    )
    routed.even | "Even" >> beam.Map(lambda element: ("even", element)) | "E" >> beam.ParDo(Collect())
    routed.odd | "Odd" >> beam.Map(lambda element: ("odd", element)) | "O" >> beam.ParDo(Collect())
    run_until_drained(pipeline, quiet=0.3, timeout=60)
    assert sorted(SEEN) == [("even", b"%d" % i) for i in (0, 2, 4, 6, 8)] + [
        ("odd", b"%d" % i) for i in (1, 3, 5, 7, 9)
    ]


def subscriptions(channel):
    publisher = PublisherClient()
    names = list(publisher.list_topic_subscriptions(topic=channel.topic))
    publisher.transport.close()
    return names


@pytest.mark.integration
def test_a_topic_is_read_from_the_moment_that_run_returns(pubsub_emulator, channel):
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(topic=channel.topic) | beam.ParDo(Collect())
    result = pipeline.run()
    assert len(subscriptions(channel)) == 2
    publish(channel.topic, [b"after"])
    run_until_drained(result, is_done=lambda: bool(SEEN), timeout=60)
    assert SEEN == [b"after"]
    assert subscriptions(channel) == [channel.subscription]


@pytest.fixture
def ctrl_c():
    """Sends SIGINT, and has Python heed it: `make test &` in a script starts it with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.integration
def test_ctrl_c_takes_the_subscription_of_a_topic_away(pubsub_emulator, channel, ctrl_c):
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(topic=channel.topic) | beam.ParDo(Collect())
    result = pipeline.run()
    assert len(subscriptions(channel)) == 2
    interrupt = threading.Timer(0.5, ctrl_c)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        result.wait_until_finish()
    interrupt.join()
    assert result.state == PipelineState.CANCELLED
    assert subscriptions(channel) == [channel.subscription]


@pytest.mark.integration
def test_a_signal_that_another_thread_was_given_ends_the_wait(channel, ctrl_c):
    """The kernel may hand a signal to any thread, and Python acts on it when the main thread next runs."""
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(topic=channel.topic) | beam.ParDo(Collect())
    result = pipeline.run()

    def interrupt():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        result.wait_until_finish()
    timer.join()
    assert result.state == PipelineState.CANCELLED


@pytest.mark.integration
def test_ctrl_c_does_not_wait_for_a_step_that_hangs(channel, ctrl_c, monkeypatch):
    monkeypatch.setattr("local.runner._GRACE_SECONDS", 0.5)
    publish(channel.topic, [b"held"])
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(WaitForGate())
    result = pipeline.run()
    until(lambda: SEEN)
    interrupt = threading.Timer(0.1, ctrl_c)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        result.wait_until_finish()
    assert result.state == PipelineState.CANCELLED
    assert not GATE.is_set()
    assert left_in(channel.subscription) == [b"held"]


@pytest.mark.integration
def test_a_backlog_is_not_late_data(channel):
    """Event times of an hour ago, in windows without allowed lateness: the clock as watermark drops them."""
    start = int(time.time()) - 3600
    for minute in range(3):
        publish(channel.topic, [b"m"] * 5, at=str((start + 60 * minute) * 1000))
    pipeline = new_pipeline()
    (
        pipeline
        | ReadFromPubSub(subscription=channel.subscription, timestamp_attribute="at")
        | beam.WindowInto(window.FixedWindows(60))
        | beam.WithKeys(0)
        | beam.GroupByKey()
        | beam.MapTuple(lambda key, values: len(list(values)))
        | beam.ParDo(Collect())
    )
    run_until_drained(pipeline, is_done=lambda: sum(SEEN) >= 15, timeout=60)
    assert sum(SEEN) == 15


def test_an_unreadable_event_time_becomes_the_publish_time():
    def at(text):
        message = {"data": b"x", "attributes": {"at": text}, "publish_time": {"seconds": 100, "nanos": 5000}}
        return to_beam(ReceivedMessage.pb(ReceivedMessage(message=message)), "at")[0].micros

    assert at("2500") == 2_500_000
    assert at("1970-01-01T00:00:02.5Z") == 2_500_000
    assert at("yesterday") == at("") == 100_000_005


class CountAndFailOnce(beam.DoFn):
    def __init__(self):
        self.elements = Metrics.counter("test", "elements")
        self.sizes = Metrics.distribution("test", "sizes")

    def process(self, element):
        self.elements.inc()
        self.sizes.update(len(element))
        if element == b"bad" and not CALLS["failed"]:
            CALLS["failed"] += 1
            raise RuntimeError("planted")
        SEEN.append(element)


@pytest.mark.integration
@pytest.mark.parametrize("payloads", [[b"x"] * 120, [*[b"x"] * 119, b"bad"]], ids=["good", "one retry"])
def test_counters_count_every_bundle_once(channel, payloads):
    publish(channel.topic, payloads)
    pipeline = new_pipeline(LocalStreamingRunner(max_messages=50))
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(CountAndFailOnce())
    result = run_until_drained(pipeline, quiet=0.3, timeout=60)
    metrics = result.metrics().query()
    assert {counter.key.metric.name: counter.committed for counter in metrics["counters"]} == {
        "elements": 120
    }
    (sizes,) = metrics["distributions"]
    assert (sizes.committed.count, sizes.committed.sum) == (120, sum(map(len, payloads)))


# Acknowledgement and failure -----------------------------------------------------------------------------


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


# What it refuses -----------------------------------------------------------------------------------------


def test_refuses_a_batch_pipeline():
    pipeline = beam.Pipeline(runner=LocalStreamingRunner(), options=PipelineOptions([]))
    pipeline | beam.Create([1])
    with pytest.raises(ValueError, match="--streaming"):
        pipeline.run()


@pytest.mark.integration
def test_refuses_id_label(channel):
    pipeline = new_pipeline()
    pipeline | ReadFromPubSub(subscription=channel.subscription, id_label="id")
    with pytest.raises(ValueError, match="id_label"):
        pipeline.run()


def test_refuses_another_runners_result():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pipeline | beam.Create([1])
    with pytest.raises(TypeError, match="LocalStreamingRunner"):
        run_until_drained(pipeline)


def test_refuses_cross_language_transforms():
    class Foreign(ExternalTransform):
        _urn = "foreign"

        def __init__(self):
            pass

        def expand(self, pbegin):
            return beam.pvalue.PCollection(pbegin.pipeline)

    pipeline = new_pipeline()
    pipeline | "Foreign" >> Foreign()
    with pytest.raises(ValueError, match=r"Foreign.*cross-language"):
        pipeline.run()

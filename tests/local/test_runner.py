"""The local streaming runner, on the Pub/Sub emulator."""

import collections
import os
import signal
import threading
import time

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct import transform_evaluator
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms import window
from apache_beam.transforms.external import ExternalTransform
from apache_beam.transforms.userstate import is_stateful_dofn
from apache_beam.transforms.util import BatchElements
from google.cloud.pubsub_v1 import PublisherClient
from google.pubsub_v1.types import ReceivedMessage

from local.runner import LocalStreamingRunner, run_until_drained
from local.subscription import to_beam
from tests.local.runner_cases import (
    CALLS,
    GATE,
    SEEN,
    Collect,
    WaitForGate,
    left_in,
    new_pipeline,
    publish,
    until,
)

pytestmark = pytest.mark.usefixtures("clean_records")

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
def test_a_step_is_asked_once_for_all_bundles_if_it_has_state(channel, monkeypatch):
    asked = collections.Counter()

    def ask(dofn):
        asked[id(dofn)] += 1
        return is_stateful_dofn(dofn)

    monkeypatch.setattr(transform_evaluator, "is_stateful_dofn", ask)
    publish(channel.topic, [b"%d" % i for i in range(20)])
    pipeline = new_pipeline(LocalStreamingRunner(max_messages=1))
    pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.ParDo(Collect())
    run_until_drained(pipeline, is_done=lambda: len(SEEN) >= 20, timeout=60)
    assert CALLS["start_bundle"] >= 20
    assert set(asked.values()) == {1}


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

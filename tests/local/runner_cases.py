"""Steps, messages and waits that the tests of the local streaming runner share."""

import collections
import threading
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.types import PullRequest

from local.runner import LocalStreamingRunner

SEEN: list = []


CALLS: collections.Counter = collections.Counter()


GATE = threading.Event()


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

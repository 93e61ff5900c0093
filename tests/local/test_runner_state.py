"""Steps with state on the local streaming runner, on the Pub/Sub emulator."""

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder, VarIntCoder
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec

from local.runner import LocalStreamingRunner, run_until_drained
from tests.local.runner_cases import CALLS, SEEN, Collect, new_pipeline, publish

pytestmark = pytest.mark.usefixtures("clean_records")

CELL = beam.DoFn.StateParam(ReadModifyWriteStateSpec("cell", VarIntCoder()))
BAG = beam.DoFn.StateParam(BagStateSpec("bag", BytesCoder()))


class Count(beam.DoFn):
    """Passes on how many elements of the key there were before, by a cell and by the length of a bag."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures

    def setup(self):
        CALLS["set up"] += 1

    def process(self, element, cell=CELL, bag=BAG):
        key, payload = element
        before = cell.read() or 0
        held = len(list(bag.read()))
        cell.write(before + 1)
        bag.add(payload)
        if payload == b"150" and CALLS["failed"] < self.failures:
            CALLS["failed"] += 1
            raise RuntimeError("planted")
        yield key, before, held

    def teardown(self):
        CALLS["torn down"] += 1


def run(channel, failures=0):
    publish(channel.topic, [b"%d" % i for i in range(300)])
    pipeline = new_pipeline(LocalStreamingRunner(max_messages=50))
    keyed = pipeline | ReadFromPubSub(subscription=channel.subscription) | beam.Map(lambda p: (int(p) % 2, p))
    keyed | beam.ParDo(Count(failures)) | beam.ParDo(Collect())
    run_until_drained(pipeline, is_done=lambda: len(SEEN) >= 300, timeout=60)


def expected():
    return sorted((key, n, n) for key in (0, 1) for n in range(150))


@pytest.mark.integration
def test_a_step_with_state_is_set_up_once_for_all_bundles(channel):
    run(channel)
    assert sorted(SEEN) == expected()
    assert (CALLS["set up"], CALLS["torn down"]) == (1, 1)


@pytest.mark.integration
def test_a_bundle_that_fails_and_is_repeated_changes_the_state_once(channel):
    run(channel, failures=2)
    assert CALLS["failed"] == 2
    assert sorted(SEEN) == expected()
    assert CALLS["set up"] == 3  # a DoFn that failed is not used again

"""A run: what goes out, when it ends, and that every message is accounted for."""

import json
import threading

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.api_core import exceptions

from features.ulb import FEATURES
from model.synthetic.generator import TransactionGenerator
from publisher.files import LABELS, JsonLinesFile, ParquetFile
from publisher.messages import MessageSource, Outgoing, default_start_time
from publisher.patterns import make
from publisher.publish import publish, write_jsonl
from publisher.pubsub import MAX_REQUEST_BYTES, MAX_REQUEST_MESSAGES, PubSubTopic, explain, split
from publisher.sink import PublishError
from publisher.ulb import ULB
from tests.publisher.servers import serve

TOPIC = "projects/test-project/topics/transactions"


def source(malformed_share=0.05, seed=1, fraud_share=0.05, **arguments):
    generator = TransactionGenerator(seed=seed, fraud_share=fraud_share, cycle=5_000)
    return MessageSource(generator, malformed_share, start_time=default_start_time(), **arguments)


def accounted(summary):
    assert summary.sent == summary.confirmed + summary.failed + summary.left_out
    assert summary.confirmed == summary.normal + summary.planted.total() + summary.malformed.total()
    assert summary.failed == summary.errors.total()


class TestFiles:
    def test_json_lines(self, tmp_path):
        path, labels = tmp_path / "m.jsonl", tmp_path / "l.parquet"
        summary = write_jsonl(path, source(), 3_500, labels)
        expected = source().take(3_500)
        assert path.read_bytes().split(b"\n")[:-1] == expected.payloads
        accounted(summary)
        assert (summary.sent, summary.confirmed, summary.failed) == (3_500, 3_500, 0)
        assert summary.stopped_by == "count"
        assert summary.bytes == sum(map(len, expected.payloads))
        assert summary.planted.total() == len(expected.about["planted_kind"].drop_null())
        table = pq.read_table(labels)
        assert table.schema.names == list(LABELS)
        assert table["index"].to_pylist() == list(range(3_500))
        assert table["transaction_id"].to_pylist() == expected.about["transaction_id"].to_pylist()
        assert table["planted_kind"].to_pylist() == expected.about["planted_kind"].to_pylist()
        assert table["malformed_kind"].to_pylist() == expected.about["malformed_kind"].to_pylist()

    def test_parquet(self, tmp_path):
        path, labels = tmp_path / "t.parquet", tmp_path / "l.parquet"
        with ParquetFile(path) as sink:
            summary = publish(source(), sink, count=3_500, labels=labels)
        accounted(summary)
        assert summary.left_out > 100
        good = source().take(3_500).well_formed()
        table = pq.read_table(path)
        assert table.schema.equals(ULB.table)
        assert table.column_names[-30:] == list(FEATURES)
        assert table["transaction_id"].to_pylist() == good.about["transaction_id"].to_pylist()
        assert table["merchant"].to_pylist() == good.about["merchant"].to_pylist()
        matrix = np.column_stack([table[name].to_numpy() for name in FEATURES])
        np.testing.assert_array_equal(matrix, good.about["features"].flatten().to_numpy().reshape(-1, 30))
        times = table["event_time"].cast(pa.int64()).to_pylist()
        documents = [json.loads(payload) for payload in good.payloads]
        assert [
            np.datetime64(time, "us").item().isoformat(timespec="milliseconds") + "Z" for time in times
        ] == [document["event_time"] for document in documents]
        assert pq.read_table(labels)["transaction_id"].to_pylist() == good.about["transaction_id"].to_pylist()

    def test_row_groups_are_large_however_small_the_portions(self, tmp_path):
        with ParquetFile(tmp_path / "t.parquet") as sink:
            publish(source(0), sink, count=70_000)
        metadata = pq.ParquetFile(tmp_path / "t.parquet").metadata
        assert metadata.num_rows == 70_000
        assert metadata.num_row_groups == 2

    def test_nothing_at_all_is_a_valid_file(self, tmp_path):
        stop = threading.Event()
        stop.set()
        with ParquetFile(tmp_path / "t.parquet") as sink:
            summary = publish(source(), sink, count=10, stop=stop)
        assert summary.stopped_by == "signal"
        assert pq.read_table(tmp_path / "t.parquet").num_rows == 0


class TestPace:
    """The load pattern, on a clock that the test moves."""

    class Clock:
        def __init__(self):
            self.now = 100.0

        def __call__(self):
            self.now += 0.001  # every look takes a millisecond
            return self.now

    @pytest.mark.parametrize("name", ["constant", "ramp", "spike", "burst"])
    def test_as_many_as_are_due(self, tmp_path, name):
        pattern = make(name, 200, 900, 4.0, None)
        clock, seen = self.Clock(), []
        with JsonLinesFile(tmp_path / "m.jsonl") as sink:
            summary = publish(
                source(), sink, pattern=pattern, duration=5.0, clock=clock, progress=seen.append,
                stop=NoWait(clock),
            )  # fmt: skip
        assert summary.stopped_by == "duration"
        # Between two looks at the clock a few more become due.
        assert 0 <= pattern.due(5.0) - summary.sent <= 0.02 * 900 + 1
        assert all(step.sent <= pattern.due(step.seconds) for step in seen)
        assert [step.sent for step in seen] == sorted(step.sent for step in seen)

    def test_count_ends_it_before_duration(self, tmp_path):
        clock = self.Clock()
        with JsonLinesFile(tmp_path / "m.jsonl") as sink:
            summary = publish(source(), sink, count=1_234, duration=1e6, clock=clock)
        assert (summary.stopped_by, summary.sent) == ("count", 1_234)

    def test_stop(self, tmp_path):
        stop = threading.Event()
        with JsonLinesFile(tmp_path / "m.jsonl") as sink:
            summary = publish(
                source(), sink, stop=stop, progress=lambda step: step.sent >= 5_000 and stop.set()
            )
        assert summary.stopped_by == "signal"
        assert summary.sent == summary.confirmed == 5_000
        assert (tmp_path / "m.jsonl").read_bytes().count(b"\n") == 5_000


class NoWait(threading.Event):
    """Waiting moves the test's clock and takes no time."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def wait(self, timeout=None):
        self.clock.now += timeout
        return self.is_set()


class TestRequests:
    """Publishing to a service that fails as it is told to."""

    def test_all_arrive_in_order_of_requests(self, tmp_path):
        with serve(lambda call, first: None) as service, PubSubTopic(TOPIC, client=service.client) as topic:
            summary = publish(source(), topic, count=12_345, tee=tmp_path / "t.jsonl")
        accounted(summary)
        assert summary.confirmed == 12_345
        arrived = [payload for request in service.received for payload in request]
        expected = source().take(12_345).payloads
        assert sorted(arrived) == sorted(expected)
        assert (tmp_path / "t.jsonl").read_bytes().split(b"\n")[:-1] == expected
        assert max(map(len, service.received)) <= MAX_REQUEST_MESSAGES

    def test_transient_errors_are_retried(self):
        codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED]
        with (
            serve(lambda call, first: codes[call] if call < 3 else None) as service,
            PubSubTopic(TOPIC, client=service.client) as topic,
        ):
            summary = publish(source(), topic, count=2_000)
        assert (summary.confirmed, summary.failed, summary.stopped_by) == (2_000, 0, "count")

    def test_a_permanent_error_ends_the_run_and_is_counted(self, tmp_path):
        """The first request arrives; then the topic is gone."""

        def answer(call, first):
            return None if call == 0 else grpc.StatusCode.NOT_FOUND

        with serve(answer) as service, PubSubTopic(TOPIC, client=service.client, workers=1) as topic:
            summary = publish(source(0), topic, tee=tmp_path / "t.jsonl", labels=tmp_path / "l.parquet")
        accounted(summary)
        assert summary.stopped_by == "failures"
        assert summary.confirmed == 1_000
        assert summary.failed >= 1_000
        (reason,) = summary.errors
        assert f"{TOPIC} does not exist" in reason
        assert "gcloud pubsub topics create transactions --project=test-project" in reason
        # What did not arrive is in no file.
        assert (tmp_path / "t.jsonl").read_bytes().split(b"\n")[:-1] == source(0).take(1_000).payloads
        assert pq.read_table(tmp_path / "l.parquet").num_rows == 1_000

    def test_a_service_that_stays_away_is_given_up(self):
        with (
            serve(lambda call, first: grpc.StatusCode.UNAVAILABLE) as service,
            PubSubTopic(TOPIC, timeout=1.0, client=service.client) as topic,
        ):
            summary = publish(source(), topic)
        accounted(summary)
        assert summary.stopped_by == "failures"
        assert summary.confirmed == 0
        assert summary.failed >= 3_000

    def test_one_lost_request_does_not_end_the_run(self):
        lost = source().take(6_000).payloads[5_000]
        with (
            serve(lambda call, first: grpc.StatusCode.UNAVAILABLE if first == lost else None) as service,
            PubSubTopic(TOPIC, timeout=1.0, client=service.client) as topic,
        ):
            summary = publish(source(), topic, count=10_000)
        accounted(summary)
        assert (summary.stopped_by, summary.confirmed, summary.failed) == ("count", 9_000, 1_000)

    def test_a_failure_at_the_very_end_is_counted(self):
        with (
            serve(lambda call, first: grpc.StatusCode.PERMISSION_DENIED) as service,
            PubSubTopic(TOPIC, client=service.client) as topic,
        ):
            summary = publish(source(), topic, count=10)
        assert (summary.sent, summary.confirmed, summary.failed) == (10, 0, 10)
        assert "roles/pubsub.publisher" in next(iter(summary.errors))

    def test_large_messages_are_split_by_size(self):
        messages = source(1.0, malformed_kinds=["oversize"]).take(500)
        portions = list(split(messages))
        assert [p for portion in portions for p in portion.payloads] == messages.payloads
        assert all(sum(map(len, portion.payloads)) <= MAX_REQUEST_BYTES for portion in portions)
        assert len(portions) == 7  # 66,000 bytes each, 75 to a request

    def test_attributes_count_as_a_part_of_the_size(self):
        """As of dead letters that are sent again."""
        attributes = {f"key {i}": "ü" * 500 for i in range(10)}
        messages = Outgoing([b"{"] * 1_000, [attributes] * 1_000, pa.record_batch({"n": range(1_000)}))
        portions = list(split(messages))
        assert sum(map(len, portions)) == 1_000
        assert len(portions) == 3  # 10,051 bytes each

    @pytest.mark.parametrize(
        ("topic", "reason"),
        [
            ("transactions", "got 'transactions'$"),
            ("projects/my-project/subscriptions/s", "got 'projects/my-project/subscriptions/s'$"),
            ("projects/my-project/topics/a/b", "TOPIC 'a/b' has '/'"),
            ("projects/p/topics/abc", "PROJECT 'p' has 1 character, expected 6 to 30$"),
        ],
    )
    def test_the_name_of_a_topic(self, topic, reason):
        with pytest.raises(ValueError, match=f"--topic: expected projects/PROJECT/topics/TOPIC, .*{reason}"):
            PubSubTopic(topic)

    @pytest.mark.parametrize(
        ("error", "fatal"),
        [
            (exceptions.NotFound("x"), True),
            (exceptions.InvalidArgument("x"), True),
            (exceptions.Unauthenticated("x"), True),
            (exceptions.ServiceUnavailable("x"), False),
            (exceptions.RetryError("x", cause=None), False),
        ],
    )
    def test_which_errors_are_final(self, error, fatal):
        explained = explain(error, TOPIC)
        assert isinstance(explained, PublishError)
        assert explained.fatal == fatal
        assert TOPIC in str(explained)

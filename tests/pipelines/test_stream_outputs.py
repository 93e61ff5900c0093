"""A whole stream on this machine: every scored row on a topic, windows, and rows that can be joined."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from google.cloud import pubsub_v1

from local.runner import LocalStreamingRunner, run_until_drained
from model import artifact
from model.synthetic.generator import TransactionGenerator
from pipelines import streaming
from publisher.messages import MessageSource
from publisher.publish import publish
from publisher.pubsub import PubSubTopic
from tests.pipelines.test_end_to_end import endpoints, low_thresholds, rows
from transforms import metrics

pytestmark = pytest.mark.integration

COUNT = 400


def pulled(subscription):
    with pubsub_v1.SubscriberClient() as client:
        while messages := client.pull(
            subscription=subscription, max_messages=1000, return_immediately=True
        ).received_messages:
            client.acknowledge(subscription=subscription, ack_ids=[each.ack_id for each in messages])
            yield from (each.message for each in messages)


def test_rows_join_to_their_messages_and_windows_count_them(
    local_stack, channel, dataset, bigquery_client, model_dir
):
    scores_topic, scores_subscription = f"{channel.topic}-scores", f"{channel.subscription}-scores"
    pubsub_v1.PublisherClient().create_topic(name=scores_topic)
    with pubsub_v1.SubscriberClient() as subscriber:
        subscriber.create_subscription(name=scores_subscription, topic=scores_topic)
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={model_dir}",
        f"--output_dataset={local_stack.project}.{dataset}",
        f"--scores_topic={scores_topic}",
        "--window_seconds=60",
        "--profile_every=1",
        "--profile_seconds=0",
        "--trace_messages",
        "--pass_through=transaction_id,absent",
        *low_thresholds(model_dir),
        *endpoints(local_stack),
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())
    with PubSubTopic(channel.topic) as topic:
        publish(MessageSource(TransactionGenerator(seed=3)), topic, count=COUNT)
    run_until_drained(
        result, lambda: metrics.totals(result).get(metrics.ROWS_SCORED, 0) >= COUNT, timeout=120
    )

    scores = rows(bigquery_client, dataset, "scores_latest").to_pylist()
    assert len(scores) == len({row["message_id"] for row in scores}) == COUNT
    for row in scores:
        assert json.loads(row["pass_through"]) == {"transaction_id": row["transaction_id"]}
        assert row["read_at"] <= row["scored_at"] <= row["stored_at"]
        assert row["publish_time"] is not None

    bodies = {
        body["transaction_id"]: body
        for body in map(json.loads, (m.data for m in pulled(scores_subscription)))
    }
    assert {name: body["anomaly_score"] for name, body in bodies.items()} == {
        row["transaction_id"]: row["anomaly_score"] for row in scores
    }

    windows = rows(bigquery_client, dataset, "score_windows_latest").to_pylist()
    severities = Counter(row["severity"] for row in scores)
    assert sum(row["transactions"] for row in windows) == COUNT
    assert sum(row["high"] for row in windows) == severities["high"]
    assert {row["window_start"] for row in windows} == {
        row["event_time"].replace(second=0, microsecond=0) for row in scores
    }
    for row in windows:
        assert sum(item["transactions"] for item in row["latency_bins"]) == row["transactions"]

    profiles = Counter()
    for row in rows(bigquery_client, dataset, "feature_profiles_latest").to_pylist():
        assert sum(item["transactions"] for item in row["bins"]) == row["transactions"]
        profiles[row["feature"]] += row["transactions"]
    assert set(profiles) == {*artifact.verify(model_dir).ranges.quantiles, "anomaly_score"}
    assert set(profiles.values()) == {COUNT}

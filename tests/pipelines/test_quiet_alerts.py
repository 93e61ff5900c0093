"""The cooldown of alert messages in a whole stream on this machine, from the tables and the topic."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from google.cloud import pubsub_v1

from common.options import OptionError
from local.runner import LocalStreamingRunner, run_until_drained
from pipelines import streaming
from tests.pipelines.test_end_to_end import endpoints, rows
from tests.pipelines.test_stream_outputs import pulled
from tests.transforms.test_detect import STRANGE
from transforms import metrics

ACCOUNTS = ["acc-1", "acc-2", "acc-3", None]
EACH = 15
NAMES = [
    "--subscription=projects/my-project/subscriptions/transactions",
    "--model=out/model",
    "--output_dataset=my-project.anomaly",
]


def published(topic, first, count):
    """Publishes anomalous transactions, account by account in turn; waits until the topic has them."""
    with pubsub_v1.PublisherClient() as client:
        for i in range(first, first + count):
            row = {"transaction_id": f"t{i}", "account_id": ACCOUNTS[i % len(ACCOUNTS)], "features": STRANGE}
            client.publish(topic, json.dumps(row).encode()).result()


@pytest.mark.integration
def test_sent_and_suppressed_are_all_alerts_also_where_messages_come_twice(
    local_stack, channel, dataset, bigquery_client, model_dir
):
    topic, subscription = f"{channel.topic}-alerts", f"{channel.subscription}-alerts"
    pubsub_v1.PublisherClient().create_topic(name=topic)
    with pubsub_v1.SubscriberClient() as subscriber:
        subscriber.create_subscription(name=subscription, topic=topic)
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={model_dir}",
        f"--output_dataset={local_stack.project}.{dataset}",
        f"--alert_topic={topic}",
        "--alert_cooldown=1h",
        *endpoints(local_stack),
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())
    count = EACH * len(ACCOUNTS)

    def stored():
        return rows(bigquery_client, dataset, "alerts").num_rows

    published(channel.topic, 0, count)
    published(channel.topic, 0, len(ACCOUNTS) - 1)  # the first of each account again
    total = count + len(ACCOUNTS) - 1
    run_until_drained(result, lambda: stored() >= total, timeout=120)

    alerts = rows(bigquery_client, dataset, "alerts_latest").to_pylist()
    assert len(alerts) == count
    marks = Counter((row["account_id"], row["suppressed"]) for row in alerts)
    messages = Counter(json.loads(message.data).get("account_id") for message in pulled(subscription))
    for account in ACCOUNTS[:-1]:
        assert (marks[account, False], marks[account, True], messages[account]) == (1, EACH - 1, 1)
    assert (marks[None, False], marks[None, True], messages[None]) == (EACH, 0, EACH)
    assert metrics.totals(result)[metrics.ALERTS_SUPPRESSED] == (EACH - 1) * (len(ACCOUNTS) - 1)


@pytest.mark.parametrize("flag", ["--alert_cooldown=10m", "--max_alert_messages_per_minute=5"])
def test_without_a_topic_there_is_nothing_to_choose(flag):
    with pytest.raises(OptionError, match=r"expected with --alert_topic"):
        streaming.parse([*NAMES, flag])


@pytest.mark.parametrize("text", ["0s", "ten", "10"])
def test_a_cooldown_is_a_duration_above_0(text, capsys):
    with pytest.raises(SystemExit):
        streaming.parse([*NAMES, f"--alert_cooldown={text}"])
    assert "argument --alert_cooldown: expected a duration" in capsys.readouterr().err

"""The entry points on the real emulators: stream and batch, conservation, and the same scores from both."""

import datetime as dt
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery, pubsub_v1

from features.ulb import FEATURES, LABEL
from local.runner import LocalStreamingRunner, run_until_drained
from model import artifact
from model.synthetic.generator import TransactionGenerator
from pipelines import batch, streaming
from publisher.messages import MessageSource
from publisher.publish import publish, write_jsonl
from publisher.pubsub import PubSubTopic
from transforms import metrics
from transforms.files import BLANK_LINES
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.schema import to_bigquery

pytestmark = pytest.mark.integration

COUNT = 1_500


def source(seed=5, malformed_share=0.05):
    generator = TransactionGenerator(seed=seed, fraud_share=0.03, cycle=COUNT)
    return MessageSource(generator, malformed_share=malformed_share)


def endpoints(stack):
    return [
        f"--bigquery_endpoint={stack.bigquery}",
        f"--bigquery_storage_endpoint={stack.bigquery_storage}",
    ]


def rows(client, dataset, table):
    result = client.query(f"SELECT * FROM `{client.project}.{dataset}.{table}`").result()
    return result.to_arrow(create_bqstorage_client=False)


def run_batch(argv):
    result = batch.run(argv)
    result.wait_until_finish()
    return metrics.totals(result)


def low_thresholds(model_dir):
    """Thresholds that a model trained on random rows alerts at, for transactions of the generator."""
    medium = artifact.verify(model_dir).thresholds["medium"]
    return [f"--medium_threshold={medium}", f"--high_threshold={medium * 10}"]


@pytest.fixture
def streamed(local_stack, channel, dataset, bigquery_client, model_dir, tmp_path):
    """A finished stream over messages of every kind: its counters, and the file of what was published."""
    pubsub = pubsub_v1.PublisherClient()
    alert_topic = f"{channel.topic}-alerts"
    pubsub.create_topic(name=alert_topic)
    alert_subscription = f"{channel.subscription}-alerts"
    with pubsub_v1.SubscriberClient() as subscriber:
        subscriber.create_subscription(name=alert_subscription, topic=alert_topic)
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={model_dir}",
        f"--output_dataset={local_stack.project}.{dataset}",
        f"--alert_topic={alert_topic}",
        *low_thresholds(model_dir),
        *endpoints(local_stack),
    ]
    lines = tmp_path / "published.jsonl"
    result = streaming.run(argv, runner=LocalStreamingRunner())
    with PubSubTopic(channel.topic) as topic:
        summary = publish(source(), topic, count=COUNT, tee=lines, labels=tmp_path / "labels.parquet")

    def is_done():
        totals = metrics.totals(result)
        through = totals.get(metrics.ROWS_SCORED, 0) + totals.get(metrics.DEAD_LETTERS, 0)
        return through >= summary.confirmed

    run_until_drained(result, is_done, timeout=120)
    return summary, metrics.totals(result), lines, alert_subscription


def test_stream_loses_nothing_and_batch_gives_the_same_scores(
    streamed, local_stack, dataset, bigquery_client, model_dir, tmp_path
):
    summary, totals, lines, alert_subscription = streamed
    malformed = sum(summary.malformed.values())
    assert summary.confirmed == COUNT
    assert malformed > 20
    assert totals[metrics.ROWS_IN] == COUNT
    assert totals[metrics.ROWS_SCORED] == COUNT - malformed
    assert totals[metrics.DEAD_LETTERS] == malformed
    scores = rows(bigquery_client, dataset, "scores_latest")
    errors = rows(bigquery_client, dataset, "error_records_latest")
    alerts = rows(bigquery_client, dataset, "alerts_latest")
    assert scores.num_rows == totals[metrics.ROWS_SCORED]
    assert errors.num_rows == malformed
    assert set(errors.column("stage").to_pylist()) == {"parse"}
    severities = Counter(scores.column("severity").to_pylist())
    assert alerts.num_rows == totals[metrics.ALERTS] == severities["medium"] + severities["high"] > 0
    check_alert_messages(alert_subscription, alerts)

    # The planted kind travels as an attribute, so it reaches no payload and no table but the dead letters'.
    assert "planted_kind" not in lines.read_text(encoding="utf-8", errors="replace")

    output = tmp_path / "scored"
    counted = run_batch(
        [f"--input={lines}", f"--model={model_dir}", f"--output={output}", *low_thresholds(model_dir)]
    )
    # An empty message is a dead letter of the stream, and a blank line of a file is none.
    blank = summary.malformed["empty"]
    assert counted.pop(BLANK_LINES, 0) == blank
    for name in (metrics.ROWS_IN, metrics.DEAD_LETTERS, f"{metrics.DEAD_LETTERS}.parse.payload"):
        counted[name] += blank
    assert counted == {name: totals[name] for name in counted}
    batched = pq.read_table(sorted(output.glob("scores-*.parquet")))
    assert by_id(batched) == by_id(scores)
    assert len(by_id(scores)) == COUNT - malformed
    severity = dict(
        zip(*(batched.column(n).to_pylist() for n in ("transaction_id", "severity")), strict=True)
    )
    assert severity == dict(
        zip(*(scores.column(n).to_pylist() for n in ("transaction_id", "severity")), strict=True)
    )
    labels = pq.read_table(tmp_path / "labels.parquet").column("transaction_id").to_pylist()
    assert by_id(scores).keys() <= set(labels)


def by_id(scores):
    """The scores by transaction."""
    return dict(
        zip(*(scores.column(n).to_pylist() for n in ("transaction_id", "anomaly_score")), strict=True)
    )


def check_alert_messages(subscription, alerts):
    expected = {row["transaction_id"]: row for row in alerts.to_pylist()}
    seen = set()
    with pubsub_v1.SubscriberClient() as client:
        while pulled := client.pull(
            subscription=subscription, max_messages=1000, return_immediately=True
        ).received_messages:
            client.acknowledge(subscription=subscription, ack_ids=[message.ack_id for message in pulled])
            for message in pulled:
                body, attributes = json.loads(message.message.data), dict(message.message.attributes)
                row = expected[body["transaction_id"]]
                seen.add(body["transaction_id"])
                assert body["anomaly_score"] == row["anomaly_score"]
                assert attributes["severity"] == body["severity"] == row["severity"]
                top = [item["feature"] for item in row["top_features"]]
                assert attributes["top_features"] == ",".join(top)
    assert seen == set(expected)


def test_batch_from_a_file_to_tables_and_from_a_table_to_files(
    local_stack, dataset, bigquery_client, model_dir, tmp_path
):
    """JSON lines -> BigQuery, and BigQuery -> Parquet by table, filter and query, with the same scores."""
    lines = tmp_path / "messages.jsonl"
    summary = write_jsonl(lines, source(), COUNT)
    blank = summary.malformed["empty"]
    malformed = sum(summary.malformed.values()) - blank
    name = f"{local_stack.project}.{dataset}"
    totals = run_batch(
        [f"--input={lines}", f"--model={model_dir}", f"--output_dataset={name}", *endpoints(local_stack)]
    )
    assert totals[metrics.ROWS_IN] == COUNT - blank
    assert totals.get(BLANK_LINES, 0) == blank
    assert totals["scores.rows_written"] == totals[metrics.ROWS_SCORED] == COUNT - blank - malformed
    assert totals["error_records.rows_written"] == totals[metrics.DEAD_LETTERS] == malformed
    scores = rows(bigquery_client, dataset, "scores")
    assert scores.num_rows == COUNT - blank - malformed

    transactions = ulb_table(bigquery_client, f"{name}.transactions", lines)
    for number, (arguments, count) in enumerate(
        [
            ([f"--input_table={name}.transactions"], transactions.num_rows),
            ([f"--input_table={name}.transactions", "--row_filter=Amount > 50"], over(transactions, 50)),
            (
                [f"--input_query=SELECT * FROM `{name}.transactions` WHERE Amount > 50"],
                over(transactions, 50),
            ),
        ]
    ):
        output = tmp_path / f"scored-{number}"
        run_batch([*arguments, f"--model={model_dir}", f"--output={output}", *endpoints(local_stack)])
        scored = pq.read_table(sorted(output.glob("scores-*.parquet")))
        assert scored.num_rows == count > 100
        assert by_id(scored).items() <= by_id(scores).items()


def ulb_table(client, table, lines):
    """A table in the ULB layout, label included, of the valid transactions of a file."""
    rules = MessageRules(default_time=dt.datetime.now(dt.UTC))
    parsed = parse_messages(MessageColumns(lines.read_bytes().splitlines()), rules).transactions
    columns = {"transaction_id": parsed.column("transaction_id"), "event_time": parsed.column("event_time")}
    matrix = parsed.column("features").flatten().to_numpy().reshape(-1, len(FEATURES))
    columns |= {name: pa.array(matrix[:, i].astype("float64")) for i, name in enumerate(FEATURES)}
    columns[LABEL] = pa.array([0] * parsed.num_rows)
    transactions = pa.table(columns)
    path = lines.with_suffix(".parquet")
    pq.write_table(transactions, path)
    client.create_table(bigquery.Table(table, schema=to_bigquery(transactions.schema)))
    with path.open("rb") as file:
        config = bigquery.LoadJobConfig(source_format="PARQUET")
        client.load_table_from_file(file, table, job_config=config).result()
    return transactions


def over(table, amount):
    return sum(value > amount for value in table.column("Amount").to_pylist())


def test_parquet_and_json_lines_give_the_same_scores(model_dir, tmp_path):
    """The file formats, without an emulator; full detail."""
    from publisher.files import ParquetFile

    path = tmp_path / "transactions.parquet"
    with ParquetFile(path) as sink:
        publish(source(malformed_share=0.0), sink, count=COUNT)
    write_jsonl(tmp_path / "transactions.jsonl", source(malformed_share=0.0), COUNT)
    tables = []
    for suffix in ("parquet", "jsonl"):
        output = tmp_path / suffix
        totals = run_batch(
            [
                f"--input={tmp_path / 'transactions'}.{suffix}",
                f"--model={model_dir}",
                f"--output={output}",
                "--output_detail=full",
            ]
        )
        assert totals[metrics.ROWS_SCORED] == COUNT
        tables.append(pq.read_table(sorted(output.glob("scores-*.parquet"))))
    assert by_id(tables[0]) == by_id(tables[1])
    assert len(by_id(tables[0])) == COUNT
    assert "normalized_MAE" in tables[0].column_names


def test_a_transaction_without_event_time_is_one_row_of_the_views(
    local_stack, channel, dataset, bigquery_client, model_dir, tmp_path
):
    """A batch job twice over a file, and a stream in which each message was published twice."""
    payloads = [
        json.dumps({"transaction_id": f"tx-{i}", "account_id": "a", "features": [1e4 * i] * 30}).encode()
        for i in range(3)
    ]
    lines = tmp_path / "messages.jsonl"
    lines.write_bytes(b"\n".join(payloads))
    common = [
        f"--model={model_dir}",
        f"--output_dataset={local_stack.project}.{dataset}",
        *low_thresholds(model_dir),
        *endpoints(local_stack),
    ]
    for _ in range(2):
        assert run_batch([f"--input={lines}", *common])[metrics.ROWS_SCORED] == 3
    result = streaming.run([f"--subscription={channel.subscription}", *common], runner=LocalStreamingRunner())
    publisher = pubsub_v1.PublisherClient()
    for payload in [*payloads, *payloads]:
        publisher.publish(channel.topic, payload).result()
    run_until_drained(result, lambda: metrics.totals(result).get(metrics.ROWS_SCORED, 0) >= 6, timeout=120)

    stored = rows(bigquery_client, dataset, "scores").to_pylist()
    assert len(stored) >= 12
    assert len({row["event_time"] for row in stored}) > 3  # the clock of each
    assert {row["event_time_derived"] for row in stored} == {True}
    latest = rows(bigquery_client, dataset, "scores_latest").to_pylist()
    assert sorted(row["transaction_id"] for row in latest) == ["tx-0", "tx-1", "tx-2"]
    newest = {
        name: max(row["scored_at"] for row in stored if row["transaction_id"] == name)
        for name in ("tx-0", "tx-1", "tx-2")
    }
    assert {row["transaction_id"]: row["scored_at"] for row in latest} == newest
    alerts = rows(bigquery_client, dataset, "alerts_latest").column("transaction_id").to_pylist()
    assert len(alerts) == len(set(alerts)) > 0

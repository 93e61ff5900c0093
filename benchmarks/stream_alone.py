"""The local emulators without the pipeline, for `benchmarks.stream`, each part as fast as it goes."""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager

import pyarrow as pa

from benchmarks import sources_sinks_data as data
from common.clients import BigQueryEndpoints
from common.pubsub import subscriber_client
from local import topics
from local.endpoints import Endpoints
from local.subscription import Subscription
from publisher.messages import Source
from publisher.publish import publish
from publisher.pubsub import PubSubTopic
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream
from transforms.schema import SCORES
from transforms.tables import create_tables, scores_table

_PULLED = 1000


def measure(endpoints: Endpoints, source: Source, count: int, bundle_rows: int) -> dict[str, float]:
    """Messages or rows a second through each part.

    Args:
      endpoints: of the stack, whose environment is active.
      source: of the messages.
      count: messages of each part.
      bundle_rows: rows of an append: those of a bundle of the pipeline.
    """
    topic, _ = _channel(endpoints)
    rates = {"publish": _published(topic, source, count)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(time.sleep, 0).result()  # starts
        for name, rows in (("publish, pull", 0), ("publish, pull, append", bundle_rows)):
            topic, subscription = _channel(endpoints)
            taking = pool.submit(take, endpoints, subscription, count, rows)
            _published(topic, source, count)
            rates[name] = count / taking.result()
        rates["append"] = pool.submit(append, endpoints, count, bundle_rows).result()
    return rates


def _channel(endpoints: Endpoints) -> tuple[str, str]:
    name = f"alone-{uuid.uuid4().hex[:12]}"
    topic = topics.create_topic(endpoints.project, name)
    return topic, topics.create_subscription(endpoints.project, name, topic)


def _published(topic: str, source: Source, count: int) -> float:
    with PubSubTopic(topic) as sink:
        return publish(source, sink, count=count).rate


def take(endpoints: Endpoints, subscription: str, count: int, bundle_rows: int) -> float:
    """Seconds from the first message to the last, pulled and acknowledged as the pipeline does, in a process.

    Args:
      endpoints: of the stack.
      subscription: gets the messages.
      count: how many come.
      bundle_rows: above 0, a row is appended for each message, at most so many at a time.
    """
    started = 0.0
    with endpoints.activate(), subscriber_client() as client, _appender(endpoints) as store:
        reader = Subscription(client, subscription, None, _PULLED)
        reader.open()
        left = count
        while left > 0:
            reader.acknowledge()
            messages = reader.pull()
            started = started or (time.perf_counter() if messages else 0.0)
            left -= len(messages)
            for start in range(0, len(messages) if bundle_rows else 0, bundle_rows or 1):
                store(min(bundle_rows, len(messages) - start))
        reader.acknowledge()
        reader.confirm()
        seconds = time.perf_counter() - started
        reader.close()
    return seconds


def append(endpoints: Endpoints, count: int, bundle_rows: int) -> float:
    """Rows a second of appends, one after the other as the pipeline sends them, in a process."""
    with endpoints.activate(), _appender(endpoints) as store:
        store(bundle_rows)  # connects
        started = time.perf_counter()
        for _ in range(0, count, bundle_rows):
            store(bundle_rows)
        return count / (time.perf_counter() - started)


@contextmanager
def _appender(endpoints: Endpoints) -> Iterator[Callable[[int], object]]:
    """A function that appends so many rows of scores to a table of its own."""
    google = BigQueryEndpoints(endpoints.bigquery, endpoints.bigquery_storage)
    dataset = f"{endpoints.project}.alone_{uuid.uuid4().hex[:12]}"
    with closing(google.client(endpoints.project)) as client:
        create_tables(client, dataset, [scores_table()])
    channel = WriteChannel(google.write_client)
    appender = Appender(channel, default_stream(f"{dataset}.scores"), SCORES)
    rows: pa.RecordBatch = data.scores(1)[0]
    try:
        yield lambda number: appender.append([rows.slice(0, number)])
    finally:
        appender.close()
        channel.close()

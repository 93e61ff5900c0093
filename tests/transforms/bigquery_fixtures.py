"""The scripted server with appenders to it, for tests that name this file in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.cloud.bigquery_storage_v1 import BigQueryWriteClient

from common.clients import BigQueryEndpoints
from tests.transforms.bigquery_cases import SCHEMA, TABLE, FakeClock, NewAppender, new_pending_stream
from tests.transforms.bigquery_server import ScriptedBigQuery
from transforms.bigquery.answers import AppendOptions
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    with ScriptedBigQuery(TABLE) as server:
        yield server


@pytest.fixture
def write_channel(server: ScriptedBigQuery) -> Iterator[WriteChannel]:
    write_channel = WriteChannel(BigQueryEndpoints(storage=server.address).write_client)
    yield write_channel
    write_channel.close()


@pytest.fixture
def client(write_channel: WriteChannel) -> BigQueryWriteClient:
    return write_channel.client


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sleeps(clock: FakeClock) -> list[float]:
    return clock.sleeps


@pytest.fixture
def new_appender(write_channel: WriteChannel, clock: FakeClock) -> Iterator[NewAppender]:
    made: list[Appender] = []

    def make(stream: str = default_stream(TABLE), **options: Any) -> Appender:
        appender = Appender(write_channel, stream, SCHEMA, AppendOptions(**options), clock.sleep, clock)
        made.append(appender)
        return appender

    yield make
    for appender in made:
        appender.close()


@pytest.fixture
def appender(new_appender: NewAppender) -> Appender:
    """To the default stream, two rows a request."""
    return new_appender(max_request_rows=2, response_timeout=20)


@pytest.fixture
def pending(server: ScriptedBigQuery, write_channel: WriteChannel, new_appender: NewAppender) -> Appender:
    """To a pending stream, two rows a request."""
    return new_appender(new_pending_stream(server, write_channel), max_request_rows=2, response_timeout=20)

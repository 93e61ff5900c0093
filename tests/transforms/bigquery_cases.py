"""Rows, streams and a clock for the tests of appends."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types

from tests.transforms.bigquery_server import ScriptedBigQuery
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.sending import Appended

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("values", pa.list_(pa.float64()))])
TABLE = "p.d.t"

NewAppender = Callable[..., Appender]
"""Makes an appender: options by name, `stream` other than the default one."""


class FakeClock:
    """A clock that only waiting moves.

    Attributes:
      now: seconds.
      sleeps: the waits so far.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def batch(*ids: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"id": i, "values": [1.0]} for i in ids], SCHEMA)


def ids(rows: list[dict]) -> list[str]:
    return [row["id"] for row in rows]


def refused(result: Appended) -> list[tuple[str, str]]:
    return [
        (row["id"], reason)
        for part in result.refused
        for row, reason in zip(part.rows.to_pylist(), part.reasons, strict=True)
    ]


def new_pending_stream(server: ScriptedBigQuery, channel: WriteChannel) -> str:
    pending = types.WriteStream(type_=types.WriteStream.Type.PENDING)
    return channel.client.create_write_stream(parent=server.parent, write_stream=pending).name

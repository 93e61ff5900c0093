"""One appender a table and process: its threads share a connection. No Beam here.

BigQuery counts connections, 1,000 a project in most regions, and a harness has a dozen threads.
"""

from __future__ import annotations

import os
import threading
from typing import Final, NamedTuple

import pyarrow as pa

from common.clients import BigQueryEndpoints
from transforms.bigquery.answers import AppendOptions
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream


class Target(NamedTuple):
    """The table of an appender, and the way to it. Equal targets share an appender."""

    table: str
    schema: pa.Schema
    endpoints: BigQueryEndpoints
    options: AppendOptions


class _Shared:
    def __init__(self, target: Target) -> None:
        self.channel = WriteChannel(target.endpoints.write_client)
        self.appender = Appender(self.channel, default_stream(target.table), target.schema, target.options)
        self.users = 0


_LOCK: Final = threading.Lock()
_APPENDERS: Final[dict[Target, _Shared]] = {}
# Connections and threads do not pass to a forked process: it makes its own.
os.register_at_fork(after_in_child=_APPENDERS.clear)


def acquire(target: Target) -> Appender:
    """Returns the appender to the default stream of a table; `release` it in the end."""
    with _LOCK:
        shared = _APPENDERS.get(target)
        if shared is None:
            shared = _APPENDERS[target] = _Shared(target)
        shared.users += 1
        return shared.appender


def release(target: Target) -> None:
    """Gives the appender back; the last user closes its connection."""
    with _LOCK:
        shared = _APPENDERS[target]
        shared.users -= 1
        if shared.users:
            return
        del _APPENDERS[target]
    shared.appender.close()
    shared.channel.close()

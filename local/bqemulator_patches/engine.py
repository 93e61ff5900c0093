"""The database underneath: start without a network, threads, snapshots, ports."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from typing import Any

import duckdb
import grpc
from bqemulator.domain.errors import InternalError
from bqemulator.storage.engine import DuckDBEngine
from bqemulator.versioning.snapshots import SnapshotManager

from local.bqemulator_patches.replace import replace

_READS = re.compile(r"\s*(SELECT|WITH|FROM|DESCRIBE|PRAGMA|SHOW|VALUES|EXPLAIN)\b", re.IGNORECASE)
_WRITING = threading.RLock()


@contextlib.contextmanager
def transaction(engine: DuckDBEngine) -> Iterator[None]:
    """All that is executed within is stored at the end, or none of it when an exception leaves the block."""
    with _WRITING:
        connection = engine.connection
        connection.begin()
        try:
            yield
        except BaseException:
            connection.rollback()
            raise
        connection.commit()


def start_without_network() -> None:
    """Defect: the stock engine downloads DuckDB's `spatial` extension at every start and fails offline.

    GEOGRAPHY columns and ST_ functions are therefore not available here; this project has none.
    """

    def load_spatial(self: DuckDBEngine) -> None:
        # Nor may DuckDB fetch an extension by itself in the middle of a query.
        self.connection.execute("SET autoinstall_known_extensions = false")
        self.connection.execute("SET autoload_known_extensions = false")

    replace(DuckDBEngine, "_load_spatial", load_spatial)


def cursor_per_thread() -> None:
    """Defect: all REST and gRPC threads share one DuckDB connection ("connection is busy", mixed results).

    Each thread gets a cursor, which is a connection of its own to the same database. Statements that write
    are serialised on a lock, so that two of them cannot meet in a transaction conflict.
    """
    local = threading.local()

    def apply_session_pragmas(self: DuckDBEngine) -> None:
        # The stock statement lacks GLOBAL: every further cursor would be in the time zone of the machine.
        assert self._connection is not None
        self._connection.execute("SET GLOBAL TimeZone = 'UTC'")
        local.cursors = {id(self._connection): self._connection}

    def connection(self: DuckDBEngine) -> duckdb.DuckDBPyConnection:
        root = self._connection
        if root is None:
            raise InternalError("DuckDBEngine not started")
        if not hasattr(local, "cursors"):
            local.cursors = {}
        cursor = local.cursors.get(id(root))
        if cursor is None:
            cursor = local.cursors[id(root)] = root.cursor()
        return cursor

    def execute(
        self: DuckDBEngine, sql: str, parameters: list[Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        own = self.connection
        if _READS.match(sql):
            return own.execute(sql, parameters)
        with _WRITING:
            return own.execute(sql, parameters)

    replace(DuckDBEngine, "_apply_session_pragmas", apply_session_pragmas)
    replace(DuckDBEngine, "connection", property(connection))
    replace(DuckDBEngine, "execute", execute)


def no_snapshot_after_each_write() -> None:
    """Defect: every write copies the whole table for time travel (5.4 GB after 1,400 small appends).

    Without the copies FOR SYSTEM_TIME AS OF reads the table as it is now. CREATE SNAPSHOT TABLE still works.
    """
    stock = SnapshotManager.capture

    @functools.wraps(stock)
    def capture(self: SnapshotManager, *names: str, kind: str = "AUTO") -> Any:
        return None if kind == "AUTO" else stock(self, *names, kind=kind)

    replace(SnapshotManager, "capture", capture)


def refuse_shared_port() -> None:
    """Defect: gRPC binds with SO_REUSEPORT, so that two emulators on one port split its calls."""
    stock = grpc.aio.server

    @functools.wraps(stock)
    def server(*args: Any, options: Any = (), **kwargs: Any) -> grpc.aio.Server:
        return stock(*args, options=[*options, ("grpc.so_reuseport", 0)], **kwargs)

    replace(grpc.aio, "server", server)


PATCHES = (start_without_network, cursor_per_thread, no_snapshot_after_each_write, refuse_shared_port)

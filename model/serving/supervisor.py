"""uvicorn for a place behind a load balancer: workers replaced at once, a soft end, slow clients cut.

No torch here: the process that watches over the workers imports it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn import Server
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import multiprocess

from common.command import CommandError

_CLOSE: Final = (b"connection", b"close")

draining: Final = threading.Event()
"""Set when the server was told to end, and still answers."""


class Config(uvicorn.Config):
    """Settings of uvicorn, and two more; it also reaches the worker processes.

    Args:
      app: "module:factory".
      client_seconds: after this time, or twice as much, a client loses its connection that has not sent all
        of its request, or not read all of its answer.
      lame_duck_seconds: for which the server goes on after SIGTERM.
      settings: of uvicorn.
    """

    def __init__(self, app: str, client_seconds: float, lame_duck_seconds: float, **settings: Any) -> None:
        super().__init__(app, factory=True, http=PatientProtocol, **settings)
        self.client_seconds = client_seconds
        self.lame_duck_seconds = lame_duck_seconds


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that cuts clients that send or read too slowly, but leaves idle connections alone."""

    config: Config
    _watch: asyncio.TimerHandle | None = None
    _stuck_at: tuple[object, ...] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(self.config.client_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        at = self._waiting_for_client()
        if at is not None and at == self._stuck_at:
            self.transport.abort()
            return
        self._stuck_at = at
        self._watch = self.loop.call_later(self.config.client_seconds, self._look)

    def _waiting_for_client(self) -> tuple[object, ...] | None:
        """Says which request or answer the client has to go on with; None where it has none to."""
        is_whole = self.cycle is None or not self.cycle.more_body
        has_part = bool(self.conn.trailing_data[0]) or not is_whole
        is_unread = self.transport.get_write_buffer_size() > 0
        return (id(self.cycle), has_part, is_unread) if has_part or is_unread else None


class SoftServer(Server):
    """A server that goes on for a while when it is told to end, so that its clients notice.

    In that time its health check answers 503, and each answer says that the connection closes.
    """

    config: Config

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes SIGTERM softly; a second one, and SIGINT, end the server as uvicorn does."""
        if sig != signal.SIGTERM or draining.is_set() or not self.config.lame_duck_seconds:
            super().handle_exit(sig, frame)
            return
        draining.set()
        # uvicorn copies the first into the second once a second.
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        end = threading.Timer(self.config.lame_duck_seconds, super().handle_exit, (sig, frame))
        end.daemon = True
        end.start()


class _Worker(multiprocess.Process):
    """A worker process. It is judged by whether it lives: asking a busy one would keep the others waiting."""

    config: Config

    def is_alive(self, timeout: float = 0) -> bool:
        return bool(self.process.is_alive())

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = SoftServer(self.config)
        return self._server


class _Supervisor(multiprocess.Multiprocess):
    def terminate_all(self) -> None:
        """Closes the sockets of this process as well: once the workers close theirs, a client is refused."""
        for socket in self.sockets:
            socket.close()
        super().terminate_all()


def run(config: Config) -> int:
    """Serves until a signal ends it; returns the exit status: 1 where the application did not start.

    Raises:
      CommandError: the address is taken, or is none of this machine.
    """
    # Before the application: a port that is taken must not cost the load of a model.
    try:
        sockets = [config.bind_socket()]
    except SystemExit as error:  # uvicorn has logged the reason
        raise CommandError(f"--port: expected a free port, got {config.host}:{config.port}") from error
    if config.workers == 1:
        server = SoftServer(config)
        server.run(sockets)
        return 0 if server.started else 1
    multiprocess.Process = _Worker  # type: ignore[misc]
    _Supervisor(config, sockets).run()
    return 0

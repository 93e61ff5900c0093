"""uvicorn for a place behind a load balancer: workers replaced at once, and a soft end.

No torch here: the process that watches over the workers imports it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn import Server
from uvicorn.supervisors import multiprocess

from common.command import CommandError
from model.serving.protocol import PatientProtocol

ACCEPTED_AT_ONCE: Final = 16
"""Few enough to leave some to the other workers."""
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


class SoftServer(Server):
    """A server that goes on for a while when it is told to end, so that its clients notice.

    In that time its health check answers 503, and each answer says that the connection closes.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._listeners: list[socket.socket] = []
        self._accepting: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts as uvicorn does, and accepts several connections at a turn.

        uvloop accepts one at each turn of its loop. With many busy connections a turn is long, and new
        clients, health checks among them, would wait for one turn each.
        """
        await super().startup(sockets)
        for original in sockets or ():
            listener = original.dup()
            listener.setblocking(False)
            self._listeners.append(listener)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends as uvicorn does."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        await super().shutdown(sockets)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except OSError:  # none is left, or another worker was first
                return
            connection.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def _protocol(self) -> PatientProtocol:
        return PatientProtocol(self.config, self.server_state, self.lifespan.state)

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
        for listener in self.sockets:
            listener.close()
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

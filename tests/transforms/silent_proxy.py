"""A TCP proxy whose connections can die without a word, as behind a firewall that forgot them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any


class SilentProxy:
    """Forwards connections to an address. `with SilentProxy(address) as proxy:` listens at `proxy.address`.

    Attributes:
      connections: how many were accepted.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._frozen: set[int] = set()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> SilentProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def freeze(self) -> None:
        """Forwards nothing more on the connections that are open; they stay open. New ones work."""
        self._frozen.update(range(self.connections))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                number = self.connections
                self.connections += 1
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(number, source, sink), daemon=True).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if number not in self._frozen:
                    sink.sendall(data)
            if number not in self._frozen:
                sink.shutdown(socket.SHUT_WR)

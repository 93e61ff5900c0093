"""Whether the addresses that a TorchServe is going to bind are free."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from model.serving.torchserve.config import TorchServeError

MAX_PORT: Final = 65535
_REST: Final = ("inference", "management", "metrics")
_GRPC: Final = ("grpc_inference", "grpc_management")


def require_free(properties: dict[str, str]) -> None:
    """Checks that every address of a rendered configuration can be bound.

    A server that finds its management port taken would end a moment later, and until then whoever has the
    port would answer in its place.

    Raises:
      TorchServeError: an address cannot be bound, or two are the same; the text names the flag.
    """
    with contextlib.ExitStack() as held:
        for name, host, port in _addresses(properties):
            flag = f"--{name}_port {port}"
            if not 1 <= port <= MAX_PORT:
                raise TorchServeError(f"{flag}: no TCP port; give 1 to {MAX_PORT}")
            try:
                family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                # Held until all are bound, so that a port given twice is found, too.
                sock = held.enter_context(socket.socket(family, kind))
                # As Java does: connections of an earlier server that linger are no hindrance.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                sock.listen()
            except OSError as error:
                raise TorchServeError(
                    f"{flag}: {host}:{port} cannot be bound ({error.strerror}); end what has the port, "
                    f"or give another --{name}_port"
                ) from error


def _addresses(properties: dict[str, str]) -> list[tuple[str, str, int]]:
    found = []
    for name in _REST:
        host, _, port = properties[f"{name}_address"].split("://", 1)[1].rpartition(":")
        found.append((name, host.strip("[]"), int(port)))
    for name in _GRPC:
        found.append((name, properties[f"{name}_address"], int(properties[f"{name}_port"])))
    return found

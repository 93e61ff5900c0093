"""Checks that the addresses of a TorchServe are free before it binds them."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from model.serving.torchserve.config import TorchServeError

_REST: Final = ("inference", "management", "metrics")
_GRPC: Final = ("grpc_inference", "grpc_management")


def require_free(properties: dict[str, str]) -> None:
    """Checks that every address of a rendered configuration can be bound.

    A server that finds its management port taken ends a moment later, and until then the owner of the port
    answers in its place.

    Raises:
      TorchServeError: an address cannot be bound, or two are the same; the text names the flag.
    """
    with contextlib.ExitStack() as held:
        for name, host, port in _addresses(properties):
            flag = f"--{name}_port {port}"
            try:
                family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                # Held until all are bound, so that two flags with one port are noticed.
                sock = held.enter_context(socket.socket(family, kind))
                # As Java does: lingering connections of an earlier server do no harm.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                sock.listen()
            except OSError as error:
                raise TorchServeError(
                    f"{flag}: {host}:{port} cannot be bound ({error.strerror}); end the program that has "
                    f"the port, or pass another --{name}_port"
                ) from error


def _addresses(properties: dict[str, str]) -> list[tuple[str, str, int]]:
    addresses = []
    for name in _REST:
        host, _, port = properties[f"{name}_address"].split("://", 1)[1].rpartition(":")
        addresses.append((name, host.strip("[]"), int(port)))
    for name in _GRPC:
        addresses.append((name, properties[f"{name}_address"], int(properties[f"{name}_port"])))
    return addresses

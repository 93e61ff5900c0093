"""Proxies in the environment: variables, and a proxy that notes what it is asked for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

HOST = "127.0.0.1"
VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


@dataclass
class Proxy:
    """A proxy that refuses everything.

    Attributes:
      url: its address.
      asked: the first line of every request, without the version: "CONNECT pubsub.googleapis.com:443".
    """

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def recording_proxy() -> Iterator[Proxy]:
    """Runs a proxy that notes what it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            proxy.asked.append(f"{self.command} {self.path}")
            self.send_error(502)

        do_CONNECT = do_GET = do_POST = refuse

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        proxy = Proxy(f"http://{HOST}:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield proxy
        server.shutdown()
        thread.join()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that is taken, and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield taken.getsockname()[1]


def variables() -> dict[str, str]:
    """The variables of this process that name proxies, and exceptions from them."""
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


def behind(url: str, **exceptions: str) -> dict[str, str]:
    """This process's environment behind the proxy at `url`, with these exceptions and no others."""
    rest = {name: value for name, value in os.environ.items() if name not in variables()}
    return rest | dict.fromkeys(VARIABLES, url) | exceptions


def set_variables(monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str]) -> None:
    """Has this process have these of the variables, until the test ends."""
    for name in {*variables(), *EXCEPTIONS}:
        monkeypatch.setenv(name, "")  # or a variable that the test adds would stay
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)

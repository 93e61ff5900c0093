"""The page over HTTP, on this machine alone: two paths, no file, nothing that a request can change."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from common.command import CommandError
from common.loopback import is_loopback_address
from operations.report import page
from operations.report.figures import Figures

HOST: Final = "127.0.0.1"
PAGE: Final = "/"
PAUSED: Final = "/paused"
_IDLE_SECONDS: Final = 20.0
"""A client that says nothing for so long is left."""


class Latest:
    """The latest figures: read when somebody asks, by one request at a time, and kept for a while.

    Args:
      read: reads them; raises CommandError where that fails.
      seconds: for which they are kept.
    """

    def __init__(self, read: Callable[[], Figures], seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self._lock = threading.Lock()
        self._figures: Figures | None = None
        self._problem = ""
        self._due = 0.0

    def get(self) -> tuple[Figures | None, str]:
        """Returns the figures, and why they are not up to date; "" where they are."""
        with self._lock:
            if time.monotonic() >= self._due:
                try:
                    self._figures, self._problem = self._read(), ""
                except CommandError as error:
                    self._problem = str(error)
                self._due = time.monotonic() + self._seconds
            return self._figures, self._problem


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the page, and refuses everything else."""

    server: Server
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Sends the page."""
        # A name that leads here by its DNS would let a stranger's page read this one.
        if not is_loopback_address(self.headers.get("Host", "")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"expected this machine as the host\n", "text/plain")
            return
        path = urlsplit(self.path).path if self.path.startswith("/") else ""
        if path not in (PAGE, PAUSED):
            self._send(HTTPStatus.NOT_FOUND, b"expected / or /paused\n", "text/plain")
            return
        figures, problem = self.server.latest.get()
        refresh = page.Refresh(self.server.seconds, path == PAUSED)
        status = HTTPStatus.OK if figures else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, page.render(figures, refresh, problem), "text/html; charset=utf-8")

    def do_HEAD(self) -> None:
        """Sends what stands before the page."""
        self.do_GET()

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response_only(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", f"{page.policy()}; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a path is text of a stranger."""


class Server(ThreadingHTTPServer):
    """Serves the page on a loopback port.

    Args:
      port: 0 for any free one.
      latest: the figures.
      seconds: between two loads of the page.
    """

    daemon_threads = True

    def __init__(self, port: int, latest: Latest, seconds: int) -> None:
        self.latest, self.seconds = latest, seconds
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_address[1]}{PAGE}"

    def handle_error(self, *_: Any) -> None:
        """Drops a client that went away; says anything else in a line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"warning: a request failed: {error!r}", file=sys.stderr, flush=True)

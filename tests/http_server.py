"""A server of JSON over HTTP on this machine, for tests that look at what a client really sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Refusal(Exception):
    """An error answer of an API."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"error": {"code": code, "status": status, "message": message, "errors": []}}


@dataclass
class Request:
    """A request as it came over the wire; `path` is unquoted."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw) if self.raw else None

    def one(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]


@dataclass
class Raw:
    """An answer that is not JSON."""

    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    code: int = 200


def to_raw(answer: Callable[[], Any]) -> Raw:
    """Makes an answer for the wire: JSON, unless it is raw; a refusal becomes its error answer."""
    try:
        value = answer()
    except Refusal as refusal:
        return Raw(json.dumps(refusal.body).encode(), code=refusal.code)
    return value if isinstance(value, Raw) else Raw(json.dumps(value).encode())


@contextmanager
def serve(answer: Callable[[Request], Any]) -> Iterator[int]:
    """Serves on a free port of this machine until the block ends; gives the port.

    Args:
      answer: makes the answer of a request: a Raw, or an object for JSON; may raise Refusal. Several threads
        call it at the same time.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one write an answer: two would wait for each other's acknowledgement

        def _answer(self) -> None:
            url = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, unquote(url.path), parse_qs(url.query), headers, raw)
            reply = to_raw(lambda: answer(request))
            self.send_response(reply.code)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.data)))
            self.end_headers()
            self.wfile.write(reply.data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

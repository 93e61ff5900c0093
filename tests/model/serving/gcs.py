"""A Cloud Storage server with just enough of the JSON API for the real client to download an artifact."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def gcs_server(root: Path, gate: threading.Event, refusals: Sequence[int] = ()) -> Iterator[str]:
    """Serves the files under `root` as objects of any bucket; the URL is for STORAGE_EMULATOR_HOST.

    A download waits for `gate`; the first ones are answered with the statuses of `refusals`.
    """
    left = list(refusals)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gate.wait(60)
            # The client also asks for a bucket's description, and goes on where that is refused.
            if left and "/o/" in self.path:
                self.send_response(left.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            name = unquote(urlsplit(self.path).path.split("/o/", 1)[1])
            path = root / name
            body = path.read_bytes() if path.is_file() else b"no such object"
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        gate.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""A server on this machine that scores with the real model and misbehaves on demand.

It speaks what the remote handlers speak: TorchServe's `/predictions/NAME`, and of Vertex AI the endpoint
resource and `:rawPredict`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson

from model.inference import use_one_thread
from model.outputs import FIELDS
from model.serving.predictor import Predictor
from model.serving.request import BadRequestError, PredictRequest

ENDPOINT = "projects/p/locations/us-central1/endpoints/77"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """An answer to send: status, body, headers.

    `declared` is a wrong Content-Length; a `chunked` answer declares none, and comes in pieces.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    chunked: bool = False


@dataclass(frozen=True)
class Hang:
    """Answer nothing for so many seconds, then close."""

    seconds: float


@dataclass(frozen=True)
class Drip:
    """Answer well, one byte each so many seconds."""

    seconds: float


class Reset:
    """Close the connection with a TCP reset."""


@dataclass(frozen=True)
class Die:
    """Stop listening and drop every connection; come back on the same port after so many seconds."""

    seconds: float


Fault = Reply | Hang | Drip | Reset | Die


def status(code: int, message: str = "scripted fault", **headers: str) -> Reply:
    return Reply(code, orjson.dumps({"error": {"code": code, "message": message}}), {**JSON, **headers})


class FaultServer:
    """The server; use it as a context manager.

    Attributes:
      script: faults for the next prediction requests, one each; a None stands for a good answer.
      judge: may replace the answer to a request by what it has in it.
      envelope: hand single instances to the model as the prebuilt containers do: `parameters` is dropped.
      token: asked of TorchServe requests when set.
      resource: the endpoint that Vertex AI describes.
      sizes: rows of each prediction request that came, in order.
      headers: of the last prediction request.
      connections: how many were opened, those for the endpoint resource too.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.script: list[Fault | None] = []
        self.judge: Callable[[PredictRequest], Fault | None] = lambda request: None
        self.version: str | None = None
        self.answer_headers: dict[str, str] = {}
        self.envelope = False
        self.token: str | None = None
        self.resource: dict[str, Any] = {
            "name": ENDPOINT,
            "deployedModels": [{"id": "1", "displayName": "deployed-1"}],
        }
        self.sizes: list[int] = []
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.connections = 0
        self._predictor = predictor
        self._lock = threading.Lock()
        self._port = 0
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._timers: list[threading.Timer] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultServer:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._close()

    def plan(self, faults: Sequence[Fault | None]) -> None:
        with self._lock:
            self.script = list(faults)

    def _listen(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # one write an answer: two would wait for each other's acknowledgement

            def setup(self) -> None:
                super().setup()
                with owner._lock:
                    owner._open.add(self.connection)
                    owner.connections += 1

            def finish(self) -> None:
                with owner._lock:
                    owner._open.discard(self.connection)
                super().finish()

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the connection was dropped on purpose
                    super().handle()

            def parse_request(self) -> bool:
                with owner._lock:
                    dropped = self.connection not in owner._open
                if dropped:  # Linux still hands over what comes after SHUT_RD: nobody is here to answer it
                    self.close_connection = True
                    return False
                return super().parse_request()

            def do_GET(self) -> None:
                is_endpoint = self.path.split("?")[0] == f"/v1/{ENDPOINT}"
                self.reply(Reply(200, orjson.dumps(owner.resource), JSON) if is_endpoint else status(404))

            def do_POST(self) -> None:
                owner._predict(self, self.rfile.read(int(self.headers["Content-Length"])))

            def reply(self, reply: Reply, pause: float = 0.0) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    length = len(reply.body) if reply.declared is None else reply.declared
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                if reply.chunked:
                    for piece in (reply.body[i : i + 1000] for i in range(0, len(reply.body), 1000)):
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.write(b"0\r\n\r\n")
                elif pause:
                    for i in range(len(reply.body)):
                        self.wfile.write(reply.body[i : i + 1])
                        self.wfile.flush()
                        time.sleep(pause)
                else:
                    self.wfile.write(reply.body)
                self.close_connection = reply.declared is not None

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _reset(connection)

    def _predict(self, handler: Any, body: bytes) -> None:
        try:
            request = self._parse(body)
        except BadRequestError as error:
            handler.reply(status(400, str(error)))
            return
        with self._lock:
            self.sizes.append(len(request.features))
            self.paths.append(handler.path)
            self.headers = {name.lower(): value for name, value in handler.headers.items()}
            fault = self.script.pop(0) if self.script else None
        if self.token is not None and handler.headers.get("Authorization") != f"Bearer {self.token}":
            fault = Reply(
                400, b'{"code": 400, "type": "InvalidKeyException", "message": "Token failed"}', JSON
            )
        fault = fault or self.judge(request)
        if isinstance(fault, Hang):
            time.sleep(fault.seconds)
            handler.close_connection = True
        elif isinstance(fault, Drip):
            handler.reply(self.answer(request), fault.seconds)
        elif isinstance(fault, Reset):
            _reset(handler.connection)
            handler.close_connection = True
        elif isinstance(fault, Die):
            threading.Thread(target=self._close, daemon=True).start()
            timer = threading.Timer(fault.seconds, self._listen)
            self._timers.append(timer)
            timer.start()
            handler.close_connection = True
        else:
            handler.reply(fault or self.answer(request))

    def _parse(self, body: bytes) -> PredictRequest:
        if not self.envelope:
            return self._predictor.parse(body)
        instances = orjson.loads(body)["instances"]
        fields = FIELDS
        if isinstance(instances[0], dict):
            fields = tuple(instances[0]["fields"])
            instances = [instance["features"] for instance in instances]
        return PredictRequest(np.array(instances, np.float32), fields)

    def answer(self, request: PredictRequest) -> Reply:
        """The good answer."""
        use_one_thread()
        body = orjson.loads(self._predictor.answer(request)[0])
        body["metadata"] = {"model_version": self.version} if self.version else {}
        return Reply(200, orjson.dumps(body), {**JSON, **self.answer_headers})


def _reset(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()
    except OSError:
        pass


def has_row(request: PredictRequest, marks: Sequence[float]) -> bool:
    """Tells whether the request holds a row whose Amount is one of `marks`."""
    return bool(np.isin(request.features[:, -1], np.array(marks, np.float32)).any())

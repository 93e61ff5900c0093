"""The server of the tests of remote scoring does what its faults say."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

import orjson

from tests.model.serving.artifacts import transactions
from tests.transforms.remote_server import FaultServer, status

pytest_plugins = ("tests.model.serving.fixtures", "tests.transforms.remote_fixtures")


def test_a_server_that_has_closed_answers_no_later_request(predictor):
    """A thread may read one request more before it learns that its connection was dropped."""
    asked, closed = threading.Event(), threading.Event()

    def judge(request):
        asked.set()
        closed.wait(60)
        return status(404)

    body = orjson.dumps({"instances": transactions(1).tolist()})
    request = b"POST /models/1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with FaultServer(predictor) as server:
        server.judge = judge
        client = socket.create_connection(("127.0.0.1", urlsplit(server.url).port), timeout=60)
        client.sendall(request + request)
        assert asked.wait(60)
    closed.set()
    with client, contextlib.suppress(ConnectionResetError):
        while client.recv(1 << 16):  # until the thread of the connection has ended
            pass
    assert server.paths == ["/models/1"]

"""The FastAPI server under clients that are slow, broken, old or greedy, and while it ends."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time

import orjson
import psutil
import pytest
import requests

from local.process import HOST
from model.outputs import ANSWER_FIELDS
from tests.model.serving.artifacts import transactions
from tests.model.serving.servers import Served, container

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration


def body(n: int, **rest) -> bytes:
    return orjson.dumps({"instances": transactions(n), **rest}, option=orjson.OPT_SERIALIZE_NUMPY)


def server(served: Served) -> psutil.Process:
    """The process of a server that listens, or that watches over those that do."""
    port = served.url.rpartition(":")[2]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            is_server = process.cmdline()[1:3] == ["-m", "model.serving.app"]
            if is_server and process.environ().get("AIP_HTTP_PORT") == port:
                return process
    raise AssertionError("the server has ended")


def connect(url: str) -> socket.socket:
    return socket.create_connection((HOST, int(url.rpartition(":")[2])), timeout=60)


def read_answer(connection: socket.socket) -> bytes:
    """The answer up to the end of its declared length, or of the connection."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
        head, separator, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if separator and length and len(rest) >= int(length[1]):
            break
    return received


def request_head(length: int, *more: str) -> bytes:
    lines = ("POST /predict HTTP/1.1", f"Host: {HOST}", f"Content-Length: {length}", *more)
    return "\r\n".join((*lines, "", "")).encode()


def test_a_client_that_offers_http_2_is_answered(custom_container):
    """Java's HttpClient does so on every first request."""
    content = body(2)
    offer = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk",
    )
    with connect(custom_container.url) as connection:
        for _ in range(2):
            connection.sendall(request_head(len(content), *offer) + content)
            answer = read_answer(connection)
            assert answer.startswith(b"HTTP/1.1 200")
            assert len(orjson.loads(answer.partition(b"\r\n\r\n")[2])["predictions"]) == 2


def test_an_answer_is_sent_at_once_and_one_without_a_body_as_well(custom_container):
    """Two calls of the kernel for head and body cost as much as half of the model."""
    content = body(1)
    with connect(custom_container.url) as connection:
        connection.sendall(request_head(len(content)) + content)
        head, _, rest = connection.recv(65_536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert "predictions" in orjson.loads(rest)
        connection.sendall(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65_536).endswith(b"\r\n\r\n")
        # Pipelined: each answer is whole, in the order of the requests.
        connection.sendall((request_head(len(content)) + content) * 3)
        received = b""
        while received.count(b"}}") < 3 and (chunk := connection.recv(65_536)):
            received += chunk
        assert received.count(b"HTTP/1.1 200") == received.count(b'"predictions"') == 3


@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_http_2_may_come_in_parts(custom_container, chunked):
    content = body(2)
    offer = ("Connection: Upgrade", "Upgrade: h2c")
    head = request_head(len(content), *offer)
    if chunked:
        head = head.replace(f"Content-Length: {len(content)}".encode(), b"Transfer-Encoding: chunked")
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    request = head + content
    with connect(custom_container.url) as connection:
        for part in (request[:40], request[40 : len(head)], request[len(head) : -20], request[-20:]):
            connection.sendall(part)
            time.sleep(0.05)
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert len(orjson.loads(answer.partition(b"\r\n\r\n")[2])["predictions"]) == 2


def test_an_offer_of_http_2_behind_a_request_that_waits_ends_the_connection(custom_container):
    """Two parsers would not keep the answers in order."""
    content = body(2)
    with connect(custom_container.url) as connection:
        connection.sendall(
            request_head(len(content)) + content + request_head(0, "Connection: Upgrade", "Upgrade: h2c")
        )
        with contextlib.suppress(ConnectionResetError):
            answer = read_answer(connection)
            assert answer == b"" or b'"predictions"' in answer


def test_headers_without_end_are_refused(custom_container):
    with connect(custom_container.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        try:
            for i in range(1_000):
                connection.sendall(f"X-{i}: {'a' * 1_000}\r\n".encode())
            answer = read_answer(connection)
        except ConnectionError:  # it has closed in the middle
            return
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_body_that_is_refused_leaves_the_connection_in_step(custom_container):
    """A client that asks first, with Expect, either sends the body after the refusal or does not."""
    with connect(custom_container.url) as connection:
        connection.sendall(request_head(50_000_000, "Expect: 100-continue"))
        assert read_answer(connection).startswith(b"HTTP/1.1 413")
        connection.settimeout(60)
        content = body(1)
        try:
            connection.sendall(request_head(len(content)) + content)
            after = read_answer(connection)
        except ConnectionError:
            return
    assert after == b"" or after.startswith(b"HTTP/1.1 200")


def test_an_answer_that_would_be_too_long_is_refused_with_the_number_that_fits(served_artifact):
    fields = {"parameters": {"fields": list(ANSWER_FIELDS)}}
    with container(served_artifact.uri, "--max_answer_bytes", "100000") as served:
        refused = requests.post(f"{served.url}/predict", body(200, **fields), timeout=60)
        assert refused.status_code == 413
        most = int(re.search(r"send at most (\d+) at once", refused.json()["error"]["message"])[1])
        fits = requests.post(f"{served.url}/predict", body(most, **fields), timeout=60)
        assert fits.status_code == 200
        assert len(fits.content) <= 100_000
        assert requests.post(f"{served.url}/predict", body(200), timeout=60).status_code == 200


def test_slow_clients_lose_their_connections_and_idle_ones_keep_them(served_artifact):
    content = body(1)
    with container(served_artifact.uri, CLIENT_SECONDS="1") as served:
        with connect(served.url) as idle, connect(served.url) as headers, connect(served.url) as part:
            headers.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
            part.sendall(request_head(len(content)) + content[:10])
            for slow in (headers, part):
                with contextlib.suppress(ConnectionResetError):
                    assert slow.recv(1_000) == b""
            idle.sendall(request_head(len(content)) + content)
            assert read_answer(idle).startswith(b"HTTP/1.1 200")
        assert "Traceback" not in served.process.log_text()


def test_a_client_that_does_not_read_loses_its_connection(served_artifact):
    fields = {"parameters": {"fields": list(ANSWER_FIELDS)}}
    content = body(10_000, **fields)
    with container(served_artifact.uri, CLIENT_SECONDS="1") as served, connect(served.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(request_head(len(content)) + content)
        port = connection.getsockname()[1]

        def is_cut() -> bool:
            ends = (
                c.laddr.port
                for c in server(served).net_connections("tcp")
                if c.raddr and c.raddr.port == port
            )
            return not list(ends)

        served.process.wait_until(lambda: not is_cut(), 30)
        served.process.wait_until(is_cut, 60)


def test_a_client_that_hangs_up_costs_no_traceback(served_artifact):
    with container(served_artifact.uri) as served:
        for _ in range(3):
            with connect(served.url) as connection:
                connection.sendall(request_head(1_000) + b"{")
        assert requests.post(f"{served.url}/predict", body(1), timeout=60).ok
        assert "Traceback" not in served.process.log_text()


def test_a_killed_worker_is_replaced_and_the_end_is_obeyed(served_artifact):
    with container(served_artifact.uri, "--workers", "2") as served:
        process = served.process
        process.wait_until(lambda: process.log_text().count("serving ") == 2, 90)
        for killed in range(1, 4):
            victim = next(
                child
                for child in server(served).children(recursive=True)
                if "spawn_main" in " ".join(child.cmdline())
            )
            victim.send_signal(signal.SIGKILL)
            process.wait_until(lambda n=killed: process.log_text().count("serving ") == 2 + n, 90)
            assert requests.post(f"{served.url}/predict", body(1), timeout=60).ok
        server(served).terminate()
        process.wait_until(lambda: "Stopping parent process" in process.log_text(), 60)


def test_clients_are_told_before_the_end(served_artifact):
    """A load balancer sees the health check, a client on a kept connection the header; none is cut off."""
    with container(served_artifact.uri, LAME_DUCK_SECONDS="5") as served, requests.Session() as client:
        kept = client.post(f"{served.url}/predict", body(1), timeout=60)
        assert "Connection" not in kept.headers
        server(served).terminate()
        deadline = time.monotonic() + 60
        while (health := requests.get(f"{served.url}/health", timeout=60)).status_code != 503:
            assert time.monotonic() < deadline
        assert health.json()["error"]["message"] == "ending"
        answer = client.post(f"{served.url}/predict", body(1), timeout=60)
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")


def test_a_port_that_is_taken_ends_the_server_before_it_loads_a_model(custom_container, served_artifact):
    port = custom_container.url.rpartition(":")[2]
    command = [sys.executable, "-m", "model.serving.app", "--model", served_artifact.uri, "--workers", "1"]
    done = subprocess.run(
        [*command, "--port", port], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert f"error: --port: expected a free port, got 127.0.0.1:{port}" in done.stderr
    assert "serving" not in done.stderr


def test_a_server_without_its_extra_names_it(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from model.serving.app import main; sys.exit(main(['--model', 'm']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "[serve]" in done.stderr
    assert "Traceback" not in done.stderr

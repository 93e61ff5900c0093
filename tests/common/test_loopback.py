"""Loopback addresses are told from others, and reached without the proxy of the environment."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import grpc
import pytest
import requests

from common.connections import DirectAdapter, direct, insecure_channel
from common.loopback import (
    bypass_proxies,
    is_loopback,
    is_loopback_address,
    no_proxy_variables,
    stale_variables,
    urlopen,
)
from tests.proxies import set_variables

pytest_plugins = ("tests.proxy_fixtures",)

LOOPBACK = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("bigquery.googleapis.com", False),
        ("", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:9050", True),
        ("HTTPS://LOCALHOST/x", True),
        ("http://user@[::1]:1/", True),
        ("127.0.0.1:9060", True),
        ("[::1]:9060", True),
        ("localhost", True),
        ("http://127.0.0.1.example.com", False),
        ("http://example.com/127.0.0.1", False),
        ("http://127.0.0.1@example.com", False),
        ("pubsub:8085", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_loopback_addresses(address, expected):
    assert is_loopback_address(address) is expected


# The environment


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "all_proxy", "grpc_proxy"])
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        ({"no_proxy": ""}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        ({"no_proxy": "a.b"}, {"no_proxy": f"a.b,{LOOPBACK}", "NO_PROXY": f"a.b,{LOOPBACK}"}),
        ({"NO_PROXY": "a.b, ::1"}, dict.fromkeys(("no_proxy", "NO_PROXY"), "a.b,::1,localhost,127.0.0.1")),
        ({"no_proxy": "a", "NO_PROXY": "b"}, {"no_proxy": f"a,{LOOPBACK}", "NO_PROXY": f"b,{LOOPBACK}"}),
        ({"no_proxy": LOOPBACK}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        # gRPC reads it in place of no_proxy.
        (
            {"no_proxy": LOOPBACK, "no_grpc_proxy": "a.b"},
            {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK, "no_grpc_proxy": f"a.b,{LOOPBACK}"},
        ),
        # An asterisk is one only alone, and none at all for gRPC.
        ({"no_proxy": "*"}, {"no_proxy": "*", "NO_PROXY": "*", "no_grpc_proxy": LOOPBACK}),
    ],
)
def test_exceptions_extend_what_is_set(proxy, given, wanted, monkeypatch):
    set_variables(monkeypatch, {proxy: "http://proxy:3128", **given})
    assert no_proxy_variables() == wanted
    bypass_proxies()
    assert {name: os.environ[name] for name in wanted} == wanted
    assert no_proxy_variables() == wanted  # a shell is told the same by a program that has set them


@pytest.mark.parametrize("given", [{}, {"no_proxy": "a.b"}, {"http_proxy": ""}, {"no_grpc_proxy": "a.b"}])
def test_without_a_proxy_nothing_changes(given, monkeypatch):
    """Any such variable would hide the proxy of the system's settings on macOS."""
    set_variables(monkeypatch, given)
    assert no_proxy_variables() == {}


# Connections


@pytest.fixture
def server():
    """An HTTP server on this machine; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"direct")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.05,))
        thread.start()
        yield served.server_port
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_http_goes_to_this_machine_directly(host, server, dead_proxy):
    url = f"http://{host}:{server}/"
    with urlopen(url, timeout=10) as answer:
        assert answer.read() == b"direct"
    with direct(requests.Session()) as session:
        assert session.get(url, timeout=10).content == b"direct"
    with requests.Session() as session, pytest.raises(requests.exceptions.ProxyError):
        session.get(url, timeout=10)


def test_a_redirect_to_this_machine_is_followed_directly(server, dead_proxy):
    with direct(requests.Session()) as session:
        moved = requests.Response()
        moved.status_code, moved.headers["Location"] = 302, f"http://127.0.0.1:{server}/"
        moved.request = session.prepare_request(requests.Request("GET", f"http://127.0.0.1:{server}/old"))
        moved.url, moved._content = moved.request.url, b""
        assert next(session.resolve_redirects(moved, moved.request)).content == b"direct"


def test_http_to_elsewhere_goes_through_the_proxy(proxy):
    with pytest.raises(HTTPError, match="502"):
        urlopen("http://model.internal/ping", timeout=10)
    with direct(requests.Session()) as session:
        assert session.get("http://model.internal/models", timeout=10).status_code == 502
        with pytest.raises(requests.exceptions.ProxyError):
            session.get("https://127.example.com/", timeout=10)
    assert proxy.asked == [
        "GET http://model.internal/ping",
        "GET http://model.internal/models",
        "CONNECT 127.example.com:443",
    ]


def test_a_session_keeps_its_certificates_and_googles_adapter(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/ca.pem")
    session = direct(requests.Session())
    assert (
        session.merge_environment_settings("https://127.0.0.1", {}, None, None, None)["verify"] == "/ca.pem"
    )
    assert isinstance(session.get_adapter("https://127.0.0.1:1/"), DirectAdapter)
    assert not isinstance(session.get_adapter("https://bigquery.googleapis.com/"), DirectAdapter)


@pytest.fixture
def echo():
    """A gRPC server on this machine that sends back what it gets; gives its port."""
    handler = grpc.method_handlers_generic_handler(
        "test", {"echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    )
    served = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = served.add_insecure_port("127.0.0.1:0")
    served.start()
    yield port
    served.stop(None).wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_grpc_goes_to_this_machine_directly(host, echo, dead_proxy):
    with insecure_channel(f"{host}:{echo}") as channel:
        assert channel.unary_unary("/test/echo")(b"direct", timeout=10) == b"direct"


def test_grpc_to_elsewhere_goes_through_the_proxy(proxy):
    with insecure_channel("model.internal:7070") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/test/echo")(b"", timeout=10)
    assert "CONNECT model.internal:7070" in proxy.asked


def test_variables_that_lead_to_a_stopped_stack_are_named(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as running, socket.create_server(("127.0.0.1", 0)) as stopped:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (running, stopped)]
        stopped.close()
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", addresses[0])
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://{addresses[1]}")
        monkeypatch.setenv("SPANNER_EMULATOR_HOST", "emulators.example:1")  # of no concern, and not asked
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        assert stale_variables() == ["BIGQUERY_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"]
        (tmp_path / "key.json").touch()
        assert stale_variables() == ["BIGQUERY_EMULATOR_HOST"]

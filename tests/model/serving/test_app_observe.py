"""Switches of an operator: an access log, request ids, traces."""

from __future__ import annotations

import http.server
import json
import re
import sys
import threading

import orjson
import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from common.command import MissingExtraError
from model.serving.observe import observed, traces_wanted
from model.serving.options import ServerOptions
from tests.model.serving.artifacts import transactions
from tests.model.serving.servers import Served, container

pytest_plugins = ("tests.model.serving.fixtures",)


def post(served: Served, **headers: str) -> requests.Response:
    content = orjson.dumps({"instances": transactions(1)}, option=orjson.OPT_SERIALIZE_NUMPY)
    return requests.post(f"{served.url}/predict", content, headers=headers, timeout=60)


def log_lines(served: Served) -> list[dict]:
    return [json.loads(line) for line in served.process.log_text().splitlines() if line.startswith("{")]


@pytest.mark.integration
def test_nothing_is_logged_of_requests_and_they_have_no_id_unless_switched_on(custom_container):
    assert "X-Request-Id" not in post(custom_container).headers
    assert log_lines(custom_container) == []


@pytest.mark.integration
def test_each_request_has_a_line_and_an_id(served_artifact):
    with container(served_artifact.uri, "--access_log", REQUEST_ID="1") as served:
        assert post(served, **{"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
        made = [post(served).headers["X-Request-Id"] for _ in range(2)]
        forged = post(served, **{"X-Request-Id": "a b"}).headers["X-Request-Id"]
        assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in (*made, forged))
        assert made[0] != made[1]
        served.process.wait_until(lambda: served.process.log_text().count('"/predict"') == 4, 30)
        first, *_ = (line for line in log_lines(served) if line["path"] == "/predict")
        assert (first["method"], first["status"], first["request_id"]) == ("POST", 200, "mine-1")
        assert first["bytes"] > 50
        assert first["client"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "scores"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_made_where_the_variables_of_the_sdk_ask_for_them(env, wanted):
    assert traces_wanted(env) is wanted


def test_traces_without_their_extra_name_it(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    with pytest.raises(MissingExtraError, match=r"\[traces\]"):
        observed(object(), ServerOptions("m"))


@pytest.mark.integration
def test_a_request_is_a_span_at_the_collector(served_artifact):
    spans: list = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            request = ExportTraceServiceRequest.FromString(content)
            for resource in request.resource_spans:
                name = {item.key: item.value.string_value for item in resource.resource.attributes}
                spans.extend(
                    (name["service.name"], span) for scope in resource.scope_spans for span in scope.spans
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_SERVICE_NAME": "scores",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    try:
        with container(served_artifact.uri, **env) as served:
            assert post(served, traceparent=f"00-{trace}-00f067aa0ba902b7-01").ok
            served.process.wait_until(lambda: bool(spans), 60)
    finally:
        collector.shutdown()
        collector.server_close()
    names = {(service, span.name, span.trace_id.hex()) for service, span in spans}
    assert names == {("scores", "POST /predict", trace)}, names

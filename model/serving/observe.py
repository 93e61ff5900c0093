"""An access log, request ids and traces around the application, each only where it is asked for."""

from __future__ import annotations

import os
import re
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.command import MissingExtraError
from model.serving.options import ServerOptions

REQUEST_ID: Final = b"x-request-id"
_PLAIN_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}").fullmatch
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def observed(app: ASGIApp, options: ServerOptions) -> ASGIApp:
    """Wraps the application in what the options and OpenTelemetry's variables ask for."""
    if traces_wanted(os.environ):
        app = _traced(app)
    if options.access_log or options.request_id:
        app = Observer(app, options.access_log, options.request_id)
    return app


class Observer:
    """Writes a line of JSON for each request to stdout, and gives requests ids."""

    def __init__(self, app: ASGIApp, access_log: bool, request_id: bool) -> None:
        self._app = app
        self._access_log = access_log
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope) if self._request_id else b""
        status, size = 0, 0

        async def observing(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                if request_id:
                    message["headers"] = [*message.get("headers", ()), (REQUEST_ID, request_id)]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observing)
        finally:
            if self._access_log:
                client = scope.get("client")
                line: dict[str, Any] = {
                    "time": time.time(),
                    "client": client[0] if client else None,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "bytes": size,
                    "ms": round((time.perf_counter() - began) * 1000, 3),
                }
                if request_id:
                    line["request_id"] = request_id.decode("ascii")
                # One write a line, so that lines of several processes do not mix.
                os.write(sys.stdout.fileno(), orjson.dumps(line) + b"\n")


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == REQUEST_ID and _PLAIN_ID(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()


def traces_wanted(env: Mapping[str, str]) -> bool:
    """Tells whether the variables of OpenTelemetry's SDK ask for traces."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = env.get("OTEL_TRACES_EXPORTER", "")
    return exporter != "none" and bool(exporter or any(env.get(name) for name in _ENDPOINTS))


def _traced(app: ASGIApp) -> ASGIApp:
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk._configuration import _OTelSDKConfigurator
    except ImportError as error:
        raise MissingExtraError("OTEL_*: traces", "traces", error) from error
    os.environ.setdefault("OTEL_TRACES_EXPORTER", "otlp")
    # It reads the SDK's variables: exporters, protocol, sampler, resource. It is made to be derived from.
    type("Configurator", (_OTelSDKConfigurator,), {})().configure()
    traced: ASGIApp = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])

    async def scores_traced(scope: Scope, receive: Receive, send: Send) -> None:
        # Probes and scrapers would be most of the traces.
        await (traced if scope.get("method") == "POST" else app)(scope, receive, send)

    return scores_traced

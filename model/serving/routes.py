"""The application of the custom container: its routes and their answers.

It is apart from `model.serving.app` so that the process that watches over the workers does without torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from functools import wraps
from importlib.metadata import version
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from features.schema import DIALECT, instance_schema
from features.words import meaning
from model.inference import use_one_thread
from model.serving import inference_protocol, openapi
from model.serving.loader import Loader
from model.serving.metrics import Metrics
from model.serving.observe import observed
from model.serving.openapi import ID, VERTEX_ROUTE
from model.serving.options import ServerOptions
from model.serving.predictor import Predictor
from model.serving.refresh import Refresh
from model.serving.request import REQUEST_FIELDS
from model.serving.service import JSON, Endpoint, Limits, RefusedError, Scored, error_response
from model.serving.supervisor import draining

MODEL_ROUTES: Final = ("/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}")
MODEL_PATH: Final = re.compile(f"/v2/models/({ID})(?:/versions/({ID}))?/infer")


class _IdConvertor(StringConvertor):
    regex = ID


register_url_convertor("id", _IdConvertor())


class Application(FastAPI):
    """The application; requests for scores go past FastAPI's layers, which cost more than the model."""

    def __init__(self, **settings: Any) -> None:
        # Traces are made in `observe`, for the requests that go past FastAPI as well.
        own: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
        super().__init__(docs_url=None, redoc_url=None, openapi_url=None, telemetry=own, **settings)
        self._exact: dict[str, Endpoint] = {}
        self._patterns: list[tuple[Callable[[str], object], Endpoint]] = []

    def add_endpoint(self, route: str, endpoint: Endpoint) -> None:
        """Answers POST requests to a route, which may have parameters as in FastAPI."""

        async def through_fastapi(request: Request) -> Response:
            return await endpoint(request.scope, request.receive)

        # For other methods than POST.
        self.add_api_route(_typed(route), through_fastapi, methods=["POST"], response_model=None)
        if "{" in route:
            pattern = re.sub(r"\\{\w+\\}", lambda _: ID, re.escape(route))
            self._patterns.append((re.compile(pattern).fullmatch, endpoint))
        else:
            self._exact[route] = endpoint

    def add_get(self, route: str, answer: Callable[..., Response]) -> None:
        """Answers GET and HEAD requests to a route."""

        @wraps(answer)
        async def in_event_loop(**parameters: Any) -> Response:
            return answer(**parameters)

        self.add_api_route(_typed(route), in_event_loop, methods=["GET", "HEAD"], response_model=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"]
            endpoint = self._exact.get(path) or next((e for fits, e in self._patterns if fits(path)), None)
            if endpoint is not None:
                await (await endpoint(scope, receive))(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def _typed(route: str) -> str:
    return re.sub(r"\{(\w+)\}", r"{\1:id}", route)


def create_app(options: ServerOptions | None = None) -> ASGIApp:
    """Makes the application; it starts to load the model when the server starts.

    Args:
      options: read from the environment when not given, as in a worker process of uvicorn.

    Raises:
      OptionError: an option is missing or wrong.
    """
    options = options or ServerOptions.from_env()
    metrics = Metrics()
    seconds = options.model_refresh_seconds
    refresh = Refresh(seconds, lambda predictor: metrics.loaded(predictor.manifest), metrics.refreshed)
    loader = Loader(options.model, refresh)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        use_one_thread()
        loader.start()
        yield
        loader.stop()
        metrics.flush()

    app = Application(lifespan=lifespan)
    _add_scores(app, options, loader, Limits(options), metrics)
    _add_descriptions(app, options, loader, metrics)
    _add_protocol(app, loader)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return observed(app, options)


def _add_scores(
    app: Application, options: ServerOptions, loader: Loader, limits: Limits, metrics: Metrics
) -> None:
    def predict(predictor: Predictor, _: Scope, body: bytes) -> Scored:
        request = predictor.parse(body)
        limits.check_rows(len(request.features), predictor, request.fields)
        return predictor.answer(request)

    def infer(predictor: Predictor, scope: Scope, body: bytes) -> Scored:
        _check_model(predictor, *MODEL_PATH.fullmatch(scope["path"]).groups())  # type: ignore[union-attr]
        request = inference_protocol.parse_for(predictor, body)
        limits.check_rows(len(request.features), predictor, request.outputs)
        return inference_protocol.answer(predictor, request)

    by_rows = Endpoint("predict", loader, limits, metrics, predict, error_response)
    for route in dict.fromkeys((options.predict_route, f"{VERTEX_ROUTE}:predict")):
        app.add_endpoint(route, by_rows)
    by_tensors = Endpoint("infer", loader, limits, metrics, infer, inference_protocol.error_response)
    for route in MODEL_ROUTES:
        app.add_endpoint(f"{route}/infer", by_tensors)


def _add_descriptions(app: Application, options: ServerOptions, loader: Loader, metrics: Metrics) -> None:
    def health() -> Response:
        if draining.is_set():
            return error_response(503, "ending")
        if loader.predictor is None:
            return error_response(503, loader.status)
        version = loader.predictor.manifest.model_version
        return _json({"status": "ready", "model_version": version})

    def about(describe: Callable[[Predictor], Any]) -> Callable[[], Response]:
        def answer() -> Response:
            if loader.predictor is None:
                return error_response(503, loader.status)
            return _json(describe(loader.predictor))

        return answer

    def model(predictor: Predictor) -> dict[str, Any]:
        manifest = predictor.manifest
        history = {feature.name: meaning(feature) for feature in manifest.spec.history}
        return {
            "model_name": manifest.model_name,
            "model_version": manifest.model_version,
            "features": manifest.features,
            **({"history": history} if history else {}),
            "inputs": manifest.spec.inputs,
            "instance_schema": {"$schema": DIALECT, **instance_schema(manifest.spec)},
            "fields": REQUEST_FIELDS,
            "thresholds": dict(manifest.thresholds),
            "limits": {
                "rows": options.max_rows,
                "body_bytes": options.max_body_bytes,
                "answer_bytes": options.max_answer_bytes,
            },
        }

    def counted() -> Response:
        text, content_type = metrics.text()
        return Response(text, headers={"content-type": content_type})

    for route in dict.fromkeys((options.health_route, VERTEX_ROUTE)):
        app.add_get(route, health)
    app.add_get("/metadata", about(model))
    app.add_get("/openapi.json", about(lambda predictor: openapi.document(options, predictor)))
    app.add_get("/metrics", counted)


def _add_protocol(app: Application, loader: Loader) -> None:
    """The routes of the Open Inference Protocol that describe; liveness is apart from readiness."""

    def is_ready() -> bool:
        return loader.predictor is not None and not draining.is_set()

    def ready() -> Response:
        if not is_ready():
            return inference_protocol.error_response(503, "ending" if draining.is_set() else loader.status)
        return _json({"ready": True})

    def of_model(answer: Callable[[Predictor], Response]) -> Callable[..., Response]:
        def checked(model_name: str, model_version: str | None = None) -> Response:
            if loader.predictor is None:
                return inference_protocol.error_response(503, loader.status)
            try:
                _check_model(loader.predictor, model_name, model_version)
            except RefusedError as error:
                return inference_protocol.error_response(error.code, str(error))
            return answer(loader.predictor)

        return checked

    about = {"name": "anomaly", "version": version("beam-transaction-anomaly"), "extensions": []}
    app.add_get("/v2", lambda: _json(about))
    app.add_get("/v2/health/live", lambda: _json({"live": True}))
    app.add_get("/v2/health/ready", ready)
    for route in MODEL_ROUTES:
        app.add_get(route, of_model(lambda predictor: _json(inference_protocol.metadata(predictor))))
        app.add_get(f"{route}/ready", of_model(lambda _: ready()))


def _check_model(predictor: Predictor, name: str, version: str | None) -> None:
    manifest = predictor.manifest
    if name != manifest.model_name or version not in (None, manifest.model_version):
        served = f"{manifest.model_name} version {manifest.model_version}"
        asked = f"{name:.60} version {version:.60}" if version else f"{name:.60}"
        raise RefusedError(404, "unknown_model", f"expected model {served}, got {asked}")


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type=JSON)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    make = inference_protocol.error_response if path.startswith("/v2") else error_response
    response = make(error.status_code, f"{request.method} {path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return error_response(500, f"{type(error).__name__}: {error}")

"""The application of the custom container: its routes and their answers.

It is apart from `model.serving.app` so that the process that watches over the workers does without torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from model.features import N_FEATURES
from model.inference import use_one_thread
from model.outputs import ANSWER_FIELDS, answer_bytes
from model.serving.loader import Loader
from model.serving.options import ServerOptions
from model.serving.request import BadRequestError, parse_request
from model.serving.supervisor import draining

JSON: Final = "application/json"
VERTEX_ROUTE: Final = "/v1/endpoints/{endpoint}/deployedModels/{deployed_model}"

_REQUEST_SCHEMA: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "additionalProperties": False,
                    "properties": {
                        "instances": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "array",
                                "items": {"type": "number"},
                                "minItems": N_FEATURES,
                                "maxItems": N_FEATURES,
                            },
                        },
                        "parameters": {
                            "type": "object",
                            "properties": {
                                "fields": {
                                    "type": "array",
                                    "items": {"type": "string", "enum": list(ANSWER_FIELDS)},
                                }
                            },
                        },
                    },
                }
            }
        },
    }
}


class _TooLongError(Exception):
    pass


def create_app(options: ServerOptions | None = None) -> FastAPI:
    """Makes the application; it starts to load the model when the server starts.

    Args:
      options: read from the environment when not given, as in a worker process of uvicorn.

    Raises:
      OptionError: an option is missing or wrong.
    """
    options = options or ServerOptions.from_env()
    loader = Loader(options.model)
    limit = options.max_body_bytes

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        use_one_thread()
        loader.start()
        yield
        loader.stop()

    async def health(request: Request) -> Response:
        """Answers 200 when the model is loaded and verified, 503 before and when it cannot be."""
        if draining.is_set():
            return error_response(503, "ending")
        if loader.predictor is None:
            return error_response(503, loader.status)
        version = loader.predictor.manifest.model_version
        return Response(orjson.dumps({"status": "ready", "model_version": version}), media_type=JSON)

    # Inference runs in the event loop: a batch takes less than handing it to a thread and back, and one
    # process has one core anyway.
    async def predict(request: Request) -> Response:
        """Scores `instances`; `parameters.fields` chooses the fields of the answer."""
        try:
            body = await _read(request, limit)
            if loader.predictor is None:
                return error_response(503, loader.status)
            features, fields = parse_request(body)
            row_bytes = answer_bytes(fields, features.shape[1])
            if len(features) > (most := max(1, options.max_answer_bytes // row_bytes)):
                return error_response(
                    413,
                    f"the answer to {len(features)} instances would be longer than "
                    f"{options.max_answer_bytes} bytes; send at most {most} at once, or ask for fewer fields",
                )
            return Response(loader.predictor.answer(features, fields), media_type=JSON)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except _TooLongError:
            return error_response(413, f"the body is longer than {limit} bytes; send fewer instances at once")
        except BadRequestError as error:
            return error_response(
                400, str(error), instance=error.instance, field=error.field, reason=error.reason
            )

    app = FastAPI(title="Transaction anomaly detection", docs_url=None, redoc_url=None, lifespan=lifespan)
    for path in dict.fromkeys((options.health_route, VERTEX_ROUTE)):
        app.add_api_route(path, health, methods=["GET", "HEAD"], response_model=None)
    for path in dict.fromkeys((options.predict_route, f"{VERTEX_ROUTE}:predict")):
        app.add_api_route(path, predict, methods=["POST"], response_model=None, openapi_extra=_REQUEST_SCHEMA)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


def error_response(code: int, message: str, **details: Any) -> Response:
    """Makes an answer `{"error": {"code", "message", ...}}` with this status, without details of None."""
    known = {name: value for name, value in details.items() if value is not None}
    body = orjson.dumps({"error": {"code": code, "message": message, **known}})
    return Response(body, status_code=code, media_type=JSON)


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length")
    if declared is not None:
        # The server has checked that it is a number, and never hands over more than it says.
        if int(declared) > limit:
            raise _TooLongError
        return await request.body()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _TooLongError
    return bytes(body)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return error_response(500, f"{type(error).__name__}: {error}")

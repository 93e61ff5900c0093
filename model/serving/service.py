"""Requests for scores: read, admitted, scored and counted, by ASGI without the layers of a framework."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope

from model.serving.loader import Loader
from model.serving.metrics import Metrics
from model.serving.options import ServerOptions
from model.serving.predictor import Predictor
from model.serving.protocol import ARRIVAL
from model.serving.request import BadRequestError

JSON: Final = "application/json"
RETRY_SECONDS: Final = "1"
_LOG: Final = logging.getLogger("uvicorn.error")

Scored = tuple[bytes, npt.NDArray[np.float32]]


class RefusedError(Exception):
    """A request that is not answered with scores, though nothing is wrong with its rows.

    Attributes:
      code: status of the answer.
      reason: label of the metric.
      headers: of the answer.
    """

    def __init__(self, code: int, reason: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Limits:
    """Checks the size of requests and answers, and how long requests wait.

    Attributes:
      scored_at: `time.monotonic()` when the latest request was scored.
      turn: held while a request is scored. Others get theirs at later turns of the event loop, and it reads
        from all connections between them: so it is known since when a request waits.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self.scored_at = -math.inf
        self.turn = asyncio.Lock()

    def check_rows(self, rows: int, predictor: Predictor, fields: Iterable[str]) -> None:
        """Refuses a request with too many rows.

        Raises:
          RefusedError: there are more rows than the server scores at once, or their answer would be too long.
        """
        if rows > self._options.max_rows:
            message = f"the request has {rows} instances; send at most {self._options.max_rows} at once"
            raise RefusedError(413, "too_many_rows", message)
        longest = self._options.max_answer_bytes
        if rows > (most := max(1, longest // predictor.row_bytes(fields))):
            message = (
                f"the answer to {rows} instances would be longer than {longest} bytes; send at most {most} "
                "at once, or ask for fewer fields"
            )
            raise RefusedError(413, "answer_too_long", message)

    async def take_turn(self, arrived: float) -> None:
        """Waits until `turn` is held, but not too long: that keeps the wait of the others short.

        Where none was scored for that time, it is admitted: a server that is too slow for the limit works.

        Raises:
          RefusedError: the request came too long ago.
        """
        limit = self._options.max_wait_millis / 1000
        if self.turn.locked():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, arrived + limit - time.monotonic())):
                    await self.turn.acquire()
                    return
            self._check_wait(arrived, limit)
        await self.turn.acquire()
        try:
            self._check_wait(arrived, limit)
        except RefusedError:
            self.turn.release()
            raise

    def _check_wait(self, arrived: float, limit: float) -> None:
        now = time.monotonic()
        if now - arrived > limit > now - self.scored_at:
            millis = self._options.max_wait_millis
            message = f"the server is overloaded: the request waited more than {millis} ms; try again"
            raise RefusedError(503, "overload", message, retry_after=RETRY_SECONDS)

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Reads the body of a request.

        Raises:
          RefusedError: the body is too long; most of it is not read.
          ConnectionError: the client is gone.
        """
        limit = self._options.max_body_bytes
        expects = False
        for name, value in scope["headers"]:
            if name == b"expect":
                expects = True
            elif (
                name == b"content-length" and int(value) > limit
            ):  # the server has checked that it is a number
                raise _too_long(limit, expects or any(name == b"expect" for name, _ in scope["headers"]))
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts = bytearray(body)
            while message.get("more_body"):
                message = await receive()
                parts += message.get("body", b"")
                if len(parts) > limit:
                    raise _too_long(limit, expects)
            body = bytes(parts)
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client is gone")
        return body


def _too_long(limit: int, expects: bool) -> RefusedError:
    # A client that asked first, by Expect, may send the body after the refusal, or may not.
    close = {"connection": "close"} if expects else {}
    return RefusedError(
        413, "body_too_long", f"the body is longer than {limit} bytes; send fewer instances", **close
    )


class Endpoint:
    """One way to ask for scores.

    Args:
      route: name in the metrics.
      loader: of the model.
      limits: of requests.
      metrics: counts the requests.
      work: decodes a body and encodes the answer; called with the scope and the body of a request.
      error: makes the answer to a request that is refused: status, message and details.
    """

    def __init__(
        self,
        route: str,
        loader: Loader,
        limits: Limits,
        metrics: Metrics,
        work: Callable[[Predictor, Scope, bytes], Scored],
        error: Callable[..., Response],
    ) -> None:
        self._route = route
        self._loader = loader
        self._limits = limits
        self._metrics = metrics
        self._work = work
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive) -> Response:
        """Answers a request."""
        # Inference runs in the event loop: a batch takes less than handing it to a thread and back, and one
        # process has one core anyway.
        try:
            body = await self._limits.read(scope, receive)
            arrival = scope.get("state", {}).get(ARRIVAL)
            arrived = arrival.received_at if arrival else time.monotonic()
            predictor = self._loader.predictor
            if predictor is None:
                raise RefusedError(503, "not_ready", self._loader.status, retry_after=RETRY_SECONDS)
            await self._limits.take_turn(arrived)
            try:
                answer, scores = self._work(predictor, scope, body)
                self._limits.scored_at = time.monotonic()
            finally:
                self._limits.turn.release()
        except BadRequestError as error:
            details = {"instance": error.instance, "field": error.field, "reason": error.reason}
            return self._refuse(400, "bad_request", str(error), **details)
        except RefusedError as error:
            response = self._refuse(error.code, error.reason, str(error))
            response.headers.update(error.headers)
            return response
        except ConnectionError:
            return Response(status_code=400)  # which nobody reads
        except Exception as error:
            _LOG.exception("a request failed")
            return self._refuse(500, "failed", f"{type(error).__name__}: {error}")
        self._metrics.answered(
            self._route, self._limits.scored_at - arrived, scores, predictor.manifest.model_version
        )
        return _ScoresResponse(answer)

    def _refuse(self, code: int, label: str, message: str, **details: Any) -> Response:
        self._metrics.refused(self._route, code, label)
        return self._error(code, message, **details)


class _ScoresResponse(Response):
    """An answer with scores; Starlette's way to make the same headers costs ten times as much."""

    def __init__(self, body: bytes) -> None:
        self.status_code = 200
        self.body = body
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", JSON.encode())]


def error_response(code: int, message: str, **details: Any) -> Response:
    """Makes an answer `{"error": {"code", "message", ...}}` with this status, without details of None."""
    known = {name: value for name, value in details.items() if value is not None}
    body = orjson.dumps({"error": {"code": code, "message": message, **known}})
    return Response(body, status_code=code, media_type=JSON)

"""The serving contract from the caller's side: request bodies out, verified arrays or the reason in. No Beam.

    {"instances": [[30 floats], ...], "parameters": {"fields": [...]}}
    -> {"predictions": [{field: value, ...}, ...], "metadata": {"model_version": "..."}}

A call fails in two ways. A `TransientError` is not about the rows: a busy or absent server, credentials, a
wrong address; the same request may work later. A `RejectedError` is about these rows: the server refuses
them, or its answer is no score.
"""

from __future__ import annotations

import email.utils
import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from features.default import ULB
from model.outputs import ANOMALY_SCORE, ANSWER_FIELDS, CONTRIBUTIONS, SCORE_FIELDS, width
from transforms.scores import OutputDetail

MIN_REQUEST_BYTES: Final = 4096
"""Room for one row with every field asked for."""
NOT_ABOUT_ROWS: Final = frozenset((401, 403, 404, 405, 408, 425, 429))
"""4xx statuses that no content of a row can cause: credentials, address, time, load."""
_OVERLOAD_STATES: Final = frozenset(("RESOURCE_EXHAUSTED", "UNAVAILABLE"))
_SERVER_STATES: Final = _OVERLOAD_STATES | {
    "FAILED_PRECONDITION",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "INTERNAL",
    "DEADLINE_EXCEEDED",
}
"""Google's names of errors that are the server's. With a status of 4xx they may hide what a model says of a
row: HTTP 400 with FAILED_PRECONDITION comes from an endpoint without a traffic split, for example."""
_TEXT_LIMIT: Final = 300


class TransientError(Exception):
    """The call failed for a reason that is not in the rows.

    Attributes:
      retry_after: seconds that the server asked to wait, or None.
      throttled: whether the server reports overload (429 or 503).
    """

    def __init__(self, reason: str, retry_after: float | None = None, throttled: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.throttled = throttled


class SuspectError(TransientError):
    """The call failed for a reason that may be the server's, or may be in the rows.

    Vertex AI wraps what a model's server says of a row in its own errors; a model that fails on a row answers
    HTTP 500, as one does that fails on all.
    """


class RejectedError(Exception):
    """The server refused these rows, or its answer is no score."""


class MalformedError(RejectedError):
    """The answer is no score, which need not be the fault of the rows."""


class Response(NamedTuple):
    """An HTTP answer: status, headers with names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """A verified answer.

    Attributes:
      outputs: float32 arrays by field; [n], or [n, width of the field].
      model_version: the version that the server named, or None.
      deployed_model: the id of the deployed model that Vertex AI named, or None.
    """

    outputs: dict[str, npt.NDArray[np.float32]]
    model_version: str | None = None
    deployed_model: str | None = None


class Request(NamedTuple):
    """Rows start to stop of a batch, as the body of one request."""

    start: int
    stop: int
    body: bytes


class _AnyBody(msgspec.Struct):
    predictions: list[dict[str, Any]]


class _Metadata(msgspec.Struct):
    model_version: str | None = None


@dataclass(frozen=True)
class Contract:
    """Requests for rows, and the reading of their answers.

    Attributes:
      detail: "compact" for the outputs that SCORES needs, "full" for all outputs.
      per_instance: ask for the fields in every instance, `{"features": [...], "fields": [...]}`, for servers
        that hand single instances to the model and drop `parameters`: Vertex AI's prebuilt containers.
      plain: ask for no fields, and take those that come.
      score_field: the field that is the score. Contributions explain anomaly_score alone, so that with
        another score they are not asked for.
      absent: fields that this server does not have; their columns stay empty.
      n_inputs: of the model.
    """

    detail: OutputDetail = "compact"
    per_instance: bool = False
    plain: bool = False
    score_field: str = ANOMALY_SCORE
    absent: frozenset[str] = frozenset()
    n_inputs: int = len(ULB.inputs)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are asked for and that every prediction must have."""
        wanted = ANSWER_FIELDS if self.detail == "full" else SCORE_FIELDS
        left_out = self.absent
        if self.score_field != ANOMALY_SCORE:
            wanted = tuple(dict.fromkeys((self.score_field, *wanted)))
            left_out |= {ANOMALY_SCORE, CONTRIBUTIONS}
        return tuple(name for name in wanted if name not in left_out)

    def fitted(self, response: Response) -> Contract:
        """Returns this contract without the fields that the answer to one plain row does not have.

        Raises:
          TransientError, RejectedError: as `read`.
          MalformedError: the answer is no prediction, or does not have the score.
        """
        check_status(response)
        try:
            body = msgspec.json.decode(response.body, type=_AnyBody)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedError(f"malformed answer: {error}: {_excerpt(response.body)}") from None
        names = body.predictions[0].keys() if body.predictions else ()
        if self.score_field not in names:
            fields = ", ".join(names)[:_TEXT_LIMIT] or "none"
            raise MalformedError(
                f"expected the field {self.score_field} in a prediction, got {fields}; pass one of them "
                "that is a single number as --score_field, and thresholds for it"
            )
        return replace(self, absent=frozenset(self.fields).difference(names))

    def encode(self, instances: Any) -> bytes:
        """The body for instances, each float32 in the fewest digits that give the same one."""
        body: dict[str, Any]
        if self.plain:
            body = {"instances": instances}
        elif self.per_instance:
            body = {"instances": [{"features": row, "fields": self.fields} for row in instances]}
        else:
            body = {"instances": instances, "parameters": {"fields": self.fields}}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def requests(self, instances: Any, max_rows: int, max_bytes: int, start: int = 0) -> Iterator[Request]:
        """Splits rows into requests of at most `max_rows` rows and `max_bytes` bytes, in order.

        Args:
          instances: a C-contiguous matrix, or a list.
          max_rows: at least 1.
          max_bytes: at least MIN_REQUEST_BYTES.
          start: number of the first row.
        """
        for low in range(0, len(instances), max_rows):
            part = instances[low : low + max_rows]
            body = self.encode(part)
            if len(body) > max_bytes and len(part) > 1:
                yield from self.requests(part, (len(part) + 1) // 2, max_bytes, start + low)
            else:
                yield Request(start + low, start + low + len(part), body)

    def read(self, response: Response, n: int) -> Answer:
        """Checks the answer for `n` rows and takes its arrays.

        Raises:
          TransientError: the status says that the same request may work later.
          RejectedError: the status is another one.
          MalformedError: the body is no answer for `n` rows: not JSON, another number of predictions, a field
            missing, of the wrong shape or not a finite number.
        """
        check_status(response)
        try:
            body = _decoder(self.fields, self.n_inputs)(response.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedError(f"malformed answer: {error}: {_excerpt(response.body)}") from None
        if len(body.predictions) != n:
            raise MalformedError(f"malformed answer: {len(body.predictions)} predictions for {n} instances")
        outputs = {}
        for name in self.fields:
            with np.errstate(over="ignore"):
                values = np.array([getattr(row, name) for row in body.predictions], np.float32)
            if not np.isfinite(values).all():
                raise MalformedError(f"malformed answer: {name} is not a finite float32")
            outputs[name] = values
        outputs[ANOMALY_SCORE] = outputs[self.score_field]
        version = body.metadata and body.metadata.model_version
        deployed = response.headers.get("x-vertex-ai-deployed-model-id") or body.deployedModelId
        return Answer(outputs, version, deployed)


def check_status(response: Response) -> None:
    """Passes a 200.

    Raises:
      TransientError: 429, 408, 425, 5xx, a redirect, or a status about credentials or the address.
      SuspectError: 500, or another 4xx with an error that Google's name for it blames on the server.
      RejectedError: another 4xx.
    """
    status = response.status
    if status == 200:
        return
    message, state = _error(response.body)
    reason = f"HTTP {status}: {message}"
    may_be_rows = 400 <= status < 500 and status not in NOT_ABOUT_ROWS
    if may_be_rows and state not in _SERVER_STATES:
        raise RejectedError(reason)
    throttled = status in (429, 503) or state in _OVERLOAD_STATES
    suspect = not throttled and (may_be_rows or status == 500)
    kind = SuspectError if suspect else TransientError
    raise kind(reason, _retry_after(response.headers), throttled)


def _error(body: bytes) -> tuple[str, str | None]:
    """The message in an error answer, in Google's form or TorchServe's, and Google's name of the error.

    Without a message it is the beginning of the body.
    """
    try:
        content = orjson.loads(body)
    except ValueError:
        return _excerpt(body), None
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, str):
        return error[:_TEXT_LIMIT], None
    if not isinstance(error, dict):
        return _excerpt(body), None
    state = error.get("status")
    message = str(error["message"])[:_TEXT_LIMIT] if "message" in error else _excerpt(body)
    return message, state if isinstance(state, str) else None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[: 4 * _TEXT_LIMIT].decode(errors="replace").split())
    return text[:_TEXT_LIMIT] or "(empty body)"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _kind(name: str, n_inputs: int) -> Any:
    size = width(name, n_inputs)
    if size is None:
        return float
    return Annotated[list[float], msgspec.Meta(min_length=size, max_length=size)]


@functools.cache
def _decoder(fields: tuple[str, ...], n_inputs: int) -> Any:
    """Decodes an answer strictly: strings, booleans and null are no numbers; other members are ignored."""
    members = [(name, _kind(name, n_inputs)) for name in fields]
    prediction: Any = msgspec.defstruct("Prediction", members, gc=False)
    body = msgspec.defstruct(
        "Body",
        [
            ("predictions", list[prediction]),
            ("metadata", _Metadata | None, None),
            ("deployedModelId", str | None, None),
        ],
    )
    return msgspec.json.Decoder(body).decode

"""The Open Inference Protocol (KServe v2) over JSON: tensors in, tensors out.

    POST /v2/models/NAME/infer
    {"inputs": [{"name": "features", "shape": [2, 30], "datatype": "FP32", "data": [...]}],
     "outputs": [{"name": "anomaly_score"}]}

In the place of the one tensor `features` there may be one of each feature, of shape [n] or [n, 1], under its
name. Data are flat or nested. The binary extension is not spoken.

Reference: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
from starlette.responses import Response

from model.outputs import ANOMALY_SCORE, ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.predictor import Predictor
from model.serving.request import SEVERITY, BadRequestError
from model.thresholds import SEVERITIES, severity_codes

INPUT: Final = "features"
DATATYPES: Final = (
    *("FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64"),
    *("UINT8", "UINT16", "UINT32", "UINT64"),
)
"""Of inputs; the values of all are JSON numbers."""
OUTPUTS: Final = (*ANSWER_FIELDS, SEVERITY)

Floats = npt.NDArray[np.float32]


class _Tensor(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[float | list[float]]
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class InferRequest(msgspec.Struct):
    """A valid request.

    Attributes:
      features: raw features, float32 [n, features of the model], finite.
      outputs: names of the outputs to answer.
      id: of the request, to be repeated in the answer.
    """

    features: Floats
    outputs: tuple[str, ...]
    id: str | None


_decode: Final = msgspec.json.Decoder(_Request).decode


def parse(body: bytes, features: tuple[str, ...]) -> InferRequest:
    """Decodes and checks the body of a request to infer.

    Raises:
      BadRequestError: the body is not JSON, or breaks a rule; it names the member.
    """
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is no request to infer: {error}") from None
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if len(tensors) != len(request.inputs):
        raise BadRequestError("expected each name once", field="inputs")
    if set(tensors) == {INPUT} and features != (INPUT,):
        tensor = tensors[INPUT]
        if len(tensor.shape) != 2 or tensor.shape[1] != len(features):
            raise BadRequestError(f"expected shape [n, {len(features)}], got {tensor.shape}", field=INPUT)
        matrix = _values(tensor).reshape(-1, len(features))
    elif set(tensors) == set(features):
        columns = [_column(tensors[name]) for name in features]
        if len(set(map(len, columns))) > 1:
            raise BadRequestError("expected as many values of each feature", field="inputs")
        matrix = np.stack(columns, axis=1)
    else:
        wrong = sorted(set(tensors) ^ set(features) - {INPUT})
        raise BadRequestError(
            f"expected one tensor {INPUT!r}, or one a feature; see {wrong[0] if wrong else ''!r:.60}",
            field="inputs",
        )
    if not len(matrix):
        raise BadRequestError("expected at least one row", field="inputs")
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        raise BadRequestError("is not a finite float32", int(bad[0][0]), features[bad[0][1]])
    return InferRequest(matrix, _outputs(request), request.id)


def _outputs(request: _Request) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(output.name for output in request.outputs or ()))
    for name in names:
        if name not in OUTPUTS:
            raise BadRequestError(
                f"unknown output {name!r:.60}; known are {', '.join(OUTPUTS)}", field="outputs"
            )
    return names or DEFAULT_FIELDS


def _column(tensor: _Tensor) -> Floats:
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise BadRequestError(f"expected shape [n] or [n, 1], got {tensor.shape}", field=tensor.name)
    return _values(tensor)


def _values(tensor: _Tensor) -> Floats:
    if tensor.datatype not in DATATYPES:
        raise BadRequestError(
            f"expected a datatype of {', '.join(DATATYPES)}, got {tensor.datatype!r:.40}", field=tensor.name
        )
    data: Any = tensor.data
    if data and isinstance(data[0], list):
        if any(not isinstance(row, list) or len(row) != tensor.shape[-1] for row in data):
            raise BadRequestError(f"expected rows of {tensor.shape[-1]} numbers", field=tensor.name)
        data = list(chain.from_iterable(data))
    elif any(isinstance(value, list) for value in data):
        raise BadRequestError("expected numbers, or lists of numbers", field=tensor.name)
    if min(tensor.shape) < 0 or len(data) != math.prod(tensor.shape):
        raise BadRequestError(f"expected values for shape {tensor.shape}, got {len(data)}", field=tensor.name)
    with np.errstate(over="ignore"):
        return np.fromiter(data, np.float32, len(data))


def answer(predictor: Predictor, request: InferRequest) -> tuple[bytes, Floats]:
    """The body of the answer, and the scores of the rows."""
    wanted = [name for name in request.outputs if name != SEVERITY]
    outputs = predictor.outputs(request.features, list(dict.fromkeys((*wanted, ANOMALY_SCORE))))
    scores = outputs[ANOMALY_SCORE]
    tensors: list[dict[str, Any]] = []
    for name in request.outputs:
        if name == SEVERITY:
            codes = severity_codes(scores, predictor.manifest.thresholds).tolist()
            data: Any = [SEVERITIES[code] for code in codes]
            shape, datatype = (len(data),), "BYTES"
        else:
            data, shape, datatype = outputs[name].ravel(), outputs[name].shape, "FP32"
        tensors.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
    manifest = predictor.manifest
    body = {"model_name": manifest.model_name, "model_version": manifest.model_version, "outputs": tensors}
    if request.id is not None:
        body["id"] = request.id
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), scores


def metadata(predictor: Predictor) -> dict[str, Any]:
    """Describes the model: its name, versions, inputs and outputs."""
    manifest = predictor.manifest

    def tensor(name: str, width: int | None, datatype: str = "FP32") -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": [-1] if width is None else [-1, width]}

    return {
        "name": manifest.model_name,
        "versions": [manifest.model_version],
        "platform": "pytorch_torchscript",
        "inputs": [tensor(INPUT, len(manifest.spec.inputs))],
        "outputs": [
            *(tensor(name, width) for name, width in predictor.widths.items()),
            tensor(SEVERITY, None, "BYTES"),
        ],
    }


def error_response(code: int, message: str, **_: Any) -> Response:
    """Makes an answer `{"error": "..."}`, the form of the protocol."""
    return Response(orjson.dumps({"error": message}), status_code=code, media_type="application/json")

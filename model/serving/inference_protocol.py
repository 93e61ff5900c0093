"""The Open Inference Protocol (KServe v2) over JSON: tensors in, tensors out.

    POST /v2/models/NAME/infer
    {"inputs": [{"name": "features", "shape": [2, 30], "datatype": "FP32", "data": [...]}],
     "outputs": [{"name": "anomaly_score"}]}

In the place of the one tensor `features` there may be one of each feature, of shape [n] or [n, 1], under its
name. Data are flat or nested. The binary extension is not spoken.

A model of own features has one tensor of each field, such as texts (BYTES) of a category; see `own_tensors`.

Reference: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
from starlette.responses import Response

from features.declaration import FeatureSpec
from features.kinds import REJECT
from features.rows import RowEncoder
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
OWN_DATATYPES: Final = ("BOOL", "BYTES")
"""Also of inputs of own features; the values are JSON's booleans and texts."""
_OWN: Final = {"number": "FP64", "boolean": "BOOL", "category": "BYTES"}
_TIME_DATATYPES: Final = {"any": "BYTES", "rfc3339": "BYTES", "seconds": "FP64", "milliseconds": "INT64"}
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


class _OwnTensor(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class _OwnRequest(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    inputs: list[_OwnTensor]
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
_decode_own: Final = msgspec.json.Decoder(_OwnRequest).decode


def parse_for(predictor: Predictor, body: bytes) -> InferRequest:
    """Decodes and checks the body of a request to a model; see `parse`."""
    spec = predictor.manifest.spec
    return parse(body, spec.inputs) if spec.is_numeric else parse_own(body, spec, predictor.encoder)


def parse_own(body: bytes, spec: FeatureSpec, encoder: RowEncoder) -> InferRequest:
    """Decodes and checks the body of a request to a model of own features; see `parse`."""
    request, tensors = _decoded(body, _decode_own)
    if unknown := sorted(set(tensors) - set(spec.fields)):
        expected = f"expected tensors {', '.join(spec.fields)}"
        raise BadRequestError(f"{expected}, got {unknown[0]!r:.60}", field="inputs")
    columns = {name: _column_of(tensor, (*DATATYPES, *OWN_DATATYPES)) for name, tensor in tensors.items()}
    length = _length(list(columns.values()))
    absent = [None] * length
    rows = list(zip(*(columns.get(field, absent) for field in spec.fields), strict=True))
    encoded = encoder.encode(rows)
    for index, text in encoded.reasons.items():
        field, _, reason = text.partition(": ")
        raise BadRequestError(reason, index, field)
    return InferRequest(encoded.inputs, _outputs(request), request.id)


def parse(body: bytes, features: tuple[str, ...]) -> InferRequest:
    """Decodes and checks the body of a request to infer.

    Raises:
      BadRequestError: the body is not JSON, or breaks a rule; it names the member.
    """
    request, tensors = _decoded(body, _decode)
    if set(tensors) == {INPUT} and features != (INPUT,):
        tensor = tensors[INPUT]
        if len(tensor.shape) != 2 or tensor.shape[1] != len(features):
            raise BadRequestError(f"expected shape [n, {len(features)}], got {tensor.shape}", field=INPUT)
        matrix = _values(tensor).reshape(-1, len(features))
    elif set(tensors) == set(features):
        columns = [_column(tensors[name]) for name in features]
        _length(columns)
        matrix = np.stack(columns, axis=1)
    else:
        wrong = sorted(set(tensors) ^ set(features) - {INPUT})
        raise BadRequestError(
            f"expected one tensor {INPUT!r}, or one a feature; see {wrong[0] if wrong else ''!r:.60}",
            field="inputs",
        )
    _length([matrix])
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        raise BadRequestError("is not a finite float32", int(bad[0][0]), features[bad[0][1]])
    return InferRequest(matrix, _outputs(request), request.id)


def _decoded(body: bytes, decode: Callable[[bytes], Any]) -> tuple[Any, dict[str, Any]]:
    """The request, and its tensors by name."""
    try:
        request = decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is no request to infer: {error}") from None
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if len(tensors) != len(request.inputs):
        raise BadRequestError("expected each name once", field="inputs")
    return request, tensors


def _length(columns: Sequence[Sequence[Any] | Floats]) -> int:
    lengths = set(map(len, columns))
    if len(lengths) > 1:
        raise BadRequestError("expected as many values of each feature", field="inputs")
    if not lengths or not min(lengths):
        raise BadRequestError("expected at least one row", field="inputs")
    return min(lengths)


def _outputs(request: Any) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(output.name for output in request.outputs or ()))
    for name in names:
        if name not in OUTPUTS:
            raise BadRequestError(
                f"unknown output {name!r:.60}; known are {', '.join(OUTPUTS)}", field="outputs"
            )
    return names or DEFAULT_FIELDS


def _column(tensor: Any) -> Floats:
    with np.errstate(over="ignore"):
        data = _column_of(tensor, DATATYPES)
        return np.fromiter(data, np.float32, len(data))


def _column_of(tensor: Any, datatypes: Sequence[str]) -> list[Any]:
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise BadRequestError(f"expected shape [n] or [n, 1], got {tensor.shape}", field=tensor.name)
    return _data(tensor, datatypes)


def _values(tensor: Any) -> Floats:
    with np.errstate(over="ignore"):
        data = _data(tensor, DATATYPES)
        return np.fromiter(data, np.float32, len(data))


def _data(tensor: Any, datatypes: Sequence[str]) -> list[Any]:
    """The values of a tensor, flat."""
    if tensor.datatype not in datatypes:
        raise BadRequestError(
            f"expected a datatype of {', '.join(datatypes)}, got {tensor.datatype!r:.40}", field=tensor.name
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
    return list(data)


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
        "inputs": own_tensors(manifest.spec) or [tensor(INPUT, len(manifest.spec.inputs))],
        "outputs": [
            *(tensor(name, width) for name, width in predictor.widths.items()),
            tensor(SEVERITY, None, "BYTES"),
        ],
    }


def own_tensors(spec: FeatureSpec) -> list[dict[str, Any]]:
    """Describes the tensors of own features, one of each field; none where all features are numbers.

    A nullable one may be left out, or have null for a missing value.
    """
    if spec.is_numeric:
        return []
    tensors = []
    for field, value in spec.field_values.items():
        features = [feature for feature in spec.features if feature.source == field]
        datatype = _TIME_DATATYPES.get(spec.roles.time_format, "BYTES") if value == "time" else _OWN[value]
        is_nullable = all(feature.missing != REJECT for feature in features)
        parameters = {"kinds": [feature.kind for feature in features], "nullable": is_nullable}
        tensors.append({"name": field, "datatype": datatype, "shape": [-1], "parameters": parameters})
    return tensors


def error_response(code: int, message: str, **_: Any) -> Response:
    """Makes an answer `{"error": "..."}`, the form of the protocol."""
    return Response(orjson.dumps({"error": message}), status_code=code, media_type="application/json")

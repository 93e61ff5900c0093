"""Decodes prediction requests: bytes in, a matrix and the requested fields out, or the reason of a refusal.

    {"instances": [INSTANCE, ...], "parameters": {"fields": ["anomaly_score", ...]}}

An instance is the list of the 30 raw features in the order of `model.features`, or an object: with the 30
features by name, or with the list `features`. Numbers follow the rules of messages, `model.values`: finite in
float32, also as text, no booleans.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from model.features import FEATURES, N_FEATURES
from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS
from model.values import number


class BadRequestError(ValueError):
    """The request cannot be answered.

    Attributes:
      reason: the rule that is broken.
      instance: index of the instance at fault, or None when the fault is elsewhere.
      field: name of the feature or of the member at fault, or None.
    """

    def __init__(self, reason: str, instance: int | None = None, field: str | None = None) -> None:
        where = f"instances[{instance}]" if instance is not None else ""
        where += f".{field}" if where and field else field or ""
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.instance = instance
        self.field = field


class PredictRequest(NamedTuple):
    """A valid request.

    Attributes:
      features: raw features, float32 [n, 30], finite, n at least 1.
      fields: the fields to answer, as the request ordered them, without repetitions.
    """

    features: npt.NDArray[np.float32]
    fields: tuple[str, ...]


class _Parameters(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    fields: list[str] | None = None


class _Rows(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    instances: list[list[float]]
    parameters: _Parameters | None = None


_Named: Any = msgspec.defstruct("_Named", [(name, float) for name in FEATURES], gc=False)


class _NamedRows(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    instances: list[_Named]
    parameters: _Parameters | None = None


_decode_rows = msgspec.json.Decoder(_Rows).decode
_decode_named = msgspec.json.Decoder(_NamedRows).decode
_decode_any = msgspec.json.Decoder().decode


def parse_request(body: bytes) -> PredictRequest:
    """Decodes and checks a request body.

    >>> request = parse_request(b'{"instances": [[%s]]}' % b",".join([b"0.5"] * N_FEATURES))
    >>> request.features.shape, request.fields
    ((1, 30), ('anomaly_score', 'encoded'))

    Raises:
      BadRequestError: the body is not JSON, or breaks a rule; it names the instance and the field.
    """
    for decode, values in ((_decode_rows, None), (_decode_named, _values)):
        try:
            rows = decode(body)
            features = _matrix(list(map(values, rows.instances)) if values else rows.instances)
        except (msgspec.MsgspecError, ValueError, UnicodeDecodeError, RecursionError):
            continue
        if np.isfinite(features).all():
            return PredictRequest(features, _fields(rows.parameters and rows.parameters.fields))
        break
    return _parse_mixed(body)


def _values(named: Any) -> list[float]:
    return list(msgspec.structs.astuple(named))


def _parse_mixed(body: bytes) -> PredictRequest:
    """Takes instances of both forms in one request, and finds the fault of a request and its place."""
    request = _decode_json(body)
    if not isinstance(request, dict):
        raise BadRequestError('the body must be a JSON object such as {"instances": [[...]]}')
    unknown = sorted(set(request) - set(_Rows.__struct_fields__))
    if unknown:
        # A misspelt member would otherwise be answered as if it were not there.
        raise BadRequestError(f"unknown member {unknown[0]!r:.60}; known are instances and parameters")
    instances = request.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRequestError("expected a list of at least one instance", field="instances")
    fields = _fields(_wanted(request.get("parameters")))
    rows = [_row(instance, i) for i, instance in enumerate(instances)]
    features = _matrix(rows)
    wrong = np.argwhere(~np.isfinite(features))
    if len(wrong):
        index, position = (int(number) for number in wrong[0])
        value = rows[index][position]
        raise BadRequestError(f"{value!r:.40} is not a finite float32", index, FEATURES[position])
    return PredictRequest(features, fields)


def _decode_json(body: bytes) -> Any:
    try:
        return _decode_any(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        pass
    try:
        # Slower, but it reads NaN, Infinity and 1e999, so that the answer can say which instance has them.
        return json.loads(body)
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the body is not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None


def _matrix(rows: list[list[float]]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        matrix = np.array(rows, np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != N_FEATURES:
        raise ValueError(f"shape {matrix.shape}")
    return matrix


def _row(instance: Any, index: int) -> list[float]:
    """The values of one instance; in C where nothing is wrong, in Python to say what is."""
    try:
        if isinstance(instance, list):
            values: list[float] = msgspec.convert(instance, list[float])
            if len(values) == N_FEATURES:
                return values
        else:
            return _values(msgspec.convert(instance, _Named))
    except msgspec.ValidationError:
        pass
    return _checked(instance, index)


def _checked(instance: Any, index: int) -> list[float]:
    if isinstance(instance, dict) and isinstance(instance.get("features"), list) and instance["features"]:
        instance = instance["features"]
    if isinstance(instance, dict):
        missing = [name for name in FEATURES if name not in instance]
        if missing:
            raise BadRequestError("is missing", index, missing[0])
        values = [instance[name] for name in FEATURES]
    elif isinstance(instance, list):
        values = instance
        if len(values) != N_FEATURES:
            raise BadRequestError(f"expected {N_FEATURES} features, got {len(values)}", index)
    else:
        kind = _kind(instance)
        raise BadRequestError(f"expected a list of {N_FEATURES} features or an object, got {kind}", index)
    values = [_from_text(value) for value in values]
    for name, value in zip(FEATURES, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequestError(f"expected a number, got {_kind(value)}", index, name)
        if not _is_finite(value):
            raise BadRequestError(f"{value!r:.40} is not a finite float32", index, name)
    return values


def _from_text(value: Any) -> Any:
    try:
        return number(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_finite(value: float) -> bool:
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float32(value)))
    except OverflowError:  # an integer beyond any float
        return False


def _wanted(parameters: Any) -> Any:
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise BadRequestError(f"expected an object, got {_kind(parameters)}", field="parameters")
    unknown = sorted(set(parameters) - {"fields"})
    if unknown:
        raise BadRequestError(f"unknown member {unknown[0]!r}; known is fields", field="parameters")
    return parameters.get("fields")


def _fields(requested: Any) -> tuple[str, ...]:
    if requested is None:
        return DEFAULT_FIELDS
    if (
        not isinstance(requested, list)
        or not requested
        or not all(isinstance(name, str) for name in requested)
    ):
        raise BadRequestError("expected a list of at least one name", field="parameters.fields")
    for name in requested:
        if name not in ANSWER_FIELDS:
            raise BadRequestError(
                f"unknown field {name!r:.60}; known are {', '.join(ANSWER_FIELDS)}", field="parameters.fields"
            )
    return tuple(dict.fromkeys(requested))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")

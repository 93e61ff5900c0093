"""Decodes prediction requests: bytes in, a matrix and the requested fields out, or the reason of a refusal.

    {"instances": [INSTANCE, ...], "parameters": {"fields": ["anomaly_score", ...]}}

An instance is the list of the model's raw features in their order, or an object with them by name. As at
TorchServe, it may also be either of them as JSON text, or `{"features": INSTANCE, "fields": [...]}` with
fields of its own. Numbers follow the rules of messages, `features.values`: finite in float32, also as text,
no booleans.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features.values import number
from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.numbers import NumberDecoder, NumberRows

SEVERITY: Final = "severity"
"""The field with a row's severity by the thresholds of the model."""
THRESHOLDS: Final = "thresholds"
"""The field that puts the thresholds into the metadata of an answer, once for all rows."""
REQUEST_FIELDS: Final = (*ANSWER_FIELDS, SEVERITY, THRESHOLDS)
"""Names that `fields` of a request may hold."""


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
      features: raw features, float32 [n, features of the model], finite, n at least 1.
      fields: the fields to answer, as the request ordered them, without repetitions.
      own_fields: the fields of each row, where instances name their own; otherwise None.
    """

    features: npt.NDArray[np.float32]
    fields: tuple[str, ...]
    own_fields: tuple[tuple[str, ...], ...] | None = None


class _Parameters(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    fields: list[str] | None = None


_MEMBERS: Final = ("instances", "parameters")
_decode_parameters: Final = msgspec.json.Decoder(_Parameters | None).decode
_decode_any: Final = msgspec.json.Decoder().decode


class RequestParser:
    """Decodes and checks the requests to one model."""

    def __init__(self, features: Sequence[str]) -> None:
        """Makes the parser for a model with these features."""
        self._features = tuple(features)
        self._keys = frozenset(name.partition(".")[0] for name in features)
        self._numbers = NumberDecoder(len(self._features))
        # Numbered, since a feature's name may be no identifier of Python.
        renamed = {f"f{i}": name for i, name in enumerate(features)}
        members = [(name, float) for name in renamed]
        named: Any = msgspec.defstruct("_Named", members, gc=False, rename=renamed)
        self._named = named
        rows = msgspec.defstruct(
            "_NamedRows",
            [("instances", list[named]), ("parameters", msgspec.Raw, msgspec.Raw())],
            gc=False,
            forbid_unknown_fields=True,
        )
        self._decode_named = msgspec.json.Decoder(rows).decode

    def parse(self, body: bytes) -> PredictRequest:
        """Decodes and checks a request body.

        >>> request = RequestParser(["amount", "hour"]).parse(b'{"instances": [[12.5, 3]]}')
        >>> request.features.tolist(), request.fields
        ([[12.5, 3.0]], ('anomaly_score', 'encoded'))

        Raises:
          BadRequestError: the body is not JSON, or breaks a rule; it names the instance and the field.
        """
        try:
            usual = self._numbers.decode(body) or self._by_name(body)
            parameters = _decode_parameters(usual.parameters) if usual.parameters else None
        except (msgspec.MsgspecError, ValueError, UnicodeDecodeError, RecursionError):
            return self._parse_mixed(body)
        if not np.isfinite(usual.features).all():
            return self._parse_mixed(body)
        return PredictRequest(usual.features, _fields(parameters and parameters.fields))

    def _by_name(self, body: bytes) -> NumberRows:
        request: Any = self._decode_named(body)
        rows = list(map(msgspec.structs.astuple, request.instances))
        return NumberRows(self._matrix(rows), bytes(request.parameters))

    def _matrix(self, rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
        width = len(self._features)
        if set(map(len, rows)) != {width}:
            raise ValueError(f"expected rows of {width} features")
        with np.errstate(over="ignore"):
            flat = np.fromiter(chain.from_iterable(rows), np.float32, len(rows) * width)
        return flat.reshape(len(rows), width)

    def _parse_mixed(self, body: bytes) -> PredictRequest:
        """Takes instances of all forms in one request, and finds the fault of a request and its place."""
        request = _decode_json(body)
        if not isinstance(request, dict):
            raise BadRequestError('the body must be a JSON object such as {"instances": [[...]]}')
        unknown = sorted(set(request) - set(_MEMBERS))
        if unknown:
            # A misspelt member would otherwise be answered as if it were not there.
            raise BadRequestError(f"unknown member {unknown[0]!r:.60}; known are instances and parameters")
        instances = request.get("instances")
        if not isinstance(instances, list) or not instances:
            raise BadRequestError("expected a list of at least one instance", field="instances")
        fields = _fields(_wanted(request.get("parameters")))
        own: dict[int, tuple[str, ...]] = {}
        rows = [self._instance(instance, i, own) for i, instance in enumerate(instances)]
        features = self._matrix(rows)
        wrong = np.argwhere(~np.isfinite(features))
        if len(wrong):
            index, position = (int(number) for number in wrong[0])
            value = rows[index][position]
            raise BadRequestError(f"{value!r:.40} is not a finite float32", index, self._features[position])
        if not own:
            return PredictRequest(features, fields)
        own_fields = tuple(own.get(i, fields) for i in range(len(rows)))
        return PredictRequest(features, tuple(dict.fromkeys(chain(*own_fields))), own_fields)

    def _instance(self, instance: Any, index: int, own: dict[int, tuple[str, ...]]) -> list[float]:
        """The values of one instance; the fields that the instance names go to `own`."""
        instance = self._decoded(instance, index)
        if not isinstance(instance, dict) or "features" not in instance or self._keys & instance.keys():
            return self._row(instance, index)
        unknown = sorted(set(instance) - {"features", "fields"})
        if unknown:
            reason = f"unknown member {unknown[0]!r:.60}; known are features and fields"
            raise BadRequestError(reason, index)
        if instance.get("fields") is not None:
            try:
                own[index] = _fields(instance["fields"])
            except BadRequestError as error:
                raise BadRequestError(error.reason, index, "fields") from None
        return self._row(self._decoded(instance["features"], index), index)

    def _decoded(self, instance: Any, index: int) -> Any:
        """The instance itself, or of JSON text its content."""
        if not isinstance(instance, str):
            return instance
        try:
            return _decode_json(instance.encode())
        except (BadRequestError, UnicodeEncodeError):
            raise BadRequestError(self._expected("a string that is not JSON"), index) from None

    def _row(self, instance: Any, index: int) -> list[float]:
        """The values of one instance; in C where nothing is wrong, in Python to say what is."""
        if isinstance(instance, dict) and instance.get("features") and isinstance(instance["features"], list):
            instance = instance["features"]
        try:
            if isinstance(instance, list):
                values: list[float] = msgspec.convert(instance, list[float])
                if len(values) == len(self._features):
                    return values
            else:
                return list(msgspec.structs.astuple(msgspec.convert(instance, self._named)))
        except msgspec.ValidationError:
            pass
        return self._checked(instance, index)

    def _checked(self, instance: Any, index: int) -> list[float]:
        if isinstance(instance, dict):
            missing = [name for name in self._features if name not in instance]
            if missing:
                raise BadRequestError("is missing", index, missing[0])
            values = [instance[name] for name in self._features]
        elif isinstance(instance, list):
            values = instance
            if len(values) != len(self._features):
                raise BadRequestError(f"expected {len(self._features)} features, got {len(values)}", index)
        else:
            raise BadRequestError(self._expected(_kind(instance)), index)
        values = [_from_text(value) for value in values]
        for name, value in zip(self._features, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BadRequestError(f"expected a number, got {_kind(value)}", index, name)
            if not _is_finite(value):
                raise BadRequestError(f"{value!r:.40} is not a finite float32", index, name)
        return values

    def _expected(self, kind: str) -> str:
        return f"expected a list of {len(self._features)} features or an object, got {kind}"


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
        if name not in REQUEST_FIELDS:
            raise BadRequestError(
                f"unknown field {name!r:.60}; known are {', '.join(REQUEST_FIELDS)}",
                field="parameters.fields",
            )
    return tuple(dict.fromkeys(requested))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")

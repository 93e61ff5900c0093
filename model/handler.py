"""The TorchServe handler of the model archive. It stands alone: torch, numpy and the archive's own files.

It answers the 14 fields per instance, decodes and encodes whole requests itself (with orjson where the server
has it), and runs one model call for a whole dynamic batch. What it accepts:

  {"instances": [INSTANCE, ...], "parameters": {"fields": ["anomaly_score", ...]}}
      a whole request; the answer is {"predictions": [{...}, ...], "metadata": {"model_version": "..."}} as
      JSON bytes. `fields` may name any of the 14 fields and "contributions", the shares of the features in
      the score; without it, the 14 fields.
  INSTANCE
      as a request of its own, or as the json envelope of the prebuilt container passes it on: a list of 30
      numbers (also as text), an object by feature name, or either of them as JSON text; the answer is one
      object of fields.
  {"features": INSTANCE, "fields": ["anomaly_score", ...]}
      an instance that names its own fields, since the json envelope drops `parameters`.

A misspelt member is refused: it would otherwise be answered as if it were not there.

GET /models/NAME?customized=true of the management API describes the model: the features, the fields, and the
JSON schema of an instance.

A bad instance makes its request a 400 whose message names the instance and the reason. The other requests of
the dynamic batch are answered.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import numpy as np
import torch

try:
    import orjson
except ImportError:  # the prebuilt containers do not promise it
    orjson = None  # type: ignore[assignment]

from features.declaration import FeatureSpec, getter
from features.learnt import Learnt
from features.rows import RowEncoder
from features.schema import DIALECT, instance_schema
from features.values import number
from features.words import meaning

FEATURES_FILE = "features.json"
CONTRIBUTIONS = "contributions"
SCORE_FIELDS = frozenset(("anomaly_score", "encoded", CONTRIBUTIONS))
# The largest number that is still finite when it is rounded to float32, as for the other server.
FLOAT32_MAX = 3.4028235677973362e38
JSON = "application/json"
# Rows of one call of the model, as in model.inference. Rows above the gate take up to 20 kB each.
CALL_ROWS = 4096
_NUMBERS = frozenset((int, float))

# TorchServe takes the one class of this module for the handler, so the rest is functions.


class TransactionHandler:
    """Loads the traced model of the archive and answers requests."""

    def initialize(self, context: Any) -> None:
        """Loads the model; TorchServe calls this once in each worker.

        Raises:
          FileNotFoundError: the archive does not hold the serialised file that its manifest names.
        """
        properties = context.system_properties
        device = "cpu"
        if torch.cuda.is_available() and properties.get("gpu_id") is not None:
            device = f"cuda:{properties['gpu_id']}"
        self.device = torch.device(device)
        name = context.manifest["model"]["serializedFile"]
        path = os.path.join(properties["model_dir"], name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"The archive has no {name}")
        # One worker a core serves; more threads in each would only compete with them.
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            # As in model.torchscript, which is not in the archive: torch announces the end of torch.jit.
            warnings.filterwarnings("ignore", message=r".*torch\.jit.*is deprecated")
            module = torch.jit.load(path, map_location=self.device).eval()
            self.model = torch.jit.freeze(module, preserved_attrs=["score"])
        with open(os.path.join(properties["model_dir"], FEATURES_FILE), encoding="utf-8") as file:
            content = json.load(file)
        self.spec = FeatureSpec.from_json(content["spec"])
        self.keys = frozenset(name.partition(".")[0] for name in self.spec.fields)
        self.encoder = RowEncoder(self.spec, Learnt.from_json(content["learnt"]))
        # The first calls of a frozen module compile it; better now than under the first requests.
        for n in (1, 1, 2, 128, 128):
            rows = np.zeros((n, len(self.spec.inputs)), np.float32)
            self._predict(rows, SCORE_FIELDS)
            self.fields = tuple(self._predict(rows, None))
        self.name = str(context.manifest["model"].get("modelName") or "")
        self.version = str(context.manifest["model"].get("modelVersion") or "")
        self.initialized = True

    def handle(self, data: list[Any], context: Any) -> list[Any]:
        """Answers a dynamic batch: one answer for each item of `data`, in order."""
        if not data:
            return []
        for index in range(len(getattr(context, "request_ids", None) or data)):
            context.set_response_content_type(index, JSON)
        rows: list[list[float]] = []
        requests: list[dict[str, Any]] = []
        for i, item in enumerate(data):
            request: dict[str, Any] = {"fields": (), "describe": True}
            if not _asks_what(context, i):
                request = self._parse(item)
            request["start"] = len(rows)
            rows += request.pop("rows", [])
            request["stop"] = len(rows)
            requests.append(request)
        outputs: dict[str, Any] = {}
        if rows:
            wanted = frozenset().union(*(request.get("every", request["fields"]) for request in requests))
            outputs = self._predict(np.asarray(rows, dtype=np.float32), wanted)
        # With the json envelope an item is one instance of a request, and its number is not the request's.
        enveloped = len(data) != len(getattr(context, "request_ids", None) or data) or not any(
            isinstance(item, dict) and ("body" in item or "data" in item) for item in data
        )
        return [
            self._answer(request, outputs, context, None if enveloped else i, i)
            for i, request in enumerate(requests)
        ]

    def describe(self) -> bytes:
        """Describes the model and its instances as JSON, by the names that the FastAPI server has for it."""
        history = {feature.name: meaning(feature) for feature in self.spec.history}
        content = {
            "model_name": self.name,
            "model_version": self.version,
            "features": self.spec.names,
            **({"history": history} if history else {}),
            "inputs": self.spec.inputs,
            "instance_schema": {"$schema": DIALECT, **instance_schema(self.spec)},
            "fields": (*self.fields, CONTRIBUTIONS),
        }
        return _dumps(content)

    def _parse(self, item: Any) -> dict[str, Any]:
        """Reads one item: its rows, fields, and whether it is a whole request; or its error."""
        try:
            body = item
            if isinstance(item, dict) and ("body" in item or "data" in item):
                body = item["data"] if item.get("data") is not None else item.get("body")
            if isinstance(body, (bytes, bytearray, memoryview, str)):
                body = _loads(body)
            whole = isinstance(body, dict) and "instances" in body
            if not whole:
                row, fields = self._instance(body)
                return {"whole": False, "fields": fields or self.fields, "rows": [row]}
            _refuse_unknown(body, ("instances", "parameters"))
            instances = body["instances"]
            if not isinstance(instances, list) or not instances:
                raise ValueError("instances must be a list of at least one instance")
            fields = self._wanted(body.get("parameters"))
            if body.get("parameters"):
                _refuse_unknown(body["parameters"], ("fields",), "parameters: ")
            rows, own = [], {}
            for i, instance in enumerate(instances):
                try:
                    row, named = self._instance(instance)
                except ValueError as e:
                    raise ValueError(f"instances[{i}]: {e}") from None
                rows.append(row)
                if named:
                    own[i] = named
            every = tuple(dict.fromkeys((*fields, *(name for names in own.values() for name in names))))
            return {"whole": True, "fields": fields, "every": every, "own": own, "rows": rows}
        except ValueError as e:
            return {"whole": False, "fields": (), "error": str(e)}

    def _instance(self, instance: Any) -> tuple[list[float], tuple[str, ...] | None]:
        """Reads one instance: its numbers, and the fields that it names itself."""
        if isinstance(instance, (bytes, bytearray, memoryview, str)):
            instance = _loads(instance)
        if not isinstance(instance, dict) or "features" not in instance or self.keys & instance.keys():
            return self._row(instance), None
        _refuse_unknown(instance, ("features", "fields"))
        fields = self._wanted(instance) if instance.get("fields") is not None else None
        return self._row(instance["features"]), fields

    def _row(self, instance: Any) -> list[float]:
        """The inputs of one instance; ValueError names what is wrong with it."""
        if isinstance(instance, (bytes, bytearray, memoryview, str)):
            instance = _loads(instance)
        if self.spec.is_numeric:
            return _numbers(instance, self.spec.fields)
        inputs, reasons = self.encoder.encode([instance])
        if reasons:
            raise ValueError(reasons[0])
        return inputs[0].tolist()

    def _wanted(self, parameters: Any) -> tuple[str, ...]:
        if parameters is None:
            return self.fields
        if not isinstance(parameters, dict):
            raise ValueError("parameters must be an object")
        fields = parameters.get("fields")
        if fields is None:
            return self.fields
        known = (*self.fields, CONTRIBUTIONS)
        if not isinstance(fields, list) or not fields:
            raise ValueError("parameters.fields must be a list of at least one field name")
        for name in fields:
            if name not in known:
                raise ValueError(f"parameters.fields: unknown field {name!r}; known are {', '.join(known)}")
        return tuple(dict.fromkeys(fields))

    def _predict(self, rows: np.ndarray, wanted: frozenset[str] | None) -> dict[str, np.ndarray]:
        """Computes the wanted fields of these rows, and maybe more; None stands for the model's own 14."""
        parts = [self._call(rows[i : i + CALL_ROWS], wanted) for i in range(0, len(rows), CALL_ROWS)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _call(self, rows: np.ndarray, wanted: frozenset[str] | None) -> dict[str, np.ndarray]:
        outputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            features = torch.from_numpy(rows).to(self.device)
            if wanted is None or not wanted <= SCORE_FIELDS:
                outputs.update(self.model(features))
            if wanted is not None and (not outputs or CONTRIBUTIONS in wanted):
                outputs.update(zip(("anomaly_score", "encoded", CONTRIBUTIONS), self.model.score(features)))  # noqa: B905
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def _answer(
        self, request: dict[str, Any], outputs: dict[str, Any], context: Any, index: int | None, position: int
    ) -> Any:
        if "describe" in request:
            return self.describe()
        if "error" in request:
            return _refuse(request["error"], context, index, position)
        part = slice(request["start"], request["stop"])
        names = request.get("every", request["fields"])
        columns = [outputs[name][part] for name in names]
        if orjson is None or not request["whole"]:
            columns = [column.tolist() for column in columns]
        predictions = [dict(zip(names, values)) for values in zip(*columns)]  # noqa: B905
        if request.get("own"):
            wanted = [request["own"].get(i, request["fields"]) for i in range(len(predictions))]
            predictions = [{name: row[name] for name in own} for own, row in zip(wanted, predictions)]  # noqa: B905
        if not request["whole"]:
            return predictions[0]
        return _dumps({"predictions": predictions, "metadata": {"model_version": self.version}})


def _asks_what(context: Any, position: int) -> bool:
    """Tells whether a request is one of the management API for the description of the model."""
    if position >= len(context.request_ids or ()):  # one of several instances in the json envelope
        return False
    return context.get_request_header(position, "describe") == "True"


def _refuse(reason: str, context: Any, index: int | None, position: int) -> Any:
    """The answer to a bad item, with status 400 where the item has a request of its own."""
    if index is None:
        # Under the envelope only a lone request can be given a status; its neighbours' answers must stand.
        reason = reason if reason.startswith("instances") else f"instances[{position}]: {reason}"
        if len(getattr(context, "request_ids", None) or ()) == 1:
            context.set_response_status(code=400, phrase="Bad Request", idx=0)
        return {"code": 400, "type": "BadRequestException", "message": reason}
    context.set_response_status(code=400, phrase="Bad Request", idx=index)
    return _dumps({"code": 400, "type": "BadRequestException", "message": reason})


def _refuse_unknown(value: dict[str, Any], known: tuple[str, ...], where: str = "") -> None:
    """Refuses a misspelt member, which would otherwise be answered as if it were not there."""
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{where}unknown member {unknown[0]!r:.60}; known: {', '.join(known)}")


def _loads(text: Any) -> Any:
    if isinstance(text, (bytearray, memoryview)):
        text = bytes(text)
    try:
        # orjson refuses NaN and Infinity, as JSON does; the slow decoder says where they are.
        return orjson.loads(text) if orjson else json.loads(text)
    except ValueError:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("the body is nested too deeply") from None
        except ValueError as e:
            raise ValueError(f"the body is not JSON: {e}") from None


def _dumps(value: Any) -> bytes:
    # float32 in the fewest digits that read back the same: half the bytes of the same values as float64.
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY) if orjson else json.dumps(value).encode()


def _numbers(instance: Any, names: tuple[str, ...]) -> list[float]:
    """The numbers of one instance of a spec that has nothing else."""
    if isinstance(instance, dict) and instance.get("features") and isinstance(instance["features"], list):
        instance = instance["features"]
    if isinstance(instance, dict):
        values = [instance[name] if name in instance else getter(name)(instance) for name in names]
        missing = [name for name, value in zip(names, values) if value is None and name not in instance]  # noqa: B905
        if missing:
            raise ValueError(f"feature(s) missing: {', '.join(missing)}")
        instance = values
    if not isinstance(instance, list):
        raise ValueError(f"expected a list of {len(names)} numbers or an object, got {_kind(instance)}")
    if len(instance) != len(names):
        raise ValueError(f"expected {len(names)} numbers, got {len(instance)}")
    # `type` and not isinstance: True is an int to Python and not a number to the contract.
    if not _NUMBERS.issuperset(map(type, instance)):
        instance = [_from_text(value) for value in instance]
    if not _NUMBERS.issuperset(map(type, instance)):
        bad = next(i for i, value in enumerate(instance) if type(value) not in _NUMBERS)
        raise ValueError(f"{names[bad]}: expected a number, got {_kind(instance[bad])}")
    # Rounding to float32 may pass its largest number by half a unit and still be finite; refuse that as well.
    if not (
        min(instance) >= -FLOAT32_MAX and max(instance) <= FLOAT32_MAX and sum(instance) == sum(instance)
    ):
        bad = next(i for i, value in enumerate(instance) if not abs(value) <= FLOAT32_MAX)
        raise ValueError(f"{names[bad]}: not a finite float32 number")
    return instance


def _from_text(value: Any) -> Any:
    try:
        return number(value) if type(value) is str else value
    except ValueError:
        return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__

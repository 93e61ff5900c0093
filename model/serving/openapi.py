"""The OpenAPI document of a server: its routes, and requests and answers for the features of its model."""

from __future__ import annotations

from typing import Any, Final

from features import schema
from features.schema import LARGEST
from model.serving import inference_protocol
from model.serving.options import ServerOptions
from model.serving.predictor import Predictor
from model.serving.request import REQUEST_FIELDS, SEVERITY, THRESHOLDS
from model.thresholds import SEVERITIES

Json = dict[str, Any]

ID: Final = "[A-Za-z0-9_.-]+"
"""Expression of a part of a path. It has no colon, which begins the name of an action."""
VERTEX_ROUTE: Final = "/v1/endpoints/{endpoint}/deployedModels/{deployed_model}"
_NUMBER: Final[Json] = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
_STRING: Final[Json] = {"type": "string"}


def document(options: ServerOptions, predictor: Predictor) -> Json:
    """Describes the server with this model, as OpenAPI 3.1."""
    unknown = {"404": _answer("No such path", "ErrorResponse")}
    ready = {
        "200": _answer("Ready", "Health"),
        "503": _answer("The model is not loaded, or the server is ending", "ErrorResponse"),
    }
    scored = {"200": _answer("The scores", "PredictResponse"), **_refusals("ErrorResponse")}
    vertex = [
        _path_parameter(name, {"type": "string", "pattern": f"^{ID}$"})
        for name in ("endpoint", "deployed_model")
    ]
    paths: Json = {
        options.health_route: {"get": _health("health", ready)},
        VERTEX_ROUTE: {"parameters": vertex, "get": _health("vertexHealth", {**ready, **unknown})},
        options.predict_route: {"post": _predict("predict", scored)},
        f"{VERTEX_ROUTE}:predict": {
            "parameters": vertex,
            "post": _predict("vertexPredict", {**scored, **unknown}),
        },
        "/metadata": {
            "get": {
                "operationId": "metadata",
                "tags": ["model"],
                "summary": "Describe the model, and the limits of requests",
                "responses": {
                    "200": _answer("The model", "Metadata"),
                    "503": _answer("The model is not loaded", "ErrorResponse"),
                },
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "tags": ["health"],
                "summary": "Metrics of all worker processes for Prometheus",
                "responses": {
                    "200": {"description": "Metrics", "content": {"text/plain": {"schema": _STRING}}}
                },
            }
        },
        **_protocol_paths(predictor),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Transaction anomaly detection", "version": predictor.manifest.model_version},
        "paths": paths,
        "components": {"schemas": {**_schemas(predictor), **_protocol_schemas(predictor)}},
    }


def _health(operation: str, responses: Json) -> Json:
    summary = "Tell whether the model is loaded and the server takes requests"
    return {"operationId": operation, "tags": ["health"], "summary": summary, "responses": responses}


def _predict(operation: str, responses: Json) -> Json:
    return {
        "operationId": operation,
        "tags": ["scores"],
        "summary": "Score transactions",
        "requestBody": _body("PredictRequest"),
        "responses": responses,
    }


def _protocol_paths(predictor: Predictor) -> Json:
    """The routes of the Open Inference Protocol."""

    def get(operation: str, summary: str, good: str, schema: str, *more: str) -> Json:
        texts = {"404": "No such model", "503": "Not ready"}
        bad = {code: _answer(texts[code], "InferError") for code in more}
        responses = {"200": _answer(good, schema), **bad}
        return {"operationId": operation, "tags": ["v2"], "summary": summary, "responses": responses}

    paths: Json = {
        "/v2": {"get": get("serverMetadata", "Name the server", "The server", "ServerMetadata")},
        "/v2/health/live": {"get": get("live", "Tell that the process answers", "Alive", "Live")},
        "/v2/health/ready": {
            "get": get("ready", "Tell whether the server takes requests", "Ready", "Ready", "503")
        },
    }
    manifest = predictor.manifest
    name = _path_parameter("model_name", {"type": "string", "enum": [manifest.model_name]})
    version = _path_parameter("model_version", {"type": "string", "enum": [manifest.model_version]})
    for parameters, path, suffix in (
        ([name], "/v2/models/{model_name}", ""),
        ([name, version], "/v2/models/{model_name}/versions/{model_version}", "Version"),
    ):
        infer = {
            "operationId": f"infer{suffix}",
            "tags": ["v2"],
            "summary": "Score transactions by the Open Inference Protocol",
            "requestBody": _body("InferRequest"),
            "responses": {
                "200": _answer("The outputs", "InferResponse"),
                "404": _answer("No such model", "InferError"),
                **_refusals("InferError"),
            },
        }
        described = get(f"model{suffix}", "Describe the model", "The model", "ModelMetadata", "404", "503")
        ready = get(f"model{suffix}Ready", "Tell whether the model is loaded", "Ready", "Ready", "404", "503")
        paths[path] = {"parameters": parameters, "get": described}
        paths[f"{path}/ready"] = {"parameters": parameters, "get": ready}
        paths[f"{path}/infer"] = {"parameters": parameters, "post": infer}
    return paths


def _schemas(predictor: Predictor) -> Json:
    """Requests and answers of the form of Vertex AI."""
    spec = predictor.manifest.spec
    thresholds = _object({name: {"type": "number"} for name in SEVERITIES[1:]})
    fields = {"type": "array", "minItems": 1, "items": {"type": "string", "enum": list(REQUEST_FIELDS)}}
    values = {name: _values(width) for name, width in predictor.widths.items()}
    prediction = {"type": "object", "properties": {**values, SEVERITY: {"enum": list(SEVERITIES), **_STRING}}}
    about = {"model_version": _STRING, THRESHOLDS: thresholds}
    error = {
        **{"code": {"type": "integer"}, "message": _STRING, "field": _STRING, "reason": _STRING},
        "instance": {"type": "integer", "description": "Index of the instance at fault."},
    }
    return {
        "Row": schema.list_schema(spec),
        "NamedRow": schema.object_schema(spec),
        "RowWithFields": {
            **_object(
                {"features": {"anyOf": [_schema("Row"), _schema("NamedRow")]}, "fields": _or_null(fields)},
                "fields",
            ),
            "description": "An instance that names the fields of its own answer.",
        },
        "Parameters": _object({"fields": _or_null(fields)}, "fields"),
        "PredictRequest": _object(
            {
                "instances": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"anyOf": [_schema("Row"), _schema("NamedRow"), _schema("RowWithFields")]},
                },
                "parameters": _or_null(_schema("Parameters")),
            },
            "parameters",
        ),
        "Prediction": {**prediction, "additionalProperties": False},
        "PredictionMetadata": _object(about, THRESHOLDS),
        "PredictResponse": _object(
            {
                "predictions": {"type": "array", "items": _schema("Prediction")},
                "metadata": _schema("PredictionMetadata"),
            }
        ),
        "Error": _object(error, "instance", "field", "reason"),
        "ErrorResponse": _object({"error": _schema("Error")}),
        "Health": _object({"status": {"type": "string", "const": "ready"}, "model_version": _STRING}),
        "Limits": _object({name: {"type": "integer"} for name in ("rows", "body_bytes", "answer_bytes")}),
        "Metadata": _object(
            {
                "model_name": _STRING,
                "model_version": _STRING,
                "features": {"type": "array", "items": _STRING},
                "history": {
                    "type": "object",
                    "additionalProperties": _STRING,
                    "description": "Features over earlier transactions: numbers that a request has to hold",
                },
                "inputs": {"type": "array", "items": _STRING},
                "instance_schema": {"type": "object", "additionalProperties": True},
                "fields": {"type": "array", "items": _STRING},
                THRESHOLDS: thresholds,
                "limits": _schema("Limits"),
            },
            "history",
        ),
    }


def _protocol_schemas(predictor: Predictor) -> Json:
    """Requests and answers of the Open Inference Protocol."""
    spec = predictor.manifest.spec
    anything = _or_null({"type": "object", "additionalProperties": True})
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    more = () if spec.is_numeric else inference_protocol.OWN_DATATYPES
    # What a value may be hangs on the tensor that it is in.
    value = _NUMBER if spec.is_numeric else {"type": ["number", "string", "boolean", "null"]}
    data = {"type": "array", "items": {"anyOf": [value, {"type": "array", "items": value}]}}
    tensors = (
        f"{inference_protocol.INPUT!r} of shape [n, {len(spec.inputs)}], or one of each feature."
        if spec.is_numeric
        else f"One of each field, of shape [n] or [n, 1]: {', '.join(spec.fields)}."
    )
    described = {
        "name": _STRING,
        "datatype": _STRING,
        "shape": {"type": "array", "items": {"type": "integer"}},
    }
    text = {"type": "array", "items": {"anyOf": [{"type": "number"}, _STRING]}}
    wanted = {"name": {"type": "string", "enum": list(inference_protocol.OUTPUTS)}, "parameters": anything}
    datatype = {"type": "string", "enum": [*inference_protocol.DATATYPES, *more]}
    tensor = {"name": _STRING, "shape": shape, "datatype": datatype, "data": data, "parameters": anything}
    return {
        "InputTensor": {
            **_object(tensor, "parameters"),
            "description": tensors,
        },
        "RequestedOutput": _object(wanted, "parameters"),
        "InferRequest": _object(
            {
                "id": _or_null(_STRING),
                "parameters": anything,
                "inputs": {"type": "array", "minItems": 1, "items": _schema("InputTensor")},
                "outputs": _or_null({"type": "array", "items": _schema("RequestedOutput")}),
            },
            *("id", "parameters", "outputs"),
        ),
        "OutputTensor": _object({"name": _STRING, "shape": shape, "datatype": _STRING, "data": text}),
        "InferResponse": _object(
            {
                "model_name": _STRING,
                "model_version": _STRING,
                "id": _STRING,
                "outputs": {"type": "array", "items": _schema("OutputTensor")},
            },
            "id",
        ),
        "InferError": _object({"error": _STRING}),
        "TensorMetadata": _object({**described, "parameters": anything}, "parameters"),
        "ServerMetadata": _object(
            {"name": _STRING, "version": _STRING, "extensions": {"type": "array", "items": _STRING}}
        ),
        "ModelMetadata": _object(
            {
                "name": _STRING,
                "versions": {"type": "array", "items": _STRING},
                "platform": _STRING,
                "inputs": {"type": "array", "items": _schema("TensorMetadata")},
                "outputs": {"type": "array", "items": _schema("TensorMetadata")},
            }
        ),
        "Live": _object({"live": {"type": "boolean"}}),
        "Ready": _object({"ready": {"type": "boolean"}}),
    }


def _values(width: int | None) -> Json:
    number: Json = {"type": "number"}
    return (
        number if width is None else {"type": "array", "items": number, "minItems": width, "maxItems": width}
    )


def _object(properties: Json, *optional: str) -> Json:
    required = [name for name in properties if name not in optional]
    closed = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**closed, "required": required} if required else closed


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _schema(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: str) -> Json:
    return {"application/json": {"schema": _schema(schema)}}


def _body(schema: str) -> Json:
    return {"required": True, "content": _content(schema)}


def _answer(description: str, schema: str) -> Json:
    return {"description": description, "content": _content(schema)}


def _refusals(schema: str) -> Json:
    retry = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return {
        "400": _answer("The request breaks a rule; the message names the place", schema),
        "413": _answer("The body, its rows, or their answer would be too long", schema),
        "500": _answer("The model gave a number that is not finite", schema),
        "503": {**_answer("The server is not ready, or has too much to do", schema), "headers": retry},
    }


def _path_parameter(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}

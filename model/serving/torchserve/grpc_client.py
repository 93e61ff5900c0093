"""Predictions over TorchServe's gRPC inference API.

TorchServe's package ships no Python stubs. Its messages are small, so they are described here, field by field
as in `inference.proto` of TorchServe 0.12, and no generated code has to be kept.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from common.connections import insecure_channel
from model.serving.torchserve.config import TorchServeError

_PACKAGE: Final = "org.pytorch.serve.grpc.inference"
_METHOD: Final = f"/{_PACKAGE}.InferenceAPIsService/Predictions"
_REFUSAL_BYTES: Final = 4096
_Field: Final = descriptor_pb2.FieldDescriptorProto


def _messages() -> tuple[Any, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="model/serving/torchserve/inference.proto", package=_PACKAGE, syntax="proto3"
    )
    request = file.message_type.add(name="PredictionsRequest")
    _field(request, "model_name", 1, _Field.TYPE_STRING)
    _field(request, "model_version", 2, _Field.TYPE_STRING)
    entry = request.nested_type.add(name="InputEntry")
    entry.options.map_entry = True
    _field(entry, "key", 1, _Field.TYPE_STRING)
    _field(entry, "value", 2, _Field.TYPE_BYTES)
    inputs = _field(request, "input", 3, _Field.TYPE_MESSAGE)
    inputs.label = _Field.LABEL_REPEATED
    inputs.type_name = f".{_PACKAGE}.PredictionsRequest.InputEntry"
    response = file.message_type.add(name="PredictionResponse")
    _field(response, "prediction", 1, _Field.TYPE_BYTES)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("PredictionsRequest", "PredictionResponse")
    descriptors = [pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in names]
    first, second = (message_factory.GetMessageClass(descriptor) for descriptor in descriptors)
    return first, second


def _field(message: Any, name: str, number: int, kind: Any) -> Any:
    return message.field.add(name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL)


_REQUEST, _RESPONSE = _messages()


def predict(
    address: str,
    body: bytes,
    model: str,
    version: str | None = None,
    key: str | None = None,
    timeout: float = 60,
) -> bytes:
    """Sends one request body to a model over gRPC and returns the body of the answer.

    Args:
      address: host:port of the gRPC inference API, without TLS.
      body: the JSON that the REST API takes.
      model: the model's registered name.
      version: a version of it; the default one when None.
      key: the inference token, where tokens are on.
      timeout: seconds.

    Raises:
      TorchServeError: the server refused the request or did not answer.
    """
    metadata = [("protocol", "gRPC"), ("channel", "inference")]
    if key:
        metadata.append(("authorization", f"Bearer {key}"))
    request = _REQUEST(model_name=model, model_version=version or "", input={"data": body})
    with insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(
            _METHOD, request_serializer=_REQUEST.SerializeToString, response_deserializer=_RESPONSE.FromString
        )
        try:
            answer = bytes(call(request, timeout=timeout, metadata=metadata).prediction)
        except grpc.RpcError as error:
            raise TorchServeError(f"gRPC {address}: {error.code().name}: {error.details()}") from error
    # TorchServe answers what the handler refuses with the status OK.
    if len(answer) <= _REFUSAL_BYTES:
        with contextlib.suppress(ValueError):
            content = json.loads(answer)
            if isinstance(content, dict) and "predictions" not in content and "code" in content:
                raise TorchServeError(f"gRPC {address}: {content['code']} {content.get('message')}")
    return answer

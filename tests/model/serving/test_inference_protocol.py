"""The Open Inference Protocol: tensors in, tensors out, and the reasons of refusals."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
import requests

from features.ulb import FEATURES, N_FEATURES
from model.serving import inference_protocol
from model.serving.inference_protocol import OUTPUTS
from model.serving.predictor import Predictor
from model.serving.request import BadRequestError
from model.thresholds import SEVERITIES, severity_codes
from tests.model.serving.artifacts import VERSION, transactions

pytest_plugins = ("tests.model.serving.fixtures",)

ROWS = transactions(3)


def tensor(name: str, values, datatype: str = "FP32", shape=None) -> dict:
    values = np.asarray(values)
    return {
        "name": name,
        "datatype": datatype,
        "shape": values.shape if shape is None else shape,
        "data": values.ravel(),
    }


def encode(inputs: list[dict], **rest) -> bytes:
    return orjson.dumps({"inputs": inputs, **rest}, option=orjson.OPT_SERIALIZE_NUMPY)


def rejected(body: bytes) -> str:
    with pytest.raises(BadRequestError) as caught:
        inference_protocol.parse(body, FEATURES)
    return str(caught.value)


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor("features", ROWS)],
        [{**tensor("features", ROWS), "data": ROWS.tolist()}],
        [{**tensor("features", ROWS, "FP64"), "parameters": {"binary_data": False}}],
        [tensor(name, ROWS[:, i]) for i, name in enumerate(FEATURES)],
        [tensor(name, ROWS[:, i : i + 1]) for i, name in reversed(list(enumerate(FEATURES)))],
    ],
    ids=["flat", "nested", "parameters", "a tensor a feature", "columns"],
)
def test_tensors_become_the_matrix(inputs):
    request = inference_protocol.parse(encode(inputs, parameters={"binary_data_output": True}), FEATURES)
    assert np.array_equal(request.features, ROWS)
    assert request.outputs == ("anomaly_score", "encoded")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "no request to infer"),
        (b'{"inputs": []}', "one tensor 'features'"),
        (encode([tensor("feature", ROWS)]), "one tensor 'features', or one a feature"),
        (
            encode([tensor("features", ROWS[:, :29])]),
            f"features: expected shape [n, {N_FEATURES}], got [3, 29]",
        ),
        (encode([tensor("features", ROWS, shape=[2, 30])]), "expected values for shape [2, 30], got 90"),
        (encode([tensor("features", ROWS, shape=[-3, -30])]), "expected shape [n, 30]"),
        (encode([tensor("features", ROWS[:0])]), "at least one row"),
        (encode([tensor("features", ROWS, "BYTES")]), "expected a datatype of FP16"),
        (encode([tensor("features", ROWS), tensor("features", ROWS)]), "each name once"),
        (encode([tensor("features", ROWS)], output=[]), "unknown field `output`"),
        (encode([tensor("features", ROWS)], outputs=[{"name": "score"}]), "unknown output 'score'"),
        (encode([{**tensor("features", ROWS), "data": [[1.0] * 29, [1.0] * 61]}]), "rows of 30 numbers"),
        (encode([{**tensor("features", ROWS[:1]), "data": [1.0] * 29 + ["1"]}]), "$.inputs[0].data[29]"),
        (encode([{**tensor("features", ROWS[:1]), "data": [1.0] * 29 + [1e39]}]), "instances[0].Amount"),
        (encode([tensor(name, [1.0] * (1 + (name == "V7"))) for name in FEATURES]), "as many values of each"),
        (encode([tensor(name, [[1.0, 2.0]]) for name in FEATURES]), "Time: expected shape [n] or [n, 1]"),
        (encode([tensor("features", ROWS, shape=[])]), "expected shape"),
    ],
)
def test_what_is_not_understood_is_named(body, text):
    assert text in rejected(body)


def test_outputs_are_tensors_of_what_the_model_answers(served_artifact):
    predictor = Predictor(served_artifact)
    body = encode([tensor("features", ROWS)], id="a-1", outputs=[{"name": name} for name in OUTPUTS])
    text, scores = inference_protocol.answer(predictor, inference_protocol.parse(body, FEATURES))
    answer = orjson.loads(text)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (
        "pytorch_autoencoder",
        VERSION,
        "a-1",
    )
    assert [output["name"] for output in answer["outputs"]] == list(OUTPUTS)
    severity = answer["outputs"].pop()
    codes = severity_codes(scores, served_artifact.manifest.thresholds)
    assert (severity["datatype"], severity["shape"]) == ("BYTES", [3])
    assert severity["data"] == [SEVERITIES[code] for code in codes]
    expected = predictor.outputs(ROWS, OUTPUTS[:-1])
    described = {
        output["name"]: output["shape"] for output in inference_protocol.metadata(predictor)["outputs"]
    }
    for output in answer["outputs"]:
        values = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_allclose(values, expected[output["name"]], rtol=1e-5, atol=1e-6)
        assert output["shape"][1:] == described[output["name"]][1:]


@pytest.mark.integration
def test_the_routes_of_the_protocol(custom_container):
    model = f"{custom_container.url}/v2/models/pytorch_autoencoder"
    for path in (model, f"{model}/versions/{VERSION}"):
        answer = requests.post(f"{path}/infer", encode([tensor("features", ROWS)]), timeout=60)
        assert answer.json()["outputs"][0]["shape"] == [3]
        assert requests.get(f"{path}/ready", timeout=60).json() == {"ready": True}
        assert requests.get(path, timeout=60).json()["inputs"] == [
            {"name": "features", "datatype": "FP32", "shape": [-1, N_FEATURES]}
        ]
    for path in (f"{custom_container.url}/v2/models/other", f"{model}/versions/0"):
        for answer in (
            requests.get(path, timeout=60),
            requests.get(f"{path}/ready", timeout=60),
            requests.post(f"{path}/infer", encode([tensor("features", ROWS)]), timeout=60),
        ):
            assert answer.status_code == 404
            assert "expected model pytorch_autoencoder version" in answer.json()["error"]
    refused = requests.post(f"{model}/infer", b"{", timeout=60)
    assert (refused.status_code, type(refused.json()["error"])) == (400, str)


@pytest.mark.integration
def test_a_server_without_its_model_is_alive_and_not_ready(tmp_path):
    from tests.model.serving.servers import container

    with container(str(tmp_path / "nothing"), ready=503) as served:
        states = {
            path: requests.get(f"{served.url}{path}", timeout=60).status_code
            for path in (
                "/v2/health/live",
                "/v2/health/ready",
                "/v2",
                "/metadata",
                "/openapi.json",
                "/metrics",
            )
        }
        assert states == {
            "/v2/health/live": 200,
            "/v2/health/ready": 503,
            "/v2": 200,
            "/metadata": 503,
            "/openapi.json": 503,
            "/metrics": 200,
        }

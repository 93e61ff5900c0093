"""The predict command: the real SDK, an endpoint on this machine, and the real servers behind it."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
import requests

from model.outputs import ANSWER_FIELDS
from model.serving.predictor import Predictor
from tests.model.serving.artifacts import VERSION, transactions
from tests.model.serving.tls import tls_in_front_of
from tests.model.serving.vertex_cases import deploy

pytest_plugins = ("tests.model.serving.fixtures", "tests.model.serving.vertex_fixtures")
pytestmark = pytest.mark.integration


@pytest.fixture
def forwarding(uploaded, run, vertex):
    """A version is deployed; predictions go to the server that a test names by its URL and headers."""
    deploy(run, VERSION)

    def to(url, headers=None):
        def send(deployed, body, _):
            return requests.post(
                url, body, headers={"Content-Type": "application/json", **(headers or {})}, timeout=60
            )

        vertex.forward = send

    return to


def predicted(run, tmp_path, features, endpoint="e"):
    request = tmp_path / "request.json"
    body = {"instances": features, "parameters": {"fields": list(ANSWER_FIELDS)}}
    request.write_bytes(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
    code, out, err = run("predict", "--endpoint", endpoint, "--input", str(request))
    assert code == 0, err
    return json.loads(out)


def check_predictions(answer, artifact, features):
    expected = Predictor(artifact).outputs(features, ANSWER_FIELDS)
    for name, values in expected.items():
        actual = np.array([row[name] for row in answer["predictions"]], np.float32)
        np.testing.assert_allclose(actual, values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_predict_by_an_endpoint_in_front_of_the_custom_container(
    forwarding, run, vertex, custom_container, served_artifact, tmp_path
):
    forwarding(f"{custom_container.url}/v1/endpoints/1/deployedModels/2:predict")
    features = transactions(7)
    answer = predicted(run, tmp_path, features)
    check_predictions(answer, served_artifact, features)
    (endpoint,) = vertex.endpoints.values()
    assert answer["deployed_model"] == endpoint["deployedModels"][0]["id"]
    assert answer["metadata"] == {"model_version": VERSION}


def test_predict_by_an_endpoint_in_front_of_torchserve(
    forwarding, run, torchserve, served_artifact, tmp_path
):
    server = torchserve.server
    forwarding(f"{server.inference}/predictions/pytorch_autoencoder", server.headers("inference"))
    features = transactions(7)
    answer = predicted(run, tmp_path, features)
    check_predictions(answer, served_artifact, features)
    assert answer["metadata"] == {"model_version": VERSION}


def test_a_refusal_of_the_server_is_shown(forwarding, run, custom_container, tmp_path):
    forwarding(f"{custom_container.url}/predict")
    request = tmp_path / "request.json"
    request.write_text('{"instances": [[1, 2]]}')
    code, _, err = run("predict", "--endpoint", "e", "--input", str(request))
    assert code == 1
    assert "instances[0]: expected 30 features, got 2" in err


def test_predict_by_a_peered_endpoint(forwarding, run, vertex, custom_container, served_artifact, tmp_path):
    """The SDK posts to the address that the deployed model has in the peered network."""
    run("deploy", "--name", "m", "--endpoint", "peered", "--network", "projects/1/global/networks/n")
    forwarding(f"{custom_container.url}/predict")
    features = transactions(3)
    check_predictions(predicted(run, tmp_path, features, "peered"), served_artifact, features)
    (tmp_path / "bad.json").write_text('{"instances": [[1, 2]]}')
    code, _, err = run("predict", "--endpoint", "peered", "--input", str(tmp_path / "bad.json"))
    assert code == 1
    assert "error: --endpoint peered: " in err


def test_predict_by_a_dedicated_endpoint(
    forwarding, run, vertex, custom_container, served_artifact, tmp_path, monkeypatch
):
    """The SDK posts over TLS to the endpoint's own host."""
    run("deploy", "--name", "m", "--version", VERSION, "--endpoint", "dedicated", "--dedicated")
    forwarding(f"{custom_container.url}/predict")
    features = transactions(3)
    with tls_in_front_of(vertex.url, tmp_path) as (address, certificate):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        endpoint = next(e for e in vertex.endpoints.values() if e["displayName"] == "dedicated")
        endpoint["dedicatedEndpointDns"] = address
        answer = predicted(run, tmp_path, features, "dedicated")
    check_predictions(answer, served_artifact, features)
    assert answer["deployed_model"] == endpoint["deployedModels"][0]["id"]


def test_a_private_service_connect_endpoint_is_asked_at_the_address_given(forwarding, run, tmp_path):
    run("deploy", "--name", "m", "--endpoint", "psc", "--psc_project", "q")
    request = tmp_path / "request.json"
    request.write_text('{"instances": []}')
    ask = ["predict", "--input", str(request), "--endpoint"]
    assert "--psc_address: expected for psc endpoints alone, and psc is a psc" in run(*ask, "psc")[2]
    assert "and e is a shared endpoint" in run(*ask, "e", "--psc_address", "127.0.0.1")[2]
    code, _, err = run(*ask, "psc", "--psc_address", "nowhere.invalid")
    assert code == 1
    assert "nowhere.invalid" in err


@pytest.mark.parametrize("endpoint", ["e", "peered"])
def test_a_raw_request_and_its_answer_pass_as_they_are(
    forwarding, run, vertex, custom_container, tmp_path, endpoint
):
    """Bytes that no parser of ours has touched: spaces, an order of members, digits."""
    if endpoint == "peered":
        run("deploy", "--name", "m", "--endpoint", "peered", "--network", "projects/1/global/networks/n")
    url = f"{custom_container.url}/predict"
    sent = []

    def forward(deployed, body, _):
        sent.append(body)
        return requests.post(url, body, headers={"Content-Type": "application/json"}, timeout=60)

    vertex.forward = forward
    body = b'{ "parameters" : {"fields":["anomaly_score"]},\n "instances":[[' + b"1.50," * 29 + b"0]]}"
    (tmp_path / "raw.json").write_bytes(body)
    code, out, err = run("predict", "--raw", "--endpoint", endpoint, "--input", str(tmp_path / "raw.json"))
    assert code == 0, err
    assert sent == [body]
    answer = requests.post(url, body, timeout=60)
    if endpoint == "peered":  # the address of the SDK for it is that of `predict`
        assert json.loads(out)["predictions"] == answer.json()["predictions"]
    else:
        assert out.encode() == answer.content
    (tmp_path / "raw.json").write_bytes(b"no JSON")
    code, out, err = run("predict", "--raw", "--endpoint", endpoint, "--input", str(tmp_path / "raw.json"))
    assert (code, out) == (1, "")
    assert f"--endpoint {endpoint}: " in err
    assert "400" in err

"""Scoring by an endpoint on Vertex AI's prebuilt container: TorchServe under the json envelope."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import requests

import model.serving.torchserve
from tests.model.serving.artifacts import transactions
from tests.model.serving.servers import torchserve_server
from tests.model.serving.vertex_server import vertex_server
from tests.transforms.remote_cases import batch_of
from transforms.remote import VertexHandler
from transforms.score import PytorchHandler

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

ENDPOINT = "projects/p/locations/us-central1/endpoints/5"


@pytest.fixture(scope="module")
def prebuilt(archived_artifact, tmp_path_factory):
    """An endpoint in front of TorchServe as the prebuilt container configures it."""
    local = Path(model.serving.torchserve.__file__).with_name("local.properties").read_text()
    config = tmp_path_factory.mktemp("prebuilt") / "prebuilt.properties"
    config.write_text(local + "service_envelope=json\n")
    with (
        torchserve_server(archived_artifact.uri, "--config", str(config)) as served,
        vertex_server() as server,
    ):
        server.endpoints[ENDPOINT] = {
            "name": ENDPOINT,
            "displayName": "anomaly",
            "deployedModels": [{"id": "7", "displayName": "20260101.120000"}],
            "trafficSplit": {"7": 100},
        }
        headers = {"Content-Type": "application/json", **served.server.headers("inference")}
        url = f"{served.server.inference}/predictions/pytorch_autoencoder"
        server.forward = lambda deployed, body, _: requests.post(url, body, headers=headers, timeout=60)
        yield server


@pytest.mark.parametrize("detail", ["compact", "full"])
def test_the_prebuilt_container_scores_as_the_model_in_the_worker(prebuilt, served_artifact, detail):
    handler = VertexHandler(
        thresholds=dict(served_artifact.manifest.thresholds),
        model_version="configured",
        detail=detail,
        endpoint=ENDPOINT,
        api_endpoint=prebuilt.url,
    )
    local = PytorchHandler(served_artifact.uri, detail)
    elements = batch_of(transactions(100))
    scores = handler.run_inference(elements, handler.load_model())[0].scores
    expected = local.run_inference(elements, local.load_model())[0].scores
    np.testing.assert_allclose(scores["anomaly_score"], expected["anomaly_score"], rtol=1e-5)
    # The version is the name under which the model is deployed.
    for name in ("severity", "model_version", "transaction_id"):
        assert scores[name].to_pylist() == expected[name].to_pylist(), name
    features = [[item["feature"] for item in row] for row in scores["top_features"].to_pylist()]
    assert features == [[item["feature"] for item in row] for row in expected["top_features"].to_pylist()]

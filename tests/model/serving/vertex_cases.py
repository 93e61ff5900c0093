"""Cases that the tests of the Vertex AI commands share."""

from __future__ import annotations

import requests

from tests.model.serving.vertex_server import Vertex

PREBUILT = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"
CUSTOM = "us-central1-docker.pkg.dev/p/anomaly/anomaly-serving:1"
PARENT = "/v1/projects/p/locations/us-central1"
NEWER = "20260202.080000"


def deploy(run, version, *flags):
    return run("deploy", "--name", "m", "--version", version, "--endpoint", "e", *flags)


def serve_through(server: Vertex, endpoint: str, url: str) -> None:
    """Makes an endpoint whose one deployed model is the FastAPI server at a URL, which may come and go."""
    server.endpoints[endpoint] = {
        "name": endpoint,
        "displayName": "anomaly",
        "deployedModels": [{"id": "7", "displayName": "deployed"}],
        "trafficSplit": {"7": 100},
    }
    session = requests.Session()
    route = f"{url}/v1/endpoints/{endpoint.rpartition('/')[2]}/deployedModels/7:predict"

    def forward(deployed: object, body: bytes, headers: object) -> requests.Response:
        try:
            return session.post(route, body, headers={"Content-Type": "application/json"}, timeout=60)
        except requests.ConnectionError:  # as Vertex AI answers while a replica is gone
            answer = requests.Response()
            answer.status_code, answer._content = 503, b'{"error": "no replica"}'
            return answer

    server.forward = forward

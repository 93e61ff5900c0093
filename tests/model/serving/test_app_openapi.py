"""The container against its own OpenAPI: by a fuzzer, and by a client that is generated from it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import requests

from features.ulb import FEATURES
from model.serving.openapi import LARGEST
from model.serving.request import RequestParser
from tests.model.serving.artifacts import VERSION, transactions

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

CONFIG = """
# JSON Schema cannot say that a tensor has as many values as its shape says.
[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.enabled = false
"""


def test_the_server_does_what_its_document_says(custom_container, tmp_path):
    """Schemathesis: no failure of the server, all it answers is described, all that is valid is accepted,
    and nothing else is."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run"]
    command += [f"{custom_container.url}/openapi.json", "--max-examples", "20", "--seed", "1"]
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    selected, total = re.search(r"Operations:\s+(\d+) selected / (\d+) total", done.stdout).groups()
    assert selected == total


@pytest.fixture(scope="module")
def document(custom_container):
    return requests.get(f"{custom_container.url}/openapi.json", timeout=30).json()


def test_every_parameter_of_a_path_is_declared(document):
    for path, item in document["paths"].items():
        declared = {parameter["name"] for parameter in item.get("parameters", ())}
        assert declared == set(re.findall(r"{(\w+)}", path)), path


@pytest.mark.parametrize(
    "route", ["/predict", "/v1/endpoints/{endpoint}/deployedModels/{deployed_model}:predict"]
)
def test_refusals_are_described(document, route):
    assert {"200", "400", "413", "500", "503"} <= document["paths"][route]["post"]["responses"].keys()


def test_the_largest_number_of_the_document_is_that_of_the_server():
    row = [LARGEST] * len(FEATURES)
    assert RequestParser(FEATURES).parse(orjson.dumps({"instances": [row]})).features.max() > 3.4e38


@pytest.fixture(scope="module")
def generated(document, tmp_path_factory):
    """The package that openapi-python-client makes from the document."""
    directory = tmp_path_factory.mktemp("generated")
    (directory / "openapi.json").write_bytes(orjson.dumps(document))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--path", "openapi.json", "--output-path", "anomaly_client", "--fail-on-warning"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=directory, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(directory))
    try:
        yield importlib.import_module("anomaly_client")
    finally:
        sys.path.remove(str(directory))


def ask(generated, operation: str, url: str, *path: str, **content):
    function = importlib.import_module(f"anomaly_client.api.{operation}").sync_detailed
    client = generated.Client(base_url=url)
    if not content:
        return function(*path, client=client)
    model = "InferRequest" if "inputs" in content else "PredictRequest"
    body = getattr(importlib.import_module("anomaly_client.models"), model).from_dict(content)
    return function(*path, client=client, body=body)


def test_a_generated_client_reads_scores(generated, custom_container):
    url = custom_container.url
    rows = transactions(2).tolist()
    named = [dict(zip(FEATURES, row, strict=True)) for row in rows]
    fields = {"parameters": {"fields": ["anomaly_score", "severity", "contributions", "thresholds"]}}
    answers = [
        ask(generated, "scores.predict", url, instances=rows, **fields),
        ask(generated, "scores.predict", url, instances=named, **fields),
        ask(generated, "scores.vertex_predict", url, "123", "456", instances=rows, **fields),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    parsed = answers[0].parsed
    assert len(parsed.predictions[1].contributions) == len(FEATURES)
    assert parsed.metadata.model_version == VERSION
    assert parsed.metadata.thresholds.high > parsed.metadata.thresholds.medium
    assert all(answer.parsed.to_dict() == parsed.to_dict() for answer in answers)


def test_a_generated_client_reads_refusals(generated, custom_container):
    refused = ask(generated, "scores.predict", custom_container.url, instances=[[1.0] * len(FEATURES), [2.0]])
    assert refused.status_code == 400
    assert refused.parsed.error.instance == 1


def test_a_generated_client_reads_descriptions(generated, custom_container):
    url = custom_container.url
    assert ask(generated, "health.health", url).parsed.model_version == VERSION
    assert tuple(ask(generated, "model.metadata", url).parsed.features) == FEATURES
    assert ask(generated, "v2.live", url).parsed.live
    assert ask(generated, "v2.model", url, "pytorch_autoencoder").parsed.versions == [VERSION]
    data = transactions(1).ravel().tolist()
    tensor = {"name": "features", "shape": [1, len(FEATURES)], "datatype": "FP32", "data": data}
    answer = ask(generated, "v2.infer", url, "pytorch_autoencoder", inputs=[tensor])
    assert [output.name for output in answer.parsed.outputs] == ["anomaly_score", "encoded"]

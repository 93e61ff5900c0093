"""The FastAPI server, in a real uvicorn process over real HTTP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import orjson
import pytest
import requests

from model.artifact import MODEL_FILE
from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.predictor import Predictor
from tests.model.serving.artifacts import VERSION, transactions
from tests.model.serving.gcs import gcs_server
from tests.model.serving.servers import container

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

VERTEX = "/v1/endpoints/123/deployedModels/456"


def encode(features: np.ndarray, **rest) -> bytes:
    return orjson.dumps({"instances": features, **rest}, option=orjson.OPT_SERIALIZE_NUMPY)


def error_of(response: requests.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["code"] == status
    return error


@pytest.mark.parametrize("route", ["/predict", f"{VERTEX}:predict"])
def test_answers_equal_the_model_in_process(custom_container, served_artifact, route):
    features = transactions(200)
    fields = list(ANSWER_FIELDS)
    body = encode(features, parameters={"fields": fields})
    answer = requests.post(custom_container.url + route, body, timeout=30).json()
    assert answer["metadata"]["model_version"] == VERSION
    expected = Predictor(served_artifact).outputs(features, fields)
    for name in fields:
        actual = np.array([row[name] for row in answer["predictions"]], np.float32)
        np.testing.assert_allclose(actual, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_default_answer_is_score_and_bottleneck(custom_container):
    rows = requests.post(f"{custom_container.url}/predict", encode(transactions(2)), timeout=30).json()
    assert [tuple(row) for row in rows["predictions"]] == [DEFAULT_FIELDS] * 2


@pytest.mark.parametrize("route", ["/health", VERTEX])
def test_health_has_the_version(custom_container, route):
    response = requests.get(custom_container.url + route, timeout=30)
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "model_version": VERSION}


def test_bad_input_is_400_with_instance_field_and_reason(custom_container):
    features = transactions(3).tolist()
    features[1][4] = "high"
    error = error_of(
        requests.post(f"{custom_container.url}/predict", json={"instances": features}, timeout=30), 400
    )
    assert (error["instance"], error["field"]) == (1, "V4")
    assert error["reason"] == "expected a number, got a string"
    assert error["message"] == "instances[1].V4: expected a number, got a string"


@pytest.mark.parametrize("raw", [b"", b"{", b'{"instances": []}', b"\xff\xfe", b"[" * 5000])
def test_a_body_that_is_no_request_is_400(custom_container, raw):
    assert error_of(requests.post(f"{custom_container.url}/predict", raw, timeout=30), 400)["message"]


def test_other_paths_and_methods_are_errors_in_json(custom_container):
    assert "/nowhere" in error_of(requests.get(f"{custom_container.url}/nowhere", timeout=30), 404)["message"]


@pytest.mark.parametrize("route", ["/predict", f"{VERTEX}:predict"])
def test_a_question_to_the_route_of_predictions_is_no_question_about_health(custom_container, route):
    response = requests.get(custom_container.url + route, timeout=30)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


def test_requests_at_the_same_time_get_their_own_answers(custom_container):
    features = transactions(40)
    together = requests.post(f"{custom_container.url}/predict", encode(features), timeout=30).json()
    answers: dict[int, dict] = {}

    def ask(i: int) -> None:
        url = f"{custom_container.url}/predict"
        answers[i] = requests.post(url, encode(features[i : i + 1]), timeout=30).json()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(features))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(together["predictions"]):
        actual = answers[i]["predictions"][0]["anomaly_score"]
        assert actual == pytest.approx(expected["anomaly_score"], rel=1e-5)


def test_environment_of_vertex_body_limit_and_two_workers(served_artifact):
    routes = {"AIP_HEALTH_ROUTE": "/alive", "AIP_PREDICT_ROUTE": "/score"}
    with container(served_artifact.uri, "--workers", "2", MAX_BODY_BYTES="20000", **routes) as served:
        served.process.wait_until(lambda: served.process.log_text().count("serving ") == 2, 60)
        assert requests.get(served.url + VERTEX, timeout=30).status_code == 200
        assert requests.post(f"{served.url}/score", encode(transactions(5)), timeout=30).status_code == 200
        error_of(requests.get(f"{served.url}/health", timeout=30), 404)
        long = encode(transactions(1000))
        assert (
            "20000 bytes" in error_of(requests.post(f"{served.url}/score", long, timeout=30), 413)["message"]
        )
        chunks = (long[i : i + 5000] for i in range(0, len(long), 5000))
        error_of(requests.post(f"{served.url}/score", chunks, timeout=30), 413)
        small = encode(transactions(3))
        chunked = requests.post(f"{served.url}/score", iter([small[:100], small[100:]]), timeout=30)
        assert len(chunked.json()["predictions"]) == 3


def test_health_is_503_until_a_model_on_cloud_storage_is_loaded(served_artifact):
    gate = threading.Event()
    with gcs_server(served_artifact.local_dir, gate) as emulator:
        env = {"STORAGE_EMULATOR_HOST": emulator}
        with container("gs://bucket", ready=503, **env) as served:
            assert (
                "loading gs://bucket"
                in error_of(requests.get(served.url + VERTEX, timeout=30), 503)["message"]
            )
            error_of(requests.post(f"{served.url}/predict", encode(transactions(1)), timeout=30), 503)
            gate.set()
            served.process.wait_until(
                lambda: requests.get(f"{served.url}/health", timeout=30).status_code == 200, 60
            )
            assert requests.post(f"{served.url}/predict", encode(transactions(1)), timeout=30).ok


def open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


@pytest.mark.parametrize("refusals", [[403], [401, 403], [503, 403]])
def test_a_model_is_loaded_once_cloud_storage_hands_it_out(served_artifact, refusals):
    with (
        gcs_server(served_artifact.local_dir, open_gate(), refusals) as emulator,
        container("gs://bucket", STORAGE_EMULATOR_HOST=emulator) as served,
    ):
        assert "cannot load the model: gs://bucket: Cloud Storage (" in served.process.log_text()
        assert requests.post(f"{served.url}/predict", encode(transactions(1)), timeout=30).ok


def test_a_model_whose_upload_is_under_way_is_loaded_when_it_is_whole(served_artifact, tmp_path):
    shutil.copytree(served_artifact.local_dir, tmp_path / "model")
    model = tmp_path / "model" / MODEL_FILE
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    with (
        gcs_server(tmp_path / "model", open_gate()) as emulator,
        container("gs://bucket", ready=503, STORAGE_EMULATOR_HOST=emulator) as served,
    ):
        served.process.wait_until(lambda: "sha256" in served.process.log_text(), 60)
        model.write_bytes(whole)
        served.process.wait_until(
            lambda: requests.get(f"{served.url}/health", timeout=30).status_code == 200, 60
        )
        assert requests.post(f"{served.url}/predict", encode(transactions(1)), timeout=30).ok


def test_a_damaged_model_is_never_served(served_artifact, tmp_path):
    damaged = tmp_path / "model"
    shutil.copytree(served_artifact.local_dir, damaged)
    with (damaged / MODEL_FILE).open("ab") as file:
        file.write(b"x")
    with container(str(damaged), ready=503) as served:
        served.process.wait_until(
            lambda: "sha256" in requests.get(f"{served.url}/health", timeout=30).text, 60
        )
        error = error_of(requests.post(f"{served.url}/predict", encode(transactions(1)), timeout=30), 503)
        assert MODEL_FILE in error["message"]


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        ([], {}, "error: --model: expected an artifact directory, or AIP_STORAGE_URI in the environment"),
        (
            ["--model", "m"],
            {"AIP_HTTP_PORT": "99999"},
            "error: AIP_HTTP_PORT: expected a whole number",
        ),
        (["--model", "m", "--port", "99999"], {}, "error: argument --port: expected a whole number from 1"),
    ],
)
def test_a_wrong_option_ends_the_program_with_its_name(flags, environment, text):
    command = [sys.executable, "-m", "model.serving.app", *flags]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert text in done.stderr


def test_the_process_that_watches_over_the_workers_does_without_torch():
    code = "import sys, model.serving.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True
    )
    assert "model.serving.options" in done.stdout.split()
    assert "torch" not in done.stdout.split()

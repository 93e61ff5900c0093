"""The real TorchServe, started, asked and stopped by the project's own commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import orjson
import pytest
import requests

import common.command
from model.outputs import ANSWER_FIELDS
from model.serving.predictor import Predictor
from model.serving.torchserve import grpc_client
from model.serving.torchserve.__main__ import MANAGEMENT, main
from model.serving.torchserve.config import TorchServeError, profile_path
from model.serving.torchserve.management import list_models
from tests.model.serving.artifacts import VERSION, build_artifact, transactions
from tests.model.serving.gcs import gcs_server
from tests.model.serving.servers import port_flags
from tests.model.serving.tls import rsa_certificate

pytest_plugins = ("tests.model.serving.fixtures", "tests.proxy_fixtures")
pytestmark = pytest.mark.integration

NAME = "pytorch_autoencoder"


def encode(features: np.ndarray, fields=None) -> bytes:
    body = {"instances": features, "parameters": {"fields": fields or ["anomaly_score"]}}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def ask(served, path: str, body: bytes) -> requests.Response:
    url = f"{served.server.inference}/predictions/{path}"
    return requests.post(url, body, headers=served.server.headers("inference"), timeout=60)


def scores(response: requests.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([row["anomaly_score"] for row in orjson.loads(response.content)["predictions"]])


def expected(artifact, features: np.ndarray) -> np.ndarray:
    return Predictor(artifact).outputs(features, ("anomaly_score",))["anomaly_score"]


def open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


def cli(served, *arguments: str) -> int:
    command, *rest = arguments
    return main([command, "--run_dir", str(served.layout.root), *rest])


def test_rest_and_grpc_answer_what_the_model_answers(torchserve, served_artifact):
    features = transactions(64)
    body = encode(features, list(ANSWER_FIELDS))
    by_rest = ask(torchserve, NAME, body)
    by_grpc = grpc_client.predict(torchserve.server.grpc, body, NAME, key=torchserve.server.key("inference"))
    outputs = Predictor(served_artifact).outputs(features, ANSWER_FIELDS)
    for answer in (by_rest.content, by_grpc):
        rows = orjson.loads(answer)["predictions"]
        for name, values in outputs.items():
            actual = np.array([row[name] for row in rows], np.float32)
            np.testing.assert_allclose(actual, values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_bad_instance_is_400_and_named(torchserve):
    body = orjson.dumps({"instances": [[0.0] * 30, [0.0] * 29]})
    response = ask(torchserve, NAME, body)
    assert response.status_code == 400
    assert "instances[1]" in response.json()["message"]


def test_requests_without_a_key_are_refused(torchserve):
    body = encode(transactions(1))
    url = f"{torchserve.server.inference}/predictions/{NAME}"
    refused = [
        requests.post(url, body, timeout=30),
        requests.post(url, body, headers={"Authorization": "Bearer guess"}, timeout=30),
        requests.get(f"{torchserve.server.management}/models", timeout=30),
    ]
    assert [response.json()["type"] for response in refused] == ["InvalidKeyException"] * 3
    with pytest.raises(TorchServeError, match="Token"):
        grpc_client.predict(torchserve.server.grpc, body, NAME)


def test_prometheus_metrics_count_the_requests(torchserve):
    scores(ask(torchserve, NAME, encode(transactions(1))))
    text = requests.get(f"{torchserve.server.metrics}/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("ts_inference_requests_total{")]
    assert any(f'model_name="{NAME}"' in line and float(line.split()[-1]) >= 1 for line in lines)


def documented(served, *contains: str, **replaced: str) -> str:
    """Runs the one line of the help of the command that contains these texts, for this server; its output."""
    (line,) = (line for line in MANAGEMENT.splitlines() if all(text in line for text in contains))
    key = "API" if "/token" in line else "management"
    line = line.replace("curl -f", f'curl -fsS -H "Authorization: Bearer {served.server.key(key)}"')
    for old, new in {"http://127.0.0.1:8081": served.server.management, **replaced}.items():
        assert old in line or old.startswith("http"), line
        line = line.replace(old, new)
    done = subprocess.run(["bash", "-c", line.strip()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_the_documented_requests_manage_versions_workers_and_keys(
    torchserve, served_artifact, tmp_path, capsys
):
    newest = "20260202.080000"
    features = transactions(5)
    newer = build_artifact(tmp_path / "newer", version=newest, seed=8)
    old_scores, new_scores = expected(served_artifact, features), expected(newer, features)
    assert not np.allclose(old_scores, new_scores, rtol=1e-3)
    body = encode(features)

    documented(
        torchserve,
        "cp ",
        **{"out/newer": newer.uri, "out/torchserve": str(torchserve.layout.root)},
    )
    documented(torchserve, "POST", "newer.mar")
    np.testing.assert_allclose(scores(ask(torchserve, NAME, body)), old_scores, rtol=1e-5)
    np.testing.assert_allclose(scores(ask(torchserve, f"{NAME}/{newest}", body)), new_scores, rtol=1e-5)

    documented(torchserve, "set-default")
    np.testing.assert_allclose(scores(ask(torchserve, NAME, body)), new_scores, rtol=1e-5)
    np.testing.assert_allclose(scores(ask(torchserve, f"{NAME}/{VERSION}", body)), old_scores, rtol=1e-5)

    champion = f"/models/champion/{newest}"
    documented(
        torchserve,
        "POST",
        **{"initial_workers=1": "initial_workers=0", "newer.mar": "newer.mar&model_name=champion"},
    )
    assert cli(torchserve, "status") == 1
    documented(torchserve, "min_worker=2", **{f"/models/{NAME}": champion})
    np.testing.assert_allclose(scores(ask(torchserve, "champion", body)), new_scores, rtol=1e-5)
    capsys.readouterr()
    assert cli(torchserve, "status", "--format", "json") == 0
    models = json.loads(capsys.readouterr().out)
    assert {(m["name"], m["version"], m["default"], m["ready"]) for m in models} == {
        (NAME, VERSION, False, 1),
        (NAME, newest, True, 1),
        ("champion", newest, True, 2),
    }

    before = torchserve.server.key("inference")
    documented(torchserve, "/token?type=inference")
    assert torchserve.server.key("inference") != before

    documented(torchserve, "set-default", **{newest: VERSION})
    documented(torchserve, "DELETE", **{VERSION: newest})
    documented(torchserve, "DELETE", **{f"/models/{NAME}/{VERSION}": champion})
    names = {(model.name, model.version) for model in list_models(torchserve.server)}
    assert names == {(NAME, VERSION)}
    assert ask(torchserve, "champion", body).status_code == 404


def test_a_model_comes_only_from_allowed_urls(torchserve, served_artifact, tmp_path):
    outside = tmp_path / "outside.mar"
    shutil.copyfile(served_artifact.local_dir / "pytorch_autoencoder.mar", outside)
    models = f"{torchserve.server.management}/models"
    headers = torchserve.server.headers("management")
    climbing = f"{torchserve.layout.model_store.as_uri()}/%2e%2e/%2e%2e{outside}"
    for url in ("http://127.0.0.1:9/x.mar", outside.as_uri(), climbing):
        refused = requests.post(models, params={"url": url}, headers=headers, timeout=60)
        assert "does not match any allowed URL" in refused.json()["message"]
    # As tests/model/serving/fixtures.py allows it; without workers, which would only take time.
    with gcs_server(served_artifact.local_dir, open_gate()) as url:
        archive = f"{url}/b/bucket/o/pytorch_autoencoder.mar"
        parameters = {"url": archive, "model_name": "fetched", "initial_workers": "0"}
        assert requests.post(models, params=parameters, headers=headers, timeout=60).ok
        assert requests.delete(f"{models}/fetched", headers=headers, timeout=60).ok


def test_predict_command_over_rest_and_grpc(torchserve, tmp_path, capsys):
    request = tmp_path / "request.json"
    request.write_bytes(encode(transactions(2)))
    answers = []
    for flags in ([], ["--grpc"], ["--version", VERSION]):
        assert cli(torchserve, "predict", "--input", str(request), *flags) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert answers[0] == answers[1] == answers[2]
    assert cli(torchserve, "predict", "--input", str(request), "--name", "nobody") == 1
    assert "Model not found: nobody" in capsys.readouterr().err
    request.write_text('{"instances": [[1, 2]]}')
    for flags in ([], ["--grpc"]):
        assert cli(torchserve, "predict", "--input", str(request), *flags) == 1
        refusal = capsys.readouterr()
        assert refusal.out == ""
        assert "400 instances[0]: expected 30 numbers, got 2" in refusal.err


def test_a_server_can_be_reached_by_its_addresses_and_key_file(torchserve, capsys):
    server = torchserve.server
    flags = ["--management", server.management, "--key_file", str(server.key_file)]
    assert main(["status", *flags]) == 0
    shown = capsys.readouterr().out
    assert f"management  {server.management}" in shown
    assert [NAME, VERSION, "True", "1", "1", "1"] in [line.split() for line in shown.splitlines()]


def test_another_machine_predicts_without_the_management_api(torchserve, tmp_path, capsys):
    """With --config cloud the management API stays on loopback."""
    server = torchserve.server
    request = tmp_path / "request.json"
    request.write_bytes(encode(transactions(2)))
    for flags in (["--inference", server.inference], ["--grpc", "--grpc_address", server.grpc]):
        assert main(["predict", *flags, "--key_file", str(server.key_file), "--input", str(request)]) == 0
        assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


@pytest.fixture
def exceptions_unset(monkeypatch):
    """A command that leaves no_proxy alone: the requests themselves must go past the proxy."""
    monkeypatch.setattr(common.command, "bypass_proxies", lambda: None)


@pytest.mark.usefixtures("exceptions_unset")
def test_a_proxy_takes_no_part_in_it(torchserve, dead_proxy, tmp_path, capsys):
    request = tmp_path / "request.json"
    request.write_bytes(encode(transactions(2)))
    assert cli(torchserve, "status") == 0
    capsys.readouterr()
    for flags in ([], ["--grpc"]):
        assert cli(torchserve, "predict", "--input", str(request), *flags) == 0
        assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2


@pytest.mark.usefixtures("exceptions_unset")
def test_a_properties_file_with_a_certificate_serves_https(
    archived_artifact, dead_proxy, tmp_path, capsys, monkeypatch
):
    """Behind a proxy: a request that goes past it heeds REQUESTS_CA_BUNDLE all the same."""
    certificate, key = rsa_certificate(tmp_path)
    config = tmp_path / "tls.properties"
    local = profile_path("local").read_text()
    config.write_text(f"{local}private_key_file={key}\ncertificate_file={certificate}\n")
    request = tmp_path / "request.json"
    request.write_bytes(encode(transactions(2)))
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        run_dir = ["--run_dir", str(Path(directory) / "run")]
        start = ["start", *run_dir, "--config", str(config), "--model", archived_artifact.uri, *port_flags()]
        assert main([*start, "--workers", "1"]) == 0
        try:
            assert "inference   https://127.0.0.1:" in capsys.readouterr().out
            predict = ["predict", *run_dir, "--input", str(request)]
            assert main(predict) == 1
            assert "set REQUESTS_CA_BUNDLE" in capsys.readouterr().err
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
            assert main(predict) == 0
            assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2
        finally:
            assert main(["stop", *run_dir]) == 0

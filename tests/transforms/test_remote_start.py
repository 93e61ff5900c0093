"""The remote handlers find their server: endpoints, tokens, and what fails before any row is sent."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace

import orjson
import pytest

from common.retry import Patience
from tests.model.serving.artifacts import transactions
from tests.transforms.remote_cases import QUICK, REFUSALS, TIME, batches, handler_of, score_all
from tests.transforms.remote_server import ENDPOINT, FaultServer, status
from transforms.remote_http import HttpConnection
from transforms.remote_protocol import RejectedError, TransientError

pytest_plugins = ("tests.model.serving.fixtures", "tests.transforms.remote_fixtures")
pytestmark = pytest.mark.integration


@pytest.mark.parametrize("fault", ["400", "HTML", "NaN", "missing field"])
def test_a_server_that_cannot_serve_fails_at_the_start_and_no_row_is_condemned(
    fault, kind, server, served_artifact
):
    if (fault, kind) == ("missing field", "vertex"):
        pytest.skip("an endpoint of another model is used: see test_remote_shapes")
    server.judge = REFUSALS[fault]
    with pytest.raises(RejectedError, match="does not answer a plain transaction"):
        handler_of(kind, server, served_artifact).load_model()


def test_a_program_ends_without_a_traceback(server, served_artifact, tmp_path):
    source, output = tmp_path / "transactions.jsonl", tmp_path / "scored"
    row = {"transaction_id": "t", "features": transactions(1)[0].tolist(), "event_time": TIME.isoformat()}
    source.write_bytes(orjson.dumps(row))
    command = [sys.executable, "-m", "pipelines.batch", f"--input={source}", f"--output={output}"]
    command += [f"--model={served_artifact.uri}", "--scorer=torchserve", f"--torchserve_url={server.url}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(server.sizes) == 2  # the probe, and the transaction
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


def test_connections_close_with_the_model(kind, server, served_artifact, monkeypatch):
    gc.collect()  # those of earlier tests
    closed = []
    monkeypatch.setattr(HttpConnection, "close", lambda connection: closed.append(connection))
    model = handler_of(kind, server, served_artifact).load_model()
    connection = model.connection
    del model
    gc.collect()
    assert closed == [connection]


def peered(model, uri):
    deployed = {"id": model, "displayName": f"deployed-{model}", "privateEndpoints": {"predictHttpUri": uri}}
    return {"network": "projects/1/global/networks/n", "deployedModels": [deployed]}


@pytest.mark.parametrize("endpoint", ["dedicated", "psc", "psa"])
def test_every_kind_of_vertex_endpoint(endpoint, server, served_artifact):
    address = server.url.removeprefix("http://")
    if endpoint == "dedicated":
        server.resource |= {"dedicatedEndpointEnabled": True, "dedicatedEndpointDns": address}
    elif endpoint == "psc":
        server.resource |= {"privateServiceConnectConfig": {"enablePrivateServiceConnect": True}}
    else:
        server.resource |= peered("1", f"{server.url}/private/predict")
    handler = handler_of(
        "vertex", server, served_artifact, psc_address=address if endpoint == "psc" else None
    )
    scores, _ = score_all(handler, handler.load_model(), batches(5))
    assert len(scores) == 5
    path = "/private/predict" if endpoint == "psa" else f"/v1/{ENDPOINT}:rawPredict"
    assert set(server.paths) == {path}
    assert {row["model_version"] for row in scores} == {"deployed-1"}


@pytest.mark.parametrize("left", ["404", "nobody"])
def test_a_peered_endpoint_is_followed_to_its_new_address(left, server, predictor, served_artifact):
    """A deployed model takes its address with it; what is left there answers 404, or nobody listens."""
    once = replace(QUICK, patience=Patience(tries=1))
    with FaultServer(predictor) as former:
        server.resource |= peered("1", f"{former.url}/models/1")
        handler = handler_of("vertex", server, served_artifact, limits=once)
        model = handler.load_model()
        score_all(handler, model, batches(40))
        server.resource |= peered("2", f"{server.url}/models/2")
        if left == "404":
            former.judge = lambda request: status(404)
            scores, dead = score_all(handler, model, batches(40))
    if left == "nobody":
        scores, dead = score_all(handler, model, batches(40))
    assert (len(scores), len(dead)) == (40, 0)
    assert {row["model_version"] for row in scores} == {"deployed-2"}
    assert set(server.paths) == {"/models/2"}
    asked = len(server.paths)
    server.plan([status(404)])
    with pytest.raises(TransientError, match="HTTP 404"):  # it has not moved: the caller waits, and repeats
        score_all(handler, model, batches(5))
    assert len(server.paths) == asked + 1


def test_a_private_service_connect_endpoint_needs_its_address(server, served_artifact):
    server.resource |= {"privateServiceConnectConfig": {"enablePrivateServiceConnect": True}}
    with pytest.raises(TransientError, match="--vertex_psc_address"):
        handler_of("vertex", server, served_artifact).load_model()


def test_an_endpoint_without_a_model_says_what_to_do(server, served_artifact):
    server.resource["deployedModels"] = []
    with pytest.raises(TransientError, match=r"anomaly vertex deploy"):
        handler_of("vertex", server, served_artifact).load_model()


def test_a_torchserve_token_is_sent_and_read_again_when_it_changed(server, served_artifact, tmp_path):
    key_file = tmp_path / "key_file.json"

    def use(token):
        server.token = token
        key_file.write_text(orjson.dumps({"inference": {"key": token}}).decode())

    use("first")
    handler = handler_of("torchserve", server, served_artifact, key_file=str(key_file))
    model = handler.load_model()
    use("second")
    scores, dead = score_all(handler, model, batches(40))
    assert (len(scores), len(dead)) == (40, 0)
    assert server.headers["authorization"] == "Bearer second"


def test_a_refused_token_condemns_no_row(server, served_artifact):
    server.token = "secret"
    with pytest.raises(TransientError, match="--torchserve_key_file"):
        handler_of("torchserve", server, served_artifact).load_model()

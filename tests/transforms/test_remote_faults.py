"""The remote handlers against a real server that misbehaves: nothing lost, nothing twice, nothing made up."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

from model.serving.predictor import Predictor
from tests.model.serving.artifacts import transactions
from tests.transforms.remote_server import (
    ENDPOINT,
    JSON,
    Die,
    FaultServer,
    Hang,
    Reply,
    Reset,
    has_row,
    status,
)
from transforms import metrics
from transforms.remote import (
    CALLS,
    OTHER_VERSION,
    REJECTED,
    RETRIES,
    ROWS,
    THROTTLED,
    Limits,
    TorchServeHandler,
    VertexHandler,
)
from transforms.remote_protocol import RejectedError, TransientError
from transforms.remote_retry import RetryPolicy
from transforms.schema import SCORES, TRANSACTIONS
from transforms.score import PytorchHandler, Score

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

TIME = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
QUICK = Limits(
    rows=16,
    in_flight=3,
    timeout=20.0,
    policy=RetryPolicy(attempts=6, first=0.01, cap=0.05, max_retry_after=0.05),
)
VERSION = "configured"
BAD = (666_001.0, 666_002.0, 666_003.0)


@pytest.fixture(scope="module")
def predictor(served_artifact):
    return Predictor(served_artifact)


@pytest.fixture
def server(predictor):
    with FaultServer(predictor) as running:
        yield running


@pytest.fixture(params=["torchserve", "vertex"])
def kind(request):
    return request.param


def handler_of(kind: str, server: FaultServer, artifact, **changes):
    common = {
        "thresholds": dict(artifact.manifest.thresholds),
        "model_version": VERSION,
        "limits": changes.pop("limits", QUICK),
        **changes,
    }
    if kind == "torchserve":
        return TorchServeHandler(url=server.url, **common)
    return VertexHandler(endpoint=ENDPOINT, api_endpoint=server.url, **common)


def batch_of(features: np.ndarray, first: int = 0) -> pa.RecordBatch:
    n = len(features)
    columns = [
        pa.array([f"t-{first + i}" for i in range(n)]),
        pa.array(["account"] * n),
        pa.array([TIME] * n, TRANSACTIONS.field("event_time").type),
        pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 30),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRANSACTIONS)


def batches(n: int = 100, size: int = 40, bad: dict[int, float] | None = None) -> list[pa.RecordBatch]:
    features = transactions(n)
    for row, mark in (bad or {}).items():
        features[row, -1] = mark
    return [batch_of(features[i : i + size], i) for i in range(0, n, size)]


def score_all(handler, model, elements):
    """Scores and dead letters of all batches, as rows."""
    found = [handler.run_inference(element, model)[0] for element in elements]
    scores = [row for scored in found for row in scored.scores.to_pylist()]
    dead = [row for scored in found for row in scored.dead_letters.to_pylist()]
    return scores, dead


def expected_scores(artifact, elements) -> dict[str, float]:
    handler = PytorchHandler(artifact.uri)
    scores, _ = score_all(handler, handler.load_model(), elements)
    return {row["transaction_id"]: row["anomaly_score"] for row in scores}


def check_every_row_once(scores, dead, artifact, elements, dead_rows=()):
    wanted = expected_scores(artifact, elements)
    lost = {f"t-{row}" for row in dead_rows}
    assert [row["transaction_id"] for row in scores] == [name for name in wanted if name not in lost]
    for row in scores:
        assert row["anomaly_score"] == pytest.approx(wanted[row["transaction_id"]], rel=1e-5)
    assert [orjson.loads(row["payloadBytes"])["transaction_id"] for row in dead] == [
        f"t-{i}" for i in dead_rows
    ]


TRANSIENT = {
    "429": status(429),
    "429 with Retry-After": status(429, **{"Retry-After": "30"}),
    "500": status(500),
    "502 in HTML": Reply(502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"}),
    "503": status(503),
    "504": status(504),
    "408": status(408),
    "reset": Reset(),
    "half an answer": Reply(200, b'{"predictions": [', JSON, declared=5000),
    "403": status(403),
    "404 while a model loads": status(404),
    "redirect": Reply(302, b"", {"Location": "/elsewhere"}),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_is_retried_and_every_row_is_scored_once(fault, kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    elements = batches()
    server.plan([TRANSIENT[fault], None, TRANSIENT[fault], TRANSIENT[fault]])
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)
    assert server.script == []


def test_a_time_out_is_retried(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact, limits=replace(QUICK, timeout=0.5))
    model = handler.load_model()
    elements = batches(50)
    server.plan([Hang(1.5), None, Hang(1.5)])
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)


def test_a_server_that_dies_and_comes_back_loses_nothing(kind, server, served_artifact):
    patient = replace(QUICK, policy=RetryPolicy(attempts=40, first=0.02, cap=0.1))
    handler = handler_of(kind, server, served_artifact, limits=patient)
    model = handler.load_model()
    elements = batches(200)
    server.plan([None, Die(0.4), None, None, None, None, Die(0.2)])
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)
    assert server.script == []


@pytest.mark.parametrize("fault", ["429", "503", "reset", "403"])
def test_a_fault_that_stays_is_raised_after_the_last_attempt(fault, kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    server.plan([TRANSIENT[fault]] * 500)
    with pytest.raises(TransientError, match=r"after 6 attempts"):
        handler.run_inference(batches()[0], model)
    assert len(server.sizes) - 1 <= QUICK.in_flight * 6


REFUSALS = {
    "400": lambda request: status(400, "V7 is missing"),
    "422": lambda request: status(422, "V7 is missing"),
    "413": lambda request: status(413, "too long"),
    "HTML": lambda request: Reply(200, b"<html>hello</html>", {"Content-Type": "text/html"}),
    "wrong count": lambda request: Reply(200, b'{"predictions": []}', JSON),
    "missing field": lambda request: Reply(
        200, orjson.dumps({"predictions": [{"anomaly_score": 1.0}] * len(request.features)}), JSON
    ),
    "NaN": lambda request: Reply(
        200,
        b'{"predictions": [' + b",".join([b'{"anomaly_score": NaN}'] * len(request.features)) + b"]}",
        JSON,
    ),
    "an error inside a 200": lambda request: Reply(200, b'{"error": {"message": "V7 is missing"}}', JSON),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_halved_down_to_the_rows_at_fault(refusal, kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    bad_rows = {0: BAD[0], 17: BAD[1], 18: BAD[2], 99: BAD[0]}
    elements = batches(bad=bad_rows)
    server.judge = lambda request: REFUSALS[refusal](request) if has_row(request, BAD) else None
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements, sorted(bad_rows))
    wanted = "HTTP 4" if refusal[0] == "4" else "malformed answer"
    for row in dead:
        assert row["errorMessage"].startswith(f"remote scorer: {wanted}")
        assert row["stage"] == "score"
    if refusal == "400":
        assert dead[0]["errorMessage"] == "remote scorer: HTTP 400: V7 is missing"


def test_a_server_that_refuses_every_row_gets_all_of_them_as_dead_letters(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    elements = batches(20)
    server.judge = lambda request: status(400)
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements, range(20))
    assert handler.run_inference(elements[0], model)[0].scores.schema == SCORES


def test_a_storm_of_faults_in_a_pipeline_loses_nothing(kind, server, served_artifact):
    """Through RunInference: conservation, the counters, and the equality with the model in the worker."""
    patient = replace(QUICK, policy=replace(QUICK.policy, attempts=15))
    handler = handler_of(kind, server, served_artifact, limits=patient)
    bad_rows = {3: BAD[0], 250: BAD[1]}
    elements = batches(300, bad=bad_rows)
    server.version = "served"
    server.judge = lambda request: status(400, "no such amount") if has_row(request, BAD) else None
    rng = random.Random(5)
    storm = [rng.choice([None, None, None, *TRANSIENT.values()]) for _ in range(30)]
    server.plan([None, status(429, **{"Retry-After": "1"}), *storm])
    wanted = expected_scores(served_artifact, elements)

    def check_scores(rows):
        assert sorted(row["transaction_id"] for row in rows) == sorted(set(wanted) - {"t-3", "t-250"})
        for row in rows:
            assert (
                abs(row["anomaly_score"] - wanted[row["transaction_id"]])
                <= 1e-5 * wanted[row["transaction_id"]]
            )
            assert row["model_version"] == "served"

    def check_dead(rows):
        messages = {orjson.loads(row["payloadBytes"])["transaction_id"]: row["errorMessage"] for row in rows}
        assert messages == dict.fromkeys(("t-3", "t-250"), "remote scorer: HTTP 400: no such amount")

    pipeline = beam.Pipeline(runner="FnApiRunner")
    scored = pipeline | beam.Create(elements) | Score(handler)
    assert_that(
        scored.scores | "Scores" >> beam.FlatMap(lambda batch: batch.to_pylist()), check_scores, "scores"
    )
    assert_that(
        scored.dead_letters | "Dead" >> beam.FlatMap(lambda batch: batch.to_pylist()), check_dead, "dead"
    )
    result = pipeline.run()
    result.wait_until_finish()
    totals = metrics.totals(result)
    assert totals[metrics.ROWS_SCORED] == 298
    assert totals[metrics.DEAD_LETTERS] == 2
    assert totals[ROWS] == totals[OTHER_VERSION] + totals[metrics.DEAD_LETTERS] == 300
    assert totals[RETRIES] >= sum(fault is not None for fault in storm)
    assert totals[REJECTED] >= 2
    assert totals[THROTTLED] >= 25
    # The probe and the retries of it are not counted as calls of a batch.
    assert totals[CALLS] == len(server.sizes) - 1


def test_a_pipeline_fails_and_writes_nothing_when_the_server_stays_away(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    server.plan([None, *[status(503, "out of office")] * 5000])
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create(batches(20)) | Score(handler)
    with pytest.raises(Exception, match="out of office"):
        pipeline.run().wait_until_finish()


@pytest.mark.parametrize("fault", ["400", "HTML", "missing field"])
def test_a_server_that_cannot_serve_fails_at_the_start_and_no_row_is_condemned(
    fault, kind, server, served_artifact
):
    server.judge = REFUSALS[fault]
    with pytest.raises(RejectedError, match="does not answer a plain transaction"):
        handler_of(kind, server, served_artifact).load_model()


@pytest.mark.parametrize("detail", ["compact", "full"])
def test_a_server_that_drops_the_parameters_is_asked_in_every_instance(detail, kind, server, served_artifact):
    server.envelope = True
    handler = handler_of(kind, server, served_artifact, detail=detail)
    elements = batches(50)
    scores, dead = score_all(handler, handler.load_model(), elements)
    check_every_row_once(scores, dead, served_artifact, elements)


def test_requests_keep_to_rows_and_bytes(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact, limits=replace(QUICK, rows=1000, bytes=10_000))
    model = handler.load_model()
    elements = batches(200, size=200)
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)
    assert len(server.sizes) > 5
    assert sum(server.sizes[1:]) == 200


def test_several_requests_are_in_flight(kind, server, served_artifact):
    import threading

    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    together = threading.Barrier(3, timeout=20)

    def wait(request):
        together.wait()
        return None

    server.judge = wait
    scores, _ = score_all(handler, model, batches(48, size=48))
    assert len(scores) == 48


def test_an_empty_batch_asks_nobody(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    before = len(server.sizes)
    scored = handler.run_inference(batches(10)[0].slice(0, 0), model)[0]
    assert (scored.scores.num_rows, scored.dead_letters.num_rows, len(server.sizes)) == (0, 0, before)
    assert scored.scores.schema == SCORES


def test_the_version_that_answered_is_written(kind, server, served_artifact):
    """During a rolling change the answers to one batch may come from two versions."""
    handler = handler_of(kind, server, served_artifact, limits=replace(QUICK, in_flight=1))
    model = handler.load_model()

    def change(request):
        server.version = {16: "old", 8: "new"}[len(request.features)]

    server.judge = change
    scores, _ = score_all(handler, model, batches(40, size=40))
    assert [row["model_version"] for row in scores] == ["old"] * 32 + ["new"] * 8


def test_without_a_version_in_the_answer_torchserve_rows_get_the_configured_one(server, served_artifact):
    handler = handler_of("torchserve", server, served_artifact)
    scores, _ = score_all(handler, handler.load_model(), batches(5))
    assert {row["model_version"] for row in scores} == {VERSION}


def test_vertex_names_the_deployed_model_and_its_display_name_is_the_version(server, served_artifact):
    handler = handler_of("vertex", server, served_artifact)
    model = handler.load_model()
    server.answer_headers = {"X-Vertex-AI-Deployed-Model-Id": "1"}
    scores, _ = score_all(handler, model, batches(5))
    assert {row["model_version"] for row in scores} == {"deployed-1"}
    # Deployed after the worker started: looked up again.
    server.resource["deployedModels"].append({"id": "2", "displayName": "deployed-2"})
    server.answer_headers = {"X-Vertex-AI-Deployed-Model-Id": "2"}
    scores, _ = score_all(handler, model, batches(5))
    assert {row["model_version"] for row in scores} == {"deployed-2"}


@pytest.mark.parametrize("endpoint", ["dedicated", "psc", "psa"])
def test_every_kind_of_vertex_endpoint(endpoint, server, served_artifact):
    address = server.url.removeprefix("http://")
    if endpoint == "dedicated":
        server.resource |= {"dedicatedEndpointEnabled": True, "dedicatedEndpointDns": address}
    elif endpoint == "psc":
        server.resource |= {"privateServiceConnectConfig": {"enablePrivateServiceConnect": True}}
    else:
        uri = f"{server.url}/private/predict"
        server.resource |= {
            "network": "projects/1/global/networks/n",
            "deployedModels": [
                {"id": "1", "displayName": "deployed-1", "privateEndpoints": {"predictHttpUri": uri}}
            ],
        }
    handler = handler_of(
        "vertex", server, served_artifact, psc_address=address if endpoint == "psc" else None
    )
    scores, _ = score_all(handler, handler.load_model(), batches(5))
    assert len(scores) == 5
    path = "/private/predict" if endpoint == "psa" else f"/v1/{ENDPOINT}:rawPredict"
    assert set(server.paths) == {path}
    assert {row["model_version"] for row in scores} == {"deployed-1"}


def test_a_private_service_connect_endpoint_needs_its_address(server, served_artifact):
    server.resource |= {"privateServiceConnectConfig": {"enablePrivateServiceConnect": True}}
    with pytest.raises(TransientError, match="--vertex_psc_address"):
        handler_of("vertex", server, served_artifact).load_model()


def test_an_endpoint_without_a_model_says_what_to_do(server, served_artifact):
    server.resource["deployedModels"] = []
    with pytest.raises(TransientError, match=r"model\.serving\.vertex deploy"):
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

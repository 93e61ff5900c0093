"""Shared by the tests of the remote handlers: batches, faults, and the check that each row is there once."""

from __future__ import annotations

import datetime as dt
import functools

import numpy as np
import orjson
import pyarrow as pa
import pytest

from common.retry import Patience
from tests.model.serving.artifacts import transactions
from tests.transforms.remote_server import ENDPOINT, JSON, FaultServer, Reply, Reset, status
from transforms.remote import Limits, TorchServeHandler, VertexHandler
from transforms.schema import CARRIED_FIELDS, TRANSACTIONS
from transforms.score import PytorchHandler

TIME = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
QUICK = Limits(
    rows=16,
    in_flight=3,
    timeout=20.0,
    patience=Patience(first=0.01, longest=0.05, tries=6, steady=0.5),
    max_retry_after=0.05,
)
VERSION = "configured"
BAD = (666_001.0, 666_002.0, 666_003.0)
NO_TRAFFIC = {
    "code": 400,
    "message": f"Endpoint `{ENDPOINT}` doesn't have traffic_split.",
    "status": "FAILED_PRECONDITION",
}

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
    "400 about the endpoint": Reply(400, orjson.dumps({"error": NO_TRAFFIC}), JSON),
    "400 about the endpoint, bare": Reply(400, orjson.dumps(NO_TRAFFIC), JSON),
    "redirect": Reply(302, b"", {"Location": "/elsewhere"}),
}

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
        pa.repeat(False, n),
        pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 30),
        *(pa.nulls(n, field.type) for field in CARRIED_FIELDS),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRANSACTIONS)


def batches(n: int = 100, size: int = 40, bad: dict[int, float] | None = None) -> list[pa.RecordBatch]:
    features = transactions(n)
    for row, mark in (bad or {}).items():
        features[row, -1] = mark
    return [batch_of(features[i : i + size], i) for i in range(0, n, size)]


def score_all(handler, model, elements):
    """Scores and dead letters of all batches, as rows."""
    answers = [handler.run_inference(element, model)[0] for element in elements]
    scores = [row for scored in answers for row in scored.scores.to_pylist()]
    dead = [row for scored in answers for row in scored.dead_letters.to_pylist()]
    return scores, dead


def expected_scores(artifact, elements) -> dict[str, float]:
    handler, model = _local(artifact.uri)
    scores, _ = score_all(handler, model, elements)
    return {row["transaction_id"]: row["anomaly_score"] for row in scores}


@functools.cache
def _local(uri: str):
    handler = PytorchHandler(uri)
    return handler, handler.load_model()


def check_every_row_once(scores, dead, artifact, elements, dead_rows=()):
    wanted = expected_scores(artifact, elements)
    lost = {f"t-{row}" for row in dead_rows}
    assert [row["transaction_id"] for row in scores] == [name for name in wanted if name not in lost]
    for row in scores:
        assert row["anomaly_score"] == pytest.approx(wanted[row["transaction_id"]], rel=1e-5)
    assert [orjson.loads(row["payloadBytes"])["transaction_id"] for row in dead] == [
        f"t-{i}" for i in dead_rows
    ]

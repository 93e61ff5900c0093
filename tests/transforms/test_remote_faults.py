"""The remote handlers against a real server that misbehaves: nothing lost, nothing twice, nothing made up."""

from __future__ import annotations

import random
from dataclasses import replace

import apache_beam as beam
import orjson
import pytest
from apache_beam.testing.util import assert_that

from common.retry import Patience
from tests.transforms.remote_cases import (
    BAD,
    QUICK,
    REFUSALS,
    TRANSIENT,
    batches,
    check_every_row_once,
    expected_scores,
    handler_of,
    score_all,
)
from tests.transforms.remote_server import Die, Drip, Hang, has_row, status
from transforms import metrics, remote_http
from transforms.remote import CALLS, OTHER_VERSION, REJECTED, RETRIES, ROWS, THROTTLED
from transforms.remote_protocol import TransientError
from transforms.schema import SCORES
from transforms.score import Score

pytest_plugins = ("tests.model.serving.fixtures", "tests.transforms.remote_fixtures")
pytestmark = pytest.mark.integration


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


def test_an_answer_that_comes_byte_by_byte_is_a_time_out(kind, server, served_artifact):
    """Each byte comes in time; all of them would take a quarter of an hour."""
    handler = handler_of(kind, server, served_artifact, limits=replace(QUICK, timeout=1.0))
    model = handler.load_model()
    elements = batches(50)
    server.plan([Drip(0.1), None, Drip(0.1)])
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)
    server.plan([Drip(0.1)] * 100)
    with pytest.raises(TransientError, match="--remote_timeout_seconds"):
        handler.run_inference(elements[0], model)


def test_an_answer_without_end_does_not_fill_the_memory(kind, server, served_artifact, monkeypatch):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    monkeypatch.setattr(remote_http, "MAX_ANSWER_BYTES", 5_000)
    with pytest.raises(TransientError, match="--remote_rows"):
        handler.run_inference(batches()[0], model)


def test_a_server_that_dies_and_comes_back_loses_nothing(kind, server, served_artifact):
    patient = replace(QUICK, patience=Patience(first=0.02, longest=0.1, tries=40))
    handler = handler_of(kind, server, served_artifact, limits=patient)
    model = handler.load_model()
    elements = batches(200)
    server.plan([None, Die(0.4), None, None, None, None, Die(0.2)])
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)
    assert server.script == []


@pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "403", "400 about the endpoint"])
def test_a_fault_that_stays_is_raised_after_the_last_attempt(fault, kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    server.plan([TRANSIENT[fault]] * 500)
    with pytest.raises(TransientError, match=r"after 6 attempts"):
        handler.run_inference(batches()[0], model)
    # Where the answer may be about rows, a plain transaction is asked for at the end.
    assert len(server.sizes) - 1 <= QUICK.in_flight * (7 if "400" in fault or fault == "500" else 6)


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


@pytest.mark.parametrize("fault", ["500", "400 about the endpoint", "400 about the endpoint, bare"])
@pytest.mark.parametrize("n", [1, 100])
def test_rows_that_fail_as_an_outage_does_are_found(fault, n, kind, server, served_artifact):
    """Vertex AI wraps a model's 400 for a row as FAILED_PRECONDITION, as where nothing is deployed."""
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    bad_rows = {row: BAD[row % 3] for row in (0, 17, 18, 99) if row < n}
    elements = batches(n, bad=bad_rows)
    server.judge = lambda request: TRANSIENT[fault] if has_row(request, BAD) else None
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements, sorted(bad_rows))
    assert all(row["errorMessage"].startswith(f"remote scorer: HTTP {fault[:3]}: ") for row in dead)


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
    patient = replace(QUICK, patience=replace(QUICK.patience, tries=15))
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

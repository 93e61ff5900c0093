"""Requests of the remote handlers, and the rows that they write of the answers."""

from __future__ import annotations

import gzip
import threading
from dataclasses import replace

import apache_beam as beam
import pytest

from features.ranges import FeatureRanges, feature_quantiles
from tests.transforms.remote_cases import QUICK, VERSION, batches, check_every_row_once, handler_of, score_all
from tests.transforms.remote_server import status
from transforms import metrics
from transforms.schema import SCORES
from transforms.score import Score
from transforms.scores import feature_matrix

pytest_plugins = ("tests.model.serving.fixtures", "tests.transforms.remote_fixtures")
pytestmark = pytest.mark.integration


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


@pytest.mark.parametrize(
    ("endpoint", "detail", "wanted"),
    [
        ("shared", "full", [573, 427]),
        ("shared", "compact", [1000]),
        ("dedicated", "full", [1000]),
        ("torchserve", "full", [1000]),
    ],
)
def test_answers_keep_to_the_limit_of_a_shared_endpoint(endpoint, detail, wanted, server, served_artifact):
    if endpoint == "dedicated":
        address = server.url.removeprefix("http://")
        server.resource |= {"dedicatedEndpointEnabled": True, "dedicatedEndpointDns": address}
    kind = "torchserve" if endpoint == "torchserve" else "vertex"
    limits = replace(QUICK, rows=1000, in_flight=1)
    handler = handler_of(kind, server, served_artifact, detail=detail, limits=limits)
    answers = []

    def watch(request):
        answers.append(server.answer(request))
        return answers[-1]

    server.judge = watch
    scores, dead = score_all(handler, handler.load_model(), batches(1000, size=1000))
    assert (len(scores), len(dead)) == (1000, 0)
    assert server.sizes[1:] == wanted
    if endpoint == "shared":
        assert max(len(answer.body) for answer in answers) < 1_500_000


def test_several_requests_are_in_flight(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact)
    model = handler.load_model()
    together = threading.Barrier(3, timeout=20)

    def wait(request):
        together.wait()
        return None

    server.judge = wait
    scores, _ = score_all(handler, model, batches(48, size=48))
    assert len(scores) == 48


def test_a_connection_is_used_again(kind, server, served_artifact):
    handler = handler_of(kind, server, served_artifact, limits=replace(QUICK, rows=200, in_flight=1))
    model = handler.load_model()
    opened = server.connections
    server.plan([None, status(503), status(400), None])
    score_all(handler, model, batches(2000, size=200))
    assert len(server.sizes) > 10
    assert server.connections == opened


@pytest.mark.parametrize("form", ["gzip", "chunked", "both"])
def test_an_answer_may_be_compressed_and_in_pieces(form, kind, server, served_artifact):
    def change(request):
        reply = server.answer(request)
        if form != "chunked":
            headers = {**reply.headers, "Content-Encoding": "gzip"}
            reply = replace(reply, body=gzip.compress(reply.body), headers=headers)
        return replace(reply, chunked=form != "gzip")

    server.judge = change
    handler = handler_of(kind, server, served_artifact, limits=replace(QUICK, in_flight=1))
    model = handler.load_model()
    opened = server.connections
    elements = batches(50)
    scores, dead = score_all(handler, model, elements)
    check_every_row_once(scores, dead, served_artifact, elements)
    assert server.connections == opened


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


def test_values_out_of_the_range_of_the_training_are_counted(kind, server, served_artifact):
    element = batches(40)[0]
    features = feature_matrix(element)
    names = served_artifact.manifest.features
    ranges = FeatureRanges(names, feature_quantiles(names, features[9:]))
    beyond = int(((features < features[9:].min(axis=0)) | (features > features[9:].max(axis=0))).sum())
    assert beyond
    handler = handler_of(kind, server, served_artifact, ranges=ranges)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([element]) | Score(handler)
    result = pipeline.run()
    result.wait_until_finish()
    assert metrics.totals(result)[metrics.VALUES_OUT_OF_RANGE] == beyond

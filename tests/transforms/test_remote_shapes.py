"""Endpoints of other models: 13 fields without a score of ours, a score without contributions, plain rows."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from common.options import OptionError
from model.outputs import FIELDS
from model.serving.request import PredictRequest
from pipelines import batch
from tests.transforms.remote_cases import batches, expected_scores, handler_of, score_all
from tests.transforms.remote_server import JSON, Reply, status
from transforms.remote_protocol import RejectedError
from transforms.topics import row_messages

pytest_plugins = ("tests.model.serving.fixtures", "tests.transforms.remote_fixtures")

NOTEBOOK = tuple(name for name in FIELDS if name != "anomaly_score")
"""The 13 fields, whatever was asked for."""
THRESHOLDS = {"medium": 0.5, "high": 1.0}


def answers_only(server, fields, refuses=lambda body: False):
    """Has the server answer these fields, whatever a request asks for."""
    use = server._parse

    def parse(body):
        server.refused = refuses(orjson.loads(body))
        return use(body)

    def judge(request):
        if server.refused:
            return status(400, "unknown key")
        return Reply(200, server._predictor.answer(PredictRequest(request.features, fields))[0], JSON)

    server._parse, server.judge = parse, judge


@pytest.mark.integration
@pytest.mark.parametrize("detail", ["compact", "full"])
def test_the_13_fields_are_scored_by_the_field_that_is_named(server, served_artifact, predictor, detail):
    answers_only(server, NOTEBOOK)
    changes = {"thresholds": THRESHOLDS, "score_field": "denormalized_MAE", "detail": detail}
    handler = handler_of("vertex", server, served_artifact, **changes)
    elements = batches(50)
    answers = [
        handler.run_inference(element, model)[0] for model in [handler.load_model()] for element in elements
    ]
    rows = [row for answer in answers for row in answer.scores.to_pylist()]
    features = np.concatenate([batch["features"].flatten().to_numpy().reshape(-1, 30) for batch in elements])
    asked = PredictRequest(features, ("denormalized_MAE",))
    expected = [row["denormalized_MAE"] for row in orjson.loads(predictor.answer(asked)[0])["predictions"]]
    assert [row["anomaly_score"] for row in rows] == pytest.approx(expected, rel=1e-6)
    assert [row["severity"] for row in rows] == [
        "high" if score >= 1.0 else "medium" if score >= 0.5 else "normal"
        for score in (row["anomaly_score"] for row in rows)
    ]
    assert {row["top_features"] for row in rows} == {None}
    assert all(len(row["encoded"]) == 4 for row in rows)
    assert {row["model_version"] for row in rows} == {served_artifact.manifest.model_version}
    assert row_messages(answers[0].scores)[0].attributes["top_features"] == ""
    if detail == "full":
        assert all(len(row["normalized_reconstruction"]) == 30 for row in rows)
    assert sum(answer.dead_letters.num_rows for answer in answers) == 0


@pytest.mark.integration
@pytest.mark.parametrize("fields", [("anomaly_score", "encoded"), ("anomaly_score",), FIELDS])
def test_a_score_without_contributions_is_used_and_the_log_names_what_lacks(
    server, served_artifact, fields, caplog
):
    answers_only(server, fields)
    handler = handler_of("vertex", server, served_artifact)
    elements = batches(50)
    scores, dead = score_all(handler, handler.load_model(), elements)
    wanted = expected_scores(served_artifact, elements)
    assert {row["transaction_id"]: row["anomaly_score"] for row in scores} == pytest.approx(wanted, rel=1e-5)
    assert dead == []
    assert {row["top_features"] for row in scores} == {None}
    assert (scores[0]["encoded"] is None) is ("encoded" not in fields)
    assert "does not answer contributions" in caplog.text


@pytest.mark.integration
def test_a_server_that_knows_no_parameters_is_asked_without(server, served_artifact):
    answers_only(
        server, ("anomaly_score", "encoded"), lambda body: "parameters" in body or "fields" in str(body)
    )
    handler = handler_of("vertex", server, served_artifact)
    scores, dead = score_all(handler, handler.load_model(), batches(20))
    assert (len(scores), len(dead)) == (20, 0)


@pytest.mark.integration
def test_an_answer_without_the_score_names_the_fields_that_are_there(server, served_artifact):
    answers_only(server, NOTEBOOK)
    with pytest.raises(RejectedError) as error:
        handler_of("vertex", server, served_artifact).load_model()
    assert "expected the field anomaly_score in a prediction, got encoded, " in str(error.value)
    assert "pass one of them that is a single number as --score_field" in str(error.value)


@pytest.mark.integration
def test_torchserve_serves_our_model_and_lacks_no_field(server, served_artifact):
    answers_only(server, ("anomaly_score", "encoded"))
    with pytest.raises(RejectedError, match="does not answer a plain transaction with the fields"):
        handler_of("torchserve", server, served_artifact).load_model()


ARGV = [
    "--input=x.jsonl",
    "--output=out",
    "--model=m",
    "--scorer=vertex",
    "--vertex_endpoint=projects/my-project/locations/us-central1/endpoints/5",
]


@pytest.mark.parametrize("more", [[], ["--medium_threshold=1"], ["--high_threshold=1"]])
def test_another_score_needs_both_thresholds(more):
    with pytest.raises(OptionError, match="--score_field=denormalized_MAE: the thresholds of --model are"):
        batch.parse([*ARGV, "--score_field=denormalized_MAE", *more])
    flags = ["--score_field=denormalized_MAE", "--medium_threshold=1", "--high_threshold=2"]
    assert batch.parse([*ARGV, *flags])[0].scorer.score_field == "denormalized_MAE"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (
            [*ARGV, "--score_field=encoded"],
            "--score_field: expected a field with one number a row",
        ),
        (
            [*ARGV[:3], "--score_field=mae"],
            "--score_field goes with --scorer=vertex",
        ),
    ],
)
def test_a_field_that_is_no_score_is_refused(argv, reason):
    with pytest.raises(OptionError, match=reason):
        batch.parse(argv)

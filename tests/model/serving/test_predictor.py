import numpy as np
import orjson
import pytest
import torch

from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.predictor import Predictor
from model.serving.request import PredictRequest
from tests.model.serving.artifacts import VERSION, transactions

pytest_plugins = ("tests.model.serving.fixtures",)


@pytest.fixture(scope="module")
def predictor(served_artifact):
    return Predictor(served_artifact)


def answered(predictor, features, fields):
    return predictor.answer(PredictRequest(features, tuple(fields)))[0]


def test_outputs_are_those_of_the_model(predictor, served_artifact):
    features = transactions(17)
    module = served_artifact.load_model(freeze=False)
    rows = torch.from_numpy(features)
    score, encoded, contributions = module.score(rows)
    expected = {**module(rows), "anomaly_score": score, "encoded": encoded, "contributions": contributions}
    assert set(expected) == set(ANSWER_FIELDS)
    actual = predictor.outputs(features, ANSWER_FIELDS)
    assert list(actual) == list(ANSWER_FIELDS)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "fields",
    [
        DEFAULT_FIELDS,
        ("contributions",),
        ("denormalized_MSLE",),
        ("contributions", "normalized_MAE"),
        ("encoded",),
    ],
)
def test_an_answer_has_the_fields_asked_for_and_no_other(predictor, fields):
    features = transactions(3)
    answer = orjson.loads(answered(predictor, features, fields))
    assert answer["metadata"] == {"model_version": VERSION}
    assert [tuple(row) for row in answer["predictions"]] == [fields] * 3


def test_an_answer_reads_back_to_the_same_float32(predictor):
    features = transactions(50)
    rows = orjson.loads(answered(predictor, features, ANSWER_FIELDS))["predictions"]
    for name, values in predictor.outputs(features, ANSWER_FIELDS).items():
        assert np.array_equal(np.array([row[name] for row in rows], np.float32), values), name


def test_a_short_answer_is_a_small_part_of_the_full_one(predictor):
    features = transactions(128)
    short = len(answered(predictor, features, DEFAULT_FIELDS))
    full = len(answered(predictor, features, ANSWER_FIELDS[:14]))
    assert full > 15 * short


def test_an_extreme_row_has_an_answer(predictor):
    features = np.full((1, 30), np.finfo(np.float32).max)
    assert np.isfinite(
        orjson.loads(answered(predictor, features, DEFAULT_FIELDS))["predictions"][0]["encoded"]
    ).all()


def test_a_number_that_is_not_finite_is_never_answered(predictor):
    with pytest.raises(FloatingPointError, match="anomaly_score"):
        answered(predictor, np.full((1, 30), np.nan, np.float32), DEFAULT_FIELDS)

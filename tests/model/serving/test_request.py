import contextlib
import json
import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.ulb import FEATURES, N_FEATURES
from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.request import BadRequestError, RequestParser

parse_request = RequestParser(FEATURES).parse
ROW = [float(i) for i in range(N_FEATURES)]


def body(instances, **rest) -> bytes:
    return json.dumps({"instances": instances, **rest}).encode()


def rejected(raw: bytes) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        parse_request(raw)
    return caught.value


def test_lists_become_a_float32_matrix_in_order():
    request = parse_request(body([ROW, [-value for value in ROW]]))
    assert request.features.dtype == np.float32
    assert request.features.tolist() == [ROW, [-value for value in ROW]]
    assert request.fields == DEFAULT_FIELDS


def test_numbers_as_text_and_the_list_of_a_message_are_taken_as_in_messages():
    texts = [f" {value}e0 " for value in ROW]
    message = {"transaction_id": 7, "features": texts, "Time": "not looked at"}
    named = dict(zip(FEATURES, texts, strict=True)) | {"features": None}
    assert parse_request(body([texts, message, named, ROW])).features.tolist() == [ROW] * 4


def test_integers_count_as_numbers():
    assert parse_request(body([list(range(N_FEATURES))])).features.tolist() == [ROW]


def test_named_features_are_the_same_as_a_list_in_any_order_and_other_names_are_ignored():
    named = dict(reversed(list(zip(FEATURES, ROW, strict=True)))) | {"Class": 1, "transaction_id": "t"}
    assert parse_request(body([named, ROW])).features.tolist() == [ROW, ROW]


@given(
    st.lists(st.lists(st.floats(width=64), min_size=N_FEATURES, max_size=N_FEATURES), min_size=1, max_size=3)
)
def test_a_row_is_taken_exactly_when_every_number_is_finite_in_float32(rows):
    with np.errstate(over="ignore"):
        expected = np.array(rows, np.float64).astype(np.float32)
    bad = np.argwhere(~np.isfinite(expected))
    if len(bad):
        error = rejected(body(rows))
        assert (error.instance, error.field) == (bad[0][0], FEATURES[bad[0][1]])
    else:
        assert np.array_equal(parse_request(body(rows)).features, expected)


@pytest.mark.parametrize("largest", [3.4028235677973362e38, -3.4028235677973362e38])
def test_the_largest_double_that_rounds_to_a_finite_float32_is_taken_by_list_and_by_name(largest):
    row = [largest] * N_FEATURES
    by_name = dict(zip(FEATURES, row, strict=True))
    assert np.isfinite(parse_request(body([row, by_name])).features).all()
    beyond = math.nextafter(largest, math.copysign(math.inf, largest))
    assert rejected(body([ROW, [beyond] * N_FEATURES])).instance == 1
    assert rejected(body([dict.fromkeys(FEATURES, beyond)])).field == "Time"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("null", "null"),
        ("true", "boolean"),
        ('"1,5"', "string"),
        ("[1]", "list"),
        ("{}", "object"),
        ("NaN", "nan"),
        ("-Infinity", "-inf"),
        ("1e999", "inf"),
        ("1" + "0" * 400, "finite"),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_what_is_no_finite_number_is_named_by_instance_and_feature(value, reason, by_name):
    texts = ["0"] * N_FEATURES
    texts[7] = value
    bad = f"[{','.join(texts)}]"
    if by_name:
        pairs = (f'"{name}":{text}' for name, text in zip(FEATURES, texts, strict=True))
        bad = "{" + ",".join(pairs) + "}"
    error = rejected(f'{{"instances": [{json.dumps(ROW)}, {json.dumps(ROW)}, {bad}]}}'.encode())
    assert (error.instance, error.field) == (2, "V7")
    assert reason in error.reason
    assert str(error).startswith("instances[2].V7: ")


@pytest.mark.parametrize("n", [0, 29, 31])
def test_a_row_of_another_length_is_rejected(n):
    error = rejected(body([ROW, [0.0] * n]))
    assert (error.instance, error.field) == (1, None)
    assert f"expected 30 features, got {n}" in error.reason


def test_a_missing_name_is_rejected():
    named = dict(zip(FEATURES, ROW, strict=True))
    del named["V9"]
    error = rejected(body([ROW, named]))
    assert (error.instance, error.field, error.reason) == (1, "V9", "is missing")


@pytest.mark.parametrize("instance", ["text", 1, None, True])
def test_an_instance_that_is_no_row_is_rejected(instance):
    assert rejected(body([instance])).instance == 0


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[[1]]", "must be a JSON object"),
        (b"7", "must be a JSON object"),
        (b"{}", "instances: expected a list"),
        (b'{"instances": []}', "instances: expected a list of at least one"),
        (b'{"instances": {}}', "instances: expected a list"),
        (b'{"instances": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_no_request_is_rejected(raw, text):
    assert text in str(rejected(raw))


def test_fields_come_in_the_order_asked_for_and_once():
    requested = ["contributions", "normalized_MAE", "contributions"]
    request = parse_request(body([ROW], parameters={"fields": requested}))
    assert request.fields == ("contributions", "normalized_MAE")


@pytest.mark.parametrize("parameters", [None, {}, {"fields": None}])
def test_parameters_may_be_absent(parameters):
    assert parse_request(body([ROW], parameters=parameters)).fields == DEFAULT_FIELDS


def test_every_field_can_be_asked_for():
    fields = parse_request(body([ROW], parameters={"fields": list(ANSWER_FIELDS)})).fields
    assert len(fields) == 15
    assert fields == ANSWER_FIELDS


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"fields": ["score"]}, "unknown field 'score'"),
        ({"fields": []}, "at least one"),
        ({"fields": "anomaly_score"}, "parameters.fields: expected a list"),
        ({"fields": [1]}, "parameters.fields: expected a list"),
        ({"field": ["encoded"]}, "unknown member 'field'"),
        ([], "parameters: expected an object"),
    ],
)
def test_parameters_that_are_not_understood_are_rejected(parameters, text):
    assert text in str(rejected(body([ROW], parameters=parameters)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_reason(raw):
    with contextlib.suppress(BadRequestError):
        assert len(parse_request(raw).features)


@pytest.mark.parametrize("name", ["paramters", "signature_name", "\ud800"])
def test_a_member_of_the_request_that_is_not_known_is_named(name):
    error = rejected(json.dumps({"instances": [ROW], name: {"fields": ["encoded"]}}).encode())
    assert f"unknown member {name!r}; known are instances and parameters" in str(error)
    orjson.dumps(str(error))

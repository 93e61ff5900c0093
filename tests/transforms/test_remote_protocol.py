from __future__ import annotations

import email.utils
import time

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.ulb import FEATURES
from model.outputs import SCORE_FIELDS
from model.serving.request import RequestParser
from transforms.remote_protocol import (
    MIN_REQUEST_BYTES,
    Contract,
    RejectedError,
    Response,
    SuspectError,
    TransientError,
)

parse = RequestParser(FEATURES).parse


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 30)).astype(np.float32) * 1000


def prediction(score: float = 1.5) -> dict:
    return {"anomaly_score": score, "encoded": [0.5] * 4, "contributions": [0.05] * 30}


def answered(body, status: int = 200, **headers) -> Response:
    return Response(status, headers, body if isinstance(body, bytes) else orjson.dumps(body))


@pytest.mark.parametrize("detail", ["compact", "full"])
def test_the_server_reads_back_the_same_float32(detail):
    features = np.concatenate([rows(20), np.full((1, 30), np.finfo(np.float32).max), np.full((1, 30), 1e-45)])
    features = features.astype(np.float32)
    request = parse(Contract(detail).encode(features))
    assert np.array_equal(request.features, features)
    assert request.fields == Contract(detail).fields


def test_fields_can_go_with_every_instance():
    body = orjson.loads(Contract(per_instance=True).encode(rows(2)))
    assert list(body) == ["instances"]
    assert [instance["fields"] for instance in body["instances"]] == [list(SCORE_FIELDS)] * 2
    assert np.array_equal(
        np.array([instance["features"] for instance in body["instances"]], np.float32), rows(2)
    )


@given(st.integers(0, 400), st.integers(1, 300), st.sampled_from([MIN_REQUEST_BYTES, 20_000, 1_500_000]))
def test_requests_keep_both_limits_and_cover_every_row_in_order(n, max_rows, max_bytes):
    features = rows(n)
    requests = list(Contract().requests(features, max_rows, max_bytes))
    assert [row for r in requests for row in range(r.start, r.stop)] == list(range(n))
    for request in requests:
        assert request.stop - request.start <= max_rows
        assert len(request.body) <= max_bytes
        assert np.array_equal(parse(request.body).features, features[request.start : request.stop])


@pytest.mark.parametrize("detail", ["compact", "full"])
@pytest.mark.parametrize("per_instance", [False, True])
def test_the_longest_possible_row_fits_the_smallest_request(detail, per_instance):
    longest = np.full((1, 30), -1.1754942e-38, np.float32)
    assert len(Contract(detail, per_instance).encode(longest)) <= MIN_REQUEST_BYTES


def test_an_answer_becomes_float32_arrays():
    body = {"predictions": [prediction(1.5), prediction(2.5)], "metadata": {"model_version": "v7"}, "more": 1}
    answer = Contract().read(answered(body, **{"x-vertex-ai-deployed-model-id": "42"}), 2)
    assert {name: values.shape for name, values in answer.outputs.items()} == {
        "anomaly_score": (2,),
        "encoded": (2, 4),
        "contributions": (2, 30),
    }
    assert answer.outputs["anomaly_score"].tolist() == [1.5, 2.5]
    assert (answer.model_version, answer.deployed_model) == ("v7", "42")


def test_the_deployed_model_may_be_named_in_the_body():
    answer = Contract().read(answered({"predictions": [prediction()], "deployedModelId": "9"}), 1)
    assert (answer.model_version, answer.deployed_model) == (None, "9")


MALFORMED = {
    "too few": {"predictions": [prediction()]},
    "too many": {"predictions": [prediction()] * 3},
    "no predictions": {"error": "boom"},
    "a missing field": {"predictions": [prediction(), {"anomaly_score": 1.0, "encoded": [0.0] * 4}]},
    "null for a number": {"predictions": [prediction(), {**prediction(), "anomaly_score": None}]},
    "a string for a number": {"predictions": [prediction(), {**prediction(), "anomaly_score": "1.0"}]},
    "a boolean for a number": {"predictions": [prediction(), {**prediction(), "anomaly_score": True}]},
    "three of four": {"predictions": [prediction(), {**prediction(), "encoded": [0.0] * 3}]},
    "too large": {"predictions": [prediction(), prediction(1e300)]},
    "a list": [prediction()] * 2,
    "NaN": b'{"predictions": [{"anomaly_score": NaN}, {"anomaly_score": 1}]}',
    "HTML": b"<!doctype html><html><body>Service\n  Unavailable</body></html>",
    "nothing": b"",
    "not UTF-8": b'{"predictions": "\xff"}',
    "half an answer": orjson.dumps({"predictions": [prediction()] * 2})[:-40],
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_answer_is_never_a_score(kind):
    with pytest.raises(RejectedError, match="malformed answer"):
        Contract().read(answered(MALFORMED[kind]), 2)


@pytest.mark.parametrize("status", [400, 406, 409, 413, 415, 418, 422])
def test_a_refusal_of_the_rows_is_permanent_and_carries_the_message(status):
    body = {"error": {"code": status, "message": "instances[3].V7: is missing"}}
    with pytest.raises(RejectedError, match=f"HTTP {status}: instances\\[3\\].V7: is missing"):
        Contract().read(answered(body, status), 1)


@pytest.mark.parametrize(
    "status", [301, 302, 401, 403, 404, 405, 408, 425, 429, 500, 501, 502, 503, 504, 507, 599]
)
def test_what_is_not_about_the_rows_is_transient(status):
    with pytest.raises(TransientError, match=f"HTTP {status}: try later") as caught:
        Contract().read(answered({"message": "try later"}, status), 1)
    assert caught.value.throttled == (status in (429, 503))
    # The server that fails on one row answers as the one that fails on all.
    assert isinstance(caught.value, SuspectError) == (status == 500)


@pytest.mark.parametrize(
    "state",
    [
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "INTERNAL",
        "DEADLINE_EXCEEDED",
    ],
)
@pytest.mark.parametrize("enveloped", [True, False])
def test_an_error_that_google_puts_down_to_the_server_is_transient_even_as_a_400(state, enveloped):
    error = {"code": 400, "message": "no traffic_split", "status": state}
    with pytest.raises(TransientError, match="HTTP 400: no traffic_split") as caught:
        Contract().read(answered({"error": error} if enveloped else error, 400), 1)
    assert caught.value.throttled == (state in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"))
    assert isinstance(caught.value, SuspectError) != caught.value.throttled


@pytest.mark.parametrize("state", ["INVALID_ARGUMENT", "", None, 9, ["INTERNAL"]])
def test_another_error_of_google_is_about_the_rows(state):
    with pytest.raises(RejectedError, match="HTTP 400: bad"):
        Contract().read(answered({"error": {"message": "bad", "status": state}}, 400), 1)


@pytest.mark.parametrize(
    ("text", "low", "high"), [("7", 7, 7), ("soon", None, None), ("", None, None), ("-3", None, None)]
)
def test_retry_after_in_seconds(text, low, high):
    with pytest.raises(TransientError) as caught:
        Contract().read(answered(b"", 503, **{"retry-after": text}), 1)
    assert caught.value.retry_after == low == high


def test_retry_after_as_a_date():
    when = email.utils.formatdate(time.time() + 100, usegmt=True)
    with pytest.raises(TransientError) as caught:
        Contract().read(answered(b"", 429, **{"retry-after": when}), 1)
    assert 90 < caught.value.retry_after <= 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "from Google"}}', "from Google"),
        (b'{"error": "plain"}', "plain"),
        (b'{"code": 404, "message": "from TorchServe"}', "from TorchServe"),
        (b"<html>\n  bad\tgateway</html>", "<html> bad gateway</html>"),
        (b"", "(empty body)"),
        (b'{"error": {"status": "INTERNAL"}}', '{"error": {"status": "INTERNAL"}}'),
        (b'{"error": null}', '{"error": null}'),
        (b"[1]", "[1]"),
        (b"\xff", "\ufffd"),
    ],
)
def test_the_message_of_an_error_answer_is_found(body, message):
    with pytest.raises(TransientError) as caught:
        Contract().read(answered(body, 500), 1)
    assert str(caught.value) == f"HTTP 500: {message}"


def test_long_messages_are_cut():
    with pytest.raises(RejectedError) as caught:
        Contract().read(answered(b"x" * 100_000, 400), 1)
    assert len(str(caught.value)) < 400

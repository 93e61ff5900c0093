"""The container under more than it can do: some are answered soon, the others are told when to come again."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import orjson
import pytest
import requests

from model.serving.loader import Loader
from model.serving.metrics import Metrics
from model.serving.options import ServerOptions
from model.serving.predictor import Predictor
from model.serving.protocol import ARRIVAL
from model.serving.service import Endpoint, Limits, error_response
from tests.model.serving.artifacts import transactions
from tests.model.serving.servers import container
from tests.model.serving.test_app_clients import connect, read_answer, request_head
from tests.model.serving.test_app_metrics import value

pytest_plugins = ("tests.model.serving.fixtures",)


def body(n: int) -> bytes:
    return orjson.dumps({"instances": transactions(n)}, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.fixture
def ask(served_artifact):
    """Asks an endpoint for one row that came so many seconds ago."""
    options = ServerOptions(served_artifact.uri, max_wait_millis=2000)
    loader, metrics = Loader(options.model), Metrics()
    loader.predictor = Predictor(served_artifact)
    metrics.loaded(served_artifact.manifest)

    def work(predictor, scope, content):
        return predictor.answer(predictor.parse(content))

    endpoint = Endpoint("predict", loader, Limits(options), metrics, work, error_response)

    async def receive():
        return {"type": "http.request", "body": body(1)}

    def send(waited: float | None):
        arrival = SimpleNamespace(received_at=time.monotonic() - (waited or 0))
        state = {} if waited is None else {"state": {ARRIVAL: arrival}}
        return asyncio.run(endpoint({"headers": [], **state}, receive))

    return send


def test_a_request_that_has_waited_too_long_is_told_to_come_again(ask):
    assert ask(0).status_code == 200
    refused = ask(10.0)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "waited more than 2000 ms" in orjson.loads(refused.body)["error"]["message"]


def test_a_server_that_is_too_slow_for_the_limit_still_answers_some(ask):
    assert ask(10.0).status_code == 200


@pytest.mark.parametrize("waited", [0, None])
def test_a_request_that_has_not_waited_is_answered(ask, waited):
    assert ask(waited).status_code == 200


@pytest.mark.integration
def test_too_many_rows_are_refused_with_the_number_that_is_allowed(served_artifact):
    with container(served_artifact.uri, "--max_rows", "10") as served:
        refused = requests.post(f"{served.url}/predict", body(11), timeout=60)
        assert refused.status_code == 413
        assert "send at most 10 at once" in refused.json()["error"]["message"]
        assert requests.post(f"{served.url}/predict", body(10), timeout=60).ok
        limits = requests.get(f"{served.url}/metadata", timeout=60).json()["limits"]
        assert limits["rows"] == 10


@pytest.mark.integration
def test_under_more_than_it_can_do_each_request_is_answered_or_refused_with_the_time_to_come_again(
    served_artifact,
):
    content = body(3000)
    with container(served_artifact.uri, MAX_WAIT_MILLIS="5") as served:
        connections = [connect(served.url) for _ in range(40)]
        head = request_head(len(content))
        for connection in connections:
            connection.sendall(head + content[:-1])
        # All are complete at the same time, and the work on one takes longer than the others may wait.
        for connection in connections:
            connection.sendall(content[-1:])
        answers = [read_answer(connection) for connection in connections]
        for connection in connections:
            connection.close()
        scored = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200")]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
        assert len(scored) + len(refused) == len(answers)
        assert scored
        assert refused
        assert all(b"retry-after: 1" in answer for answer in refused)
        assert value(served.url, "rejected_total", reason="overload") == len(refused)
        assert value(served.url, "requests_total", route="predict", code="200") == len(scored)
        assert requests.get(f"{served.url}/health", timeout=60).ok
        assert requests.post(f"{served.url}/predict", content, timeout=60).ok

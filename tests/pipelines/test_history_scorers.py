"""A model with history features behind real servers: the pipeline computes the history, and sends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from model import artifact
from tests.model.serving.fixtures import needs_torchserve
from tests.model.serving.servers import Served, TorchServe, container, torchserve_server
from tests.model.serving.vertex_cases import serve_through
from tests.model.serving.vertex_server import vertex_server
from tests.pipelines.test_end_to_end import run_batch
from tests.pipelines.test_history import (
    PAST,
    assert_scores,
    history_model,
    past,
    scores,
    story,
    write_lines,
)
from tests.pipelines.test_own_features import scored
from tests.transforms.history_cases import SPEC
from transforms import metrics

pytestmark = pytest.mark.integration
__all__ = ["history_model", "past", "scores", "story"]

ENDPOINT = "projects/my-project/locations/us-central1/endpoints/5"
REFUSED = (
    "level: expected the deviation of amount over the earlier transactions of the account, a number that the "
    "pipelines compute and that who asks a server directly has to send, got null"
)


@dataclass(frozen=True)
class Remote:
    """A server of the model: the flags of a pipeline that asks it, and its own address for predictions."""

    flags: list[str]
    url: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def fastapi(history_model: Path) -> Iterator[Served]:
    with container(str(history_model)) as server:
        yield server


@pytest.fixture(scope="module")
def torchserve(history_model: Path) -> Iterator[TorchServe]:
    needs_torchserve(artifact.peek(history_model).files)
    with torchserve_server(str(history_model)) as server:
        yield server


@pytest.fixture(scope="module", params=["vertex", "torchserve"])
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    if request.param == "torchserve":
        server = request.getfixturevalue("torchserve").server
        flags = [f"--torchserve_url={server.inference}", f"--torchserve_key_file={server.key_file}"]
        url = f"{server.inference}/predictions/{artifact.MODEL_NAME}"
        yield Remote(["--scorer=torchserve", *flags], url, server.headers("inference"))
        return
    fastapi = request.getfixturevalue("fastapi")
    with vertex_server() as vertex:
        serve_through(vertex, ENDPOINT, fastapi.url)
        flags = [f"--vertex_endpoint={ENDPOINT}", f"--vertex_api_endpoint={vertex.url}"]
        yield Remote(["--scorer=vertex", *flags], f"{fastapi.url}/predict", {})


def test_a_server_gives_the_scores_of_training(remote, history_model, story, scores, past, tmp_path):
    source = write_lines(tmp_path / "payments.jsonl", story[PAST:])
    argv = [f"--input={source}", f"--model={history_model}", f"--output={tmp_path}/out", *remote.flags]
    totals = run_batch([*argv, f"--history={past}"])
    assert totals[metrics.ROWS_IN] == totals[metrics.ROWS_SCORED] == len(story) - PAST
    found = scored(tmp_path / "out")
    assert_scores(found, scores, story[PAST:])
    assert any(top["feature"] == "level" for row in found.values() for top in row["top_features"])


def test_a_server_refuses_an_instance_without_its_history(remote):
    instance = {"amount": 12.5, "shop": {"name": "shop 1"}, "card": {"account": "account 1"}}
    history = {feature.name: 0.0 for feature in SPEC.history}
    answers = [
        requests.post(remote.url, json={"instances": [each]}, headers=remote.headers, timeout=60)
        for each in (instance | history, instance | history | {"level": None}, instance)
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 400]
    assert all(REFUSED in answer.text for answer in answers[1:]), answers[1].text

"""One request gets one answer: from the container, by its route of Vertex AI, and from TorchServe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import requests

from features.ulb import FEATURES
from tests.model.serving.artifacts import transactions

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

ROWS = transactions(3).astype(float).tolist()
NAMED = dict(zip(FEATURES, ROWS[0], strict=True))
COMPACT = {"fields": ["anomaly_score", "encoded"]}


@pytest.fixture(scope="module")
def servers(custom_container, torchserve):
    """Sends a request to each; gives the answers."""
    routes = [
        (f"{custom_container.url}/predict", {}),
        (f"{custom_container.url}/v1/endpoints/123/deployedModels/456:predict", {}),
        *(
            (
                f"{torchserve.server.inference}/predictions/pytorch_autoencoder",
                {**torchserve.server.headers("inference"), "Content-Type": content_type},
            )
            for content_type in ("application/json", "application/octet-stream")
        ),
    ]

    def send(body) -> list[requests.Response]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return [requests.post(url, content, headers=headers, timeout=60) for url, headers in routes]

    return send


def test_both_describe_model_and_instances_alike(custom_container, torchserve, servers):
    metadata = requests.get(f"{custom_container.url}/metadata", timeout=60).json()
    answer = requests.get(
        f"{torchserve.server.management}/models/pytorch_autoencoder?customized=true",
        headers=torchserve.server.headers("management"),
        timeout=60,
    )
    described = answer.json()[0]["customizedMetadata"]
    assert metadata.keys() - described.keys() == {"thresholds", "limits"}  # no part of an archive
    fields = metadata.pop("fields")
    assert described.pop("fields") == [name for name in fields if name not in ("severity", "thresholds")]
    assert described == {name: metadata[name] for name in described}
    # Scores go on.
    assert servers({"instances": ROWS})[-1].status_code == 200


@pytest.mark.parametrize(
    "instances",
    [
        ROWS,
        [NAMED],
        [NAMED | {"Class": 1}, ROWS[1]],
        [json.dumps(ROWS[0]), json.dumps(NAMED)],
        [{"features": ROWS[0], "fields": COMPACT["fields"]}],
        [{"features": NAMED}, {"features": json.dumps(ROWS[1]), "fields": ["encoded"]}],
        [[3.4028235677973362e38] * 30],
        [list(range(30))],
    ],
    ids=["lists", "named", "mixed", "text", "own fields", "other own fields", "largest", "integers"],
)
def test_all_give_the_same_compact_answer(servers, instances):
    answers = servers({"instances": instances, "parameters": COMPACT})
    assert [answer.status_code for answer in answers] == [200] * 4, [a.text[:300] for a in answers]
    assert [answer.headers["Content-Type"] for answer in answers] == ["application/json"] * 4
    first, *others = (answer.json() for answer in answers)
    for other in others:
        assert other["metadata"] == first["metadata"]
        for one, same in zip(first["predictions"], other["predictions"], strict=True):
            assert list(one) == list(same)
            for name, value in one.items():
                np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": ROWS, "paramters": COMPACT},
        {"instances": ROWS, "parameters": {"field": ["encoded"]}},
        {"instances": ROWS, "parameters": {"fields": ["score"]}},
        {"instances": ROWS, "parameters": {"fields": []}},
        {"instances": ROWS, "parameters": []},
        {"instances": [{"features": ROWS[0], "field": ["encoded"]}]},
        {"instances": []},
        {"instances": [ROWS[0][:29]]},
        {"instances": [{**NAMED, "V9": None}]},
        {"instances": [{name: value for name, value in NAMED.items() if name != "V9"}]},
        {"instances": [[True, *ROWS[0][1:]]]},
        {"instances": [[3.5e38, *ROWS[0][1:]]]},
        {"instances": ["text"]},
        b"{",
    ],
)
def test_all_refuse_the_same_requests(servers, body):
    answers = servers(body)
    assert [answer.status_code for answer in answers] == [400] * 4, [a.text[:300] for a in answers]
    assert all(answer.headers["Content-Type"] == "application/json" for answer in answers)

"""Fixtures of the remote handlers' tests: the server that misbehaves on demand, and both kinds of handler.

Test modules name this file in `pytest_plugins`.
"""

from __future__ import annotations

import pytest

from model.serving.predictor import Predictor
from tests.transforms.remote_server import FaultServer


@pytest.fixture(scope="session")
def predictor(served_artifact):
    return Predictor(served_artifact)


@pytest.fixture
def server(predictor):
    with FaultServer(predictor) as running:
        yield running


@pytest.fixture(params=["torchserve", "vertex"])
def kind(request):
    return request.param

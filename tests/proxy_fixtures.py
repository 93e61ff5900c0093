"""Fixtures for tests behind a proxy.

Test modules name this file in `pytest_plugins`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.proxies import HOST, VARIABLES, Proxy, closed_port, recording_proxy, set_variables, variables


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that notes what it is asked for, in all variables."""
    with recording_proxy() as served:
        set_variables(monkeypatch, dict.fromkeys(VARIABLES, served.url))
        yield served


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a proxy where nobody listens, in all variables. What is tested may not change them."""
    with closed_port() as port:
        url = f"http://{HOST}:{port}"
        wanted = dict.fromkeys(VARIABLES, url)
        set_variables(monkeypatch, wanted)
        yield url
        assert variables() == wanted

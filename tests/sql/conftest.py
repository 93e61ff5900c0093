"""ZetaSQL, once for the session."""

from __future__ import annotations

import pytest

from tests.sql import zeta


@pytest.fixture(scope="session")
def zetasql(request: pytest.FixtureRequest) -> zeta.ZetaSQL:
    """The analyzer. Its compilation takes tens of seconds once, and is kept in pytest's cache."""
    return zeta.ZetaSQL(request.config.cache.mkdir("zetasql"))

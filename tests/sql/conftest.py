"""ZetaSQL, once for the session."""

from __future__ import annotations

import pytest

from tests.sql import zeta


@pytest.fixture(scope="session")
def zetasql(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zeta.ZetaSQL:
    """The analyzer. Its compilation takes tens of seconds once, and is kept in pytest's cache."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)  # gone with -p no:cacheprovider
    return zeta.ZetaSQL(cache.mkdir("zetasql") if cache else tmp_path_factory.mktemp("zetasql"))

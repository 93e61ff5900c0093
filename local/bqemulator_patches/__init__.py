"""Fixes of defects of bqemulator 1.4.0, applied in the process that runs it and nowhere else.

Each function fixes one defect and says which. They reach into private parts of the package, which is why the
version is pinned in setup.py: after an upgrade run `tests/local/test_bigquery.py` first.
"""

from __future__ import annotations

from local.bqemulator_patches import (
    ddl,
    engine,
    failures,
    formats,
    functions,
    jobs,
    loads,
    rest,
    storage,
    table_resources,
    views,
)

_PATCHES = (
    *engine.PATCHES,
    *failures.PATCHES,
    *rest.PATCHES,
    *table_resources.PATCHES,
    *formats.PATCHES,
    *storage.PATCHES,
    *jobs.PATCHES,
    *loads.PATCHES,
    *ddl.PATCHES,
    *views.PATCHES,
    *functions.PATCHES,
)


def apply() -> None:
    """Apply every patch. Call it once, before the emulator's server is made."""
    for patch in _PATCHES:
        patch()

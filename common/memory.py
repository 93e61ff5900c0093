"""Memory of this process that nothing uses."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc; other C libraries have none, and need none."""


def release() -> None:
    """Gives memory that is free, but held by the C library, back to the system.

    glibc before 2.38, which Beam's images have, does not use the holes again that aligned blocks leave, and
    every tensor is one: the memory of a job grew by 300 bytes a row, of which nothing was in use.
    """
    if _TRIM is not None:
        _TRIM(0)

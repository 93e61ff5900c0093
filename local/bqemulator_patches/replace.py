"""How a patch takes the place of what it patches."""

from __future__ import annotations

from typing import Any


def replace(owner: Any, name: str, value: Any) -> None:
    """Set `owner.name`, which must exist: a patch of something that is gone would cure nothing.

    Raises:
      AttributeError: `owner` has no such attribute. Another version of bqemulator is installed.
    """
    getattr(owner, name)
    setattr(owner, name, value)

"""Repeats a change until Google has told all of its servers about an earlier one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from cloud.resources.base import ResourceError
from cloud.resources.gcloud import GcloudError
from common.retry import Patience

PATIENCE = Patience(seconds=120, first=4, longest=30)
"""A new API, account or policy is known everywhere within a minute or two."""

_T = TypeVar("_T")


def is_settling(error: BaseException | None) -> bool:
    """Tells the errors of a project that changed a moment ago from those that stay."""
    return isinstance(error, GcloudError | ResourceError) and error.is_settling


def retry_while_settling(action: Callable[[], _T], title: str) -> _T:
    """Calls `action` until no earlier change is in its way, at most as long as PATIENCE.

    Args:
      action: raises GcloudError or ResourceError.
      title: name of the resource, for the line on stderr about each wait.
    """

    def announce(error: BaseException, seconds: float) -> None:
        reason = str(error).splitlines()[-1]
        sys.stderr.write(f"{title}: again in {seconds:.0f} s, Google has not settled yet: {reason}\n")
        sys.stderr.flush()

    return PATIENCE.call(action, is_settling, announce)

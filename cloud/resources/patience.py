"""Waiting for what Google has accepted and not yet told all of its servers."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Final

from google.api_core.exceptions import GoogleAPICallError

from cloud.resources.base import ResourceError
from cloud.resources.gcloud import GcloudError

PAUSES: Final = [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
"""Seconds between attempts: two minutes in all."""

_SETTLING: Final = re.compile(
    r"has not been used|SERVICE_DISABLED|concurrent policy changes|\bABORTED\b|\betag\b"
    r"|[Ss]ervice ?[Aa]ccount \S+ does not exist"
)


def settling(error: object) -> bool:
    """Whether an error is one of a project that changed just now: an API enabled, an account made, a policy
    that somebody else changed at the same moment."""
    return bool(_SETTLING.search(str(error)))


def patiently(action: Callable[[], None], title: str) -> None:
    """Runs `action` until it is through, says what it waits for, and raises the last error after PAUSES."""
    for pause in PAUSES:
        try:
            return action()
        except (GoogleAPICallError, GcloudError, ResourceError) as error:
            if not settling(error):
                raise
            reason = str(error).splitlines()[-1]
        sys.stderr.write(f"{title}: again in {pause:.0f} s, Google has not settled yet: {reason}\n")
        sys.stderr.flush()
        time.sleep(pause)
    return action()

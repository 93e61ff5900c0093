"""One way to try again: exponential back-off with full jitter, for as long as the cause deserves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import tenacity

LOOK_SECONDS: Final = 20.0
"""Seconds for one look at a service. A command never waits longer for what it could do without."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long to try, and how long to wait in between.

    Attributes:
      seconds: from the first try to the last.
      first: longest wait before the second try, in seconds; it doubles from try to try.
      longest: longest wait of all, in seconds.
      tries: most tries, if there is a limit.
    """

    seconds: float = LOOK_SECONDS
    first: float = 0.5
    longest: float = 10.0
    tries: int | None = None

    def call(
        self,
        function: Callable[[], _T],
        is_transient: Callable[[BaseException], bool],
        before_wait: Callable[[BaseException, float], None] = lambda error, seconds: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> _T:
        """Calls a function until it answers, fails for good, or patience ends; then its last error is raised.

        Args:
          function: to call.
          is_transient: whether an error may pass by itself.
          before_wait: told of each error that is waited out, and for how many seconds.
          sleep: waits.
        """
        stop: tenacity.stop.stop_base = tenacity.stop_before_delay(self.seconds)
        if self.tries is not None:
            stop |= tenacity.stop_after_attempt(self.tries)

        def tell(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if error is not None:
                before_wait(error, state.upcoming_sleep)

        return tenacity.Retrying(
            stop=stop,
            wait=tenacity.wait_random_exponential(multiplier=self.first, max=self.longest),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=tell,
            sleep=sleep,
            reraise=True,
        )(function)

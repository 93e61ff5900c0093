"""One way to try again: exponential back-off with jitter, for as long as the cause deserves."""

from __future__ import annotations

import math
import random
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
    """The time to try, and the waits in between.

    Attributes:
      seconds: from the first try to the last.
      first: longest wait before the second try, in seconds; it doubles from try to try.
      longest: longest wait of all, in seconds.
      tries: most tries, if there is a limit.
      steady: share of a wait that is not drawn by lot, from 0 to 1.

    Raises:
      ValueError: the figures do not fit.
    """

    seconds: float = LOOK_SECONDS
    first: float = 0.5
    longest: float = 10.0
    tries: int | None = None
    steady: float = 0.0

    def __post_init__(self) -> None:
        tries = math.inf if self.tries is None else self.tries
        if tries < 1 or not 0 <= self.first <= self.longest or not 0 <= self.steady <= 1:
            raise ValueError(f"{self}: expected tries >= 1, 0 <= first <= longest, and steady from 0 to 1")

    def wait(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Returns the seconds to wait after a failed try. The lot keeps those apart who failed together.

        >>> [Patience(first=0.5, longest=3.0).wait(attempt, draw=lambda: 1.0) for attempt in (1, 2, 3, 4, 5)]
        [0.5, 1.0, 2.0, 3.0, 3.0]

        Args:
          attempt: number of the try, from 1.
          draw: a random number from 0 to 1.
        """
        longest = min(self.longest, self.first * 2.0 ** min(attempt - 1, 60))
        return longest * (self.steady + (1 - self.steady) * draw())

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
            wait=lambda state: self.wait(state.attempt_number),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=tell,
            sleep=sleep,
            reraise=True,
        )(function)

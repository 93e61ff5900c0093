"""Calls that survive a misbehaving server: repeated after a wait, halved down to the row. No Beam here."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from common.retry import Patience
from transforms.remote_protocol import MalformedError, RejectedError, TransientError

Result = TypeVar("Result")


PATIENCE: Final = Patience(seconds=math.inf, first=0.5, longest=30.0, tries=8, steady=0.5)
"""A quota of a server refills within minutes. No wait is short, so that a throttled server recovers."""

MALFORMED_TRIES: Final = 3
"""Number of requests for a single row whose answer is no score, before the row is blamed."""
_LOG: Final = logging.getLogger(__name__)
_LOG_SECONDS: Final = 30.0
"""At most one line about failing calls in this time, in a process."""

MAX_RETRY_AFTER: Final = 60.0
"""Seconds of the longest Retry-After that is obeyed."""


@dataclass
class CallStats:
    """Counts the calls of a batch; threads may add to it.

    Attributes:
      calls: requests sent.
      retries: those of them that repeated a failed one.
      rejected: answers that refused a request for its rows.
      waited: seconds between attempts.
      throttled: seconds of it after an answer of overload.
    """

    calls: int = 0
    retries: int = 0
    rejected: int = 0
    waited: float = 0.0
    throttled: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **amounts: float) -> None:
        """Adds to the named figures."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


class Part(NamedTuple, Generic[Result]):
    """Rows start to stop with their result, or one row with the reason why it has none."""

    start: int
    stop: int
    result: Result | None
    reason: str | None = None


@dataclass(frozen=True)
class Caller:
    """Sends requests, and repeats those that failed for a while.

    Attributes:
      patience: when to try again; its tries count, its seconds do not. A longer Retry-After wins.
      max_retry_after: seconds of the longest Retry-After that is obeyed.
      sleep: waits so many seconds.
      draw: a random number from 0 to 1.
    """

    patience: Patience = PATIENCE
    max_retry_after: float = MAX_RETRY_AFTER
    sleep: Callable[[float], object] = time.sleep
    draw: Callable[[], float] = random.random

    def retry(self, call: Callable[[], Result], stats: CallStats) -> Result:
        """Calls until it works.

        Raises:
          TransientError: the last try also failed.
          RejectedError: at once when the call raises it.
        """
        attempt = 1
        while True:
            stats.add(calls=1)
            try:
                return call()
            except TransientError as error:
                if attempt == self.patience.tries:
                    raise TransientError(f"{error} (after {attempt} attempts)") from error
                asked = min(error.retry_after or 0.0, self.max_retry_after)
                seconds = max(self.patience.wait(attempt, self.draw), asked)
                stats.add(retries=1, waited=seconds, throttled=seconds if error.throttled else 0.0)
                _tell(f"remote scorer: {error} (attempt {attempt} of {self.patience.tries})")
            attempt += 1
            self.sleep(seconds)

    def _ask_again(
        self,
        start: int,
        stop: int,
        call: Callable[[int, int], Result],
        stats: CallStats,
        error: RejectedError,
    ) -> Part[Result]:
        """Asks for a single row once more where its answer was broken, and gives up on it otherwise."""
        for attempt in range(1, MALFORMED_TRIES):
            if not isinstance(error, MalformedError):
                break
            seconds = self.patience.wait(attempt, self.draw)
            stats.add(retries=1, waited=seconds)
            self.sleep(seconds)
            try:
                return Part(start, stop, self.retry(lambda: call(start, stop), stats))
            except RejectedError as again:
                stats.add(rejected=1)
                error = again
        return Part(start, stop, None, str(error))

    def bisect(
        self, start: int, stop: int, call: Callable[[int, int], Result], stats: CallStats
    ) -> Iterator[Part[Result]]:
        """Scores rows start to stop; a request that is refused is halved until the rows at fault stand alone.

        A row alone whose answer is no score is asked for MALFORMED_TRIES times: a proxy may have spoken.

        The parts come in order and cover every row once.

        Args:
          start: first row.
          stop: row after the last one.
          call: sends rows from one to another and returns their result.
          stats: counts the calls.

        Raises:
          TransientError: some part kept failing for a reason that is not in the rows.
        """
        try:
            yield Part(start, stop, self.retry(lambda: call(start, stop), stats))
            return
        except RejectedError as error:
            stats.add(rejected=1)
            if stop - start <= 1:
                yield self._ask_again(start, stop, call, stats, error)
                return
        middle = (start + stop) // 2
        yield from self.bisect(start, middle, call, stats)
        yield from self.bisect(middle, stop, call, stats)


_told_at = -math.inf
_TELLING: Final = threading.Lock()


def _tell(text: str) -> None:
    """Logs that calls fail, so that an outage is seen before its last attempt."""
    global _told_at
    with _TELLING:
        if time.monotonic() - _told_at < _LOG_SECONDS:
            return
        _told_at = time.monotonic()
    _LOG.warning("%s; trying again", text)

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
from transforms.remote_protocol import MalformedError, RejectedError, SuspectError, TransientError

Result = TypeVar("Result")


PATIENCE: Final = Patience(seconds=math.inf, first=0.5, longest=30.0, tries=8, steady=0.5)
"""A quota of a server refills within minutes. No wait is short, so that a throttled server recovers."""

ROW_TRIES: Final = 3
"""How often a single row is asked for whose answer is no score, or may be about the server, before the row is
blamed."""
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

    def retry(self, call: Callable[[], Result], stats: CallStats, suspected: bool = False) -> Result:
        """Calls until it works.

        Args:
          call: is made.
          stats: counts the calls.
          suspected: the rows are under suspicion: a SuspectError is raised at once.

        Raises:
          TransientError: the last try also failed; a SuspectError where that try raised one.
          RejectedError: at once when the call raises it.
        """
        attempt = 1
        while True:
            stats.add(calls=1)
            try:
                return call()
            except TransientError as error:
                if suspected and isinstance(error, SuspectError):
                    raise
                if attempt == self.patience.tries:
                    raise type(error)(f"{error} (after {attempt} attempts)") from error
                asked = min(error.retry_after or 0.0, self.max_retry_after)
                seconds = max(self.patience.wait(attempt, self.draw), asked)
                stats.add(retries=1, waited=seconds, throttled=seconds if error.throttled else 0.0)
                _tell(f"remote scorer: {error} (attempt {attempt} of {self.patience.tries})")
            attempt += 1
            self.sleep(seconds)

    def bisect(
        self,
        start: int,
        stop: int,
        call: Callable[[int, int], Result],
        stats: CallStats,
        control: Callable[[], object] | None = None,
        suspected: bool = False,
    ) -> Iterator[Part[Result]]:
        """Scores rows start to stop; a request that is refused is halved until the rows at fault stand alone.

        A request that keeps failing with a SuspectError is also halved, while the server answers `control`.
        A row alone is asked for ROW_TRIES times, unless the answer refuses the row itself.

        The parts come in order and cover every row once.

        Args:
          start: first row.
          stop: row after the last one.
          call: sends rows from one to another and returns their result.
          stats: counts the calls.
          control: sends a row that is known to be good; None where none is known.
          suspected: the rows are known to be at fault, since the server has answered `control`.

        Raises:
          TransientError: some part kept failing for a reason that is not in the rows.
        """
        try:
            yield Part(start, stop, self.retry(lambda: call(start, stop), stats, suspected))
            return
        except (RejectedError, SuspectError) as error:
            if isinstance(error, SuspectError) and not suspected:
                _require(control, stats, error)
                suspected = True
            stats.add(rejected=1)
            if stop - start <= 1:
                yield self._ask_again(start, stop, call, stats, error, control)
                return
        middle = (start + stop) // 2
        yield from self.bisect(start, middle, call, stats, control, suspected)
        yield from self.bisect(middle, stop, call, stats, control, suspected)

    def _ask_again(
        self,
        start: int,
        stop: int,
        call: Callable[[int, int], Result],
        stats: CallStats,
        error: RejectedError | SuspectError,
        control: Callable[[], object] | None,
    ) -> Part[Result]:
        """Asks for a row again where the answer need not be about it, and gives up on it otherwise.

        Raises:
          TransientError: the server does not answer `control` either, so the row is not at fault.
        """
        for attempt in range(1, ROW_TRIES):
            if not isinstance(error, (MalformedError, SuspectError)):
                break
            seconds = self.patience.wait(attempt, self.draw)
            stats.add(retries=1, waited=seconds)
            self.sleep(seconds)
            try:
                return Part(start, stop, self.retry(lambda: call(start, stop), stats, suspected=True))
            except (RejectedError, SuspectError) as again:
                stats.add(rejected=1)
                error = again
        if isinstance(error, SuspectError):
            _require(control, stats, error)
        return Part(start, stop, None, str(error))


def _require(control: Callable[[], object] | None, stats: CallStats, error: SuspectError) -> None:
    """Raises `error`, which may be the server's, unless the server answers a row that is known to be good."""
    if control is None:
        raise error
    stats.add(calls=1)
    try:
        control()
    except (RejectedError, TransientError):
        raise error from None


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

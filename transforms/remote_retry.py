"""Calls that survive a misbehaving server: retry with jittered backoff, halve down to the row. No Beam."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from transforms.remote_protocol import RejectedError, TransientError

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to try again.

    The wait before attempt k + 1 is drawn from 50 % to 100 % of min(cap, first * 2^(k-1)): jitter keeps
    workers that failed together from coming back together. A longer Retry-After of the server wins, up to
    `max_retry_after`.

    Attributes:
      attempts: how often one request is sent at most.
      first: seconds of the first wait, before jitter.
      cap: seconds of the longest wait, before jitter.
      max_retry_after: seconds of the longest Retry-After that is obeyed.
    """

    attempts: int = 8
    first: float = 0.5
    cap: float = 30.0
    max_retry_after: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.cap < self.first:
            raise ValueError(f"{self}: needs attempts >= 1 and 0 <= first <= cap")

    def wait(self, attempt: int, retry_after: float | None, draw: Callable[[], float]) -> float:
        """Seconds to wait after the failure of attempt `attempt`, from 1; `draw` gives 0 to 1."""
        longest = min(self.cap, self.first * 2.0 ** min(attempt - 1, 60))
        asked = min(retry_after or 0.0, self.max_retry_after)
        return max(longest * (0.5 + 0.5 * draw()), asked)


@dataclass
class CallStats:
    """What the calls of a batch did; threads may add to it.

    Attributes:
      calls: requests sent.
      retries: those of them that repeated a failed one.
      rejected: answers that condemned their rows, before the rows were found.
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
    """Sends requests by a policy.

    Attributes:
      policy: when to try again.
      sleep: waits so many seconds.
      draw: a random number from 0 to 1.
    """

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    sleep: Callable[[float], object] = time.sleep
    draw: Callable[[], float] = random.random

    def retry(self, call: Callable[[], Result], stats: CallStats) -> Result:
        """Calls until it works.

        Raises:
          TransientError: the last of the policy's attempts failed, too.
          RejectedError: at once when the call raises it.
        """
        attempt = 1
        while True:
            stats.add(calls=1)
            try:
                return call()
            except TransientError as error:
                if attempt >= self.policy.attempts:
                    raise TransientError(f"{error} (after {attempt} attempts)") from error
                seconds = self.policy.wait(attempt, error.retry_after, self.draw)
                stats.add(retries=1, waited=seconds, throttled=seconds if error.throttled else 0.0)
            attempt += 1
            self.sleep(seconds)

    def bisect(
        self, start: int, stop: int, call: Callable[[int, int], Result], stats: CallStats
    ) -> Iterator[Part[Result]]:
        """Scores rows start to stop; a request that is refused is halved until the rows at fault stand alone.

        The parts come in order and cover every row once.

        Args:
          start: first row.
          stop: row after the last one.
          call: sends rows from one to another and gives their result.
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
                yield Part(start, stop, None, str(error))
                return
        middle = (start + stop) // 2
        yield from self.bisect(start, middle, call, stats)
        yield from self.bisect(middle, stop, call, stats)

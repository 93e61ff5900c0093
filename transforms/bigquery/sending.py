"""The rows of one caller of an Appender on their way, and their outcome. No Beam here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from transforms.bigquery.rows import Refused


@dataclass
class AppendStats:
    """Counts attempts and waits.

    Attributes:
      rows: how many are stored (on a pending stream: once it is committed).
      refused_rows: how many are not, each with a reason.
      calls: requests sent, repeated ones included.
      errors: answers with an error, and connections that were lost.
      retries: failures after which a request was tried again.
      waited: seconds of the pauses before that.
      throttled: seconds of these that were due to a quota.
    """

    rows: int = 0
    refused_rows: int = 0
    calls: int = 0
    errors: int = 0
    retries: int = 0
    waited: float = 0.0
    throttled: float = 0.0


@dataclass
class Appended(AppendStats):
    """Outcome of an append: every row is either in `rows` or in `refused`.

    Attributes:
      refused: the rows that are not stored, with reasons.
    """

    refused: list[Refused] = field(default_factory=list)

    def refuse(self, refused: Refused) -> None:
        """Adds rows that are not stored."""
        if refused.reasons:
            self.refused.append(refused)
            self.refused_rows += len(refused.reasons)

    def take_refused(self) -> list[Refused]:
        """Returns the rows refused since the last call."""
        taken, self.refused = self.refused, []
        return taken


class Sending:
    """Rows that one caller hands to an Appender.

    Args:
      since: time of the Appender's clock.
      watch: gets what was counted since its last call; called in the thread of the caller.

    Attributes:
      result: the outcome so far.
      open: requests that are not answered.
      since: the argument.
      error: the reason why the rest was given up.
      table_checked: whether the table was found to take rows of this kind.
    """

    def __init__(self, since: float, watch: Callable[[AppendStats], None] | None = None) -> None:
        self.result = Appended()
        self.open = 0
        self.since = since
        self.error: Exception | None = None
        self.table_checked = False
        self._watch = watch
        self._reported = AppendStats()

    @property
    def done(self) -> bool:
        """True where nothing is left to wait for."""
        return self.error is not None or not self.open

    def report(self) -> None:
        """Tells the watcher."""
        if self._watch is None:
            return
        names = [each.name for each in fields(AppendStats)]
        now = {name: getattr(self.result, name) for name in names}
        news = AppendStats(**{name: now[name] - getattr(self._reported, name) for name in names})
        if any(vars(news).values()):
            self._reported = AppendStats(**now)
            self._watch(news)

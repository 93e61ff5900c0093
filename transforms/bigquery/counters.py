"""Counters of a sink of BigQuery, which move while a bundle waits.

Per table, in the project's namespace: `TABLE.rows_written` and `TABLE.rows_refused`; `TABLE.append_calls`,
requests with repeated ones; `TABLE.append_errors`, answers with an error and lost connections;
`TABLE.append_retries`; `TABLE.append_waited_ms` before these, and `TABLE.append_throttled_ms`, the part of it
that a quota caused.
"""

from __future__ import annotations

from typing import Final

from apache_beam.io.components.adaptive_throttler import ThrottlingSignaler

from transforms import metrics
from transforms.bigquery.sending import AppendStats

ROWS_WRITTEN: Final = "rows_written"
ROWS_REFUSED: Final = "rows_refused"
APPEND_CALLS: Final = "append_calls"
APPEND_ERRORS: Final = "append_errors"
APPEND_RETRIES: Final = "append_retries"
APPEND_WAITED: Final = "append_waited_ms"
APPEND_THROTTLED: Final = "append_throttled_ms"

THROTTLING_NAMESPACE: Final = "anomaly_sink"


class SinkCounters:
    """The counters of one table.

    Args:
      table: its name in its dataset.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._unsignalled = 0.0

    def count(self, news: AppendStats) -> None:
        """Adds what happened; runs in the thread of the bundle, as Beam's counters need."""
        amounts = {
            ROWS_WRITTEN: news.rows,
            ROWS_REFUSED: news.refused_rows,
            APPEND_CALLS: news.calls,
            APPEND_ERRORS: news.errors,
            APPEND_RETRIES: news.retries,
            APPEND_WAITED: news.waited * 1000,
            APPEND_THROTTLED: news.throttled * 1000,
        }
        metrics.add({f"{self._table}.{name}": amount for name, amount in amounts.items()})
        self._unsignalled += news.throttled
        seconds = int(self._unsignalled)
        if seconds:
            # Dataflow's autoscaler reads it: more workers would not refill a quota.
            ThrottlingSignaler(THROTTLING_NAMESPACE).signal_throttled(seconds)
            self._unsignalled -= seconds

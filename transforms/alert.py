"""Alerts: the rows whose score reached a threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import transforms.coder  # noqa: F401  registers the coder of record batches
from model.thresholds import SEVERITIES
from transforms import metrics
from transforms.observations import alert_counters
from transforms.schema import ALERTS, MESSAGE_FIELDS, empty
from transforms.thresholds import thresholds_of

_NONE: Final = empty(ALERTS)
_LOWEST, _, _HIGHEST = (pa.scalar(name, pa.string()) for name in SEVERITIES)


@dataclass
class Alert(beam.PTransform):
    """Keeps the rows that reached a severity.

    SCORES batch  ->  ALERTS batch

    The threshold beside a score is that of the model which gave it.

    Attributes:
      min_severity: "medium" or "high".
    """

    min_severity: str = "medium"

    def expand(self, scores: beam.PCollection) -> beam.PCollection:
        """Scores to alerts; a batch without alerts has no output."""
        return scores | beam.ParDo(_AlertFn(self.min_severity)).with_output_types(pa.RecordBatch)


def alerts(scores: pa.RecordBatch, min_severity: str = "medium") -> pa.RecordBatch:
    """Selects the rows of a SCORES batch that reached `min_severity`, as an ALERTS batch.

    >>> from transforms.schema import SCORES, empty
    >>> from transforms.thresholds import with_thresholds
    >>> alerts(empty(with_thresholds(SCORES, {"medium": 10.0, "high": 20.0}))).num_rows
    0

    Args:
      scores: a SCORES batch, which carries its thresholds.
      min_severity: "medium" or "high".

    Raises:
      ValueError: `min_severity` is no alerting severity, or the batch carries no thresholds.
    """
    if min_severity not in SEVERITIES[1:]:
        raise ValueError(f"min_severity: expected one of {', '.join(SEVERITIES[1:])}, got {min_severity!r}")
    thresholds = thresholds_of(scores)
    severity = scores.column("severity")
    is_reached = (
        pc.not_equal(severity, _LOWEST) if min_severity == SEVERITIES[1] else pc.equal(severity, _HIGHEST)
    )
    if not is_reached.true_count:  # as in most batches of a stream
        return _NONE
    # Few rows are alerts: to take them by number costs less than to filter the nested columns.
    rows = scores.take(pc.indices_nonzero(is_reached))
    own = [thresholds[name] for name in rows.column("severity").to_pylist()]
    columns = {"threshold": pa.array(own, pa.float64())}
    columns |= {field.name: pa.nulls(rows.num_rows, field.type) for field in MESSAGE_FIELDS}
    return pa.RecordBatch.from_arrays(
        [columns[name] if name in columns else rows.column(name) for name in ALERTS.names], schema=ALERTS
    )


class _AlertFn(beam.DoFn):
    def __init__(self, min_severity: str) -> None:
        self._min_severity = min_severity
        self._alerts = metrics.counter(metrics.ALERTS)

    def process(self, element: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        batch = alerts(element, self._min_severity)
        if batch.num_rows:
            self._alerts.inc(batch.num_rows)
            metrics.add(alert_counters(batch))
            yield batch

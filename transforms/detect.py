"""Everything between a source and the sinks, shared by the batch and the streaming pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam

from transforms.alert import Alert
from transforms.csv_source import ParseCsv
from transforms.history import History
from transforms.parse import Parse, ParseColumns
from transforms.score import Score


class Detected(NamedTuple):
    """Output of Detect: SCORES, ALERTS and ERROR_RECORDS batches; with profiles one of FEATURE_PROFILES."""

    scores: beam.PCollection
    alerts: beam.PCollection
    dead_letters: beam.PCollection
    profiles: tuple[beam.PCollection, ...] = ()


@dataclass
class Detect(beam.PTransform):
    """Detects anomalous transactions.

    messages | columnar batches  --parse-->  transactions  --history, score-->  scores  --alert-->  alerts
                                    |                              |
                                    +--------- dead letters -------+

    Attributes:
      parse: reads the source's elements: Parse for lists of messages, ParseColumns for columnar batches.
      score: the scorer.
      alert: the alerting rule.
      history: fills the history features, where the model has any.
    """

    parse: Parse | ParseColumns | ParseCsv
    score: Score
    alert: Alert
    history: History | None = None

    def expand(self, elements: beam.PCollection) -> Detected:
        """The source's elements to scores, alerts and dead letters."""
        parsed = elements | "Parse" >> self.parse
        transactions = parsed.transactions
        if self.history is not None:
            transactions = transactions | "History" >> self.history
        scored = transactions | "Score" >> self.score
        alerts = scored.scores | "Alert" >> self.alert
        rejected = (parsed.dead_letters, scored.dead_letters) | "Rejected" >> beam.Flatten()
        return Detected(scored.scores, alerts, rejected, scored.profiles)

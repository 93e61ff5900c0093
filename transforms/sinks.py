"""Sinks of Detect: BigQuery tables, Parquet files, a Pub/Sub topic."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import apache_beam as beam
import orjson
import pyarrow as pa

from common.clients import BigQueryEndpoints
from transforms import metrics, tables
from transforms.alert import AlertMessages
from transforms.bigquery import Commit, WriteBatches
from transforms.bigquery.methods import NEEDS, Method
from transforms.dead_letter import given_message_id
from transforms.detect import Detected
from transforms.files import WriteParquetBatches
from transforms.parquet_sink import shards
from transforms.schema import ALERTS, ERROR_RECORDS, SCORES

UNSTORED: Final = "dead_letters_unstored"
"""Counts dead letters that BigQuery itself refused; the log names each, and its message is lost."""

_LOGGED_CHARACTERS: Final = 1_000
"""Of a reason."""


@dataclass
class Checkpoint(beam.PTransform):
    """Keeps the steps behind it apart from those before it, so that a failure costs itself alone.

    record batch  ->  the same

    A runner fuses steps, and repeats all of them where one fails: five attempts at a table that refuses would
    store the rows of the others five times. Dataflow stores what enters a shuffle, and repeats only what
    follows. It bills the bytes, so the checkpoint stands before the small outputs.
    """

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Batches to batches."""
        return batches | beam.Reshuffle()


@dataclass
class WriteTables(beam.PTransform):
    """Writes scores, alerts and dead letters to the tables of a dataset.

    Detected  ->  scores, alerts, error_records; rows that BigQuery refuses join the error records

    A batch job commits the three tables when all of them are written, each of them at once: first the scores,
    then the alerts, which are of no use without them, then the error records. In a stream, rows are visible
    as they are stored, so that a step that is repeated stores them again: alerts and dead letters pass a
    `Checkpoint`. Scores, by far the most rows, need none: the others have theirs.

    Attributes:
      dataset: "PROJECT.DATASET"; its tables must exist, see transforms.tables.
      scores_schema: SCORES or SCORES_FULL.
      method: see transforms.bigquery.WriteBatches.
      streaming: whether the pipeline is.
      endpoints: where BigQuery answers.
    """

    dataset: str
    scores_schema: pa.Schema = SCORES
    method: Method = "storage_arrow"
    streaming: bool = False
    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)

    def expand(self, detected: Detected) -> None:
        """Three tables; the refused rows of the first two go to the third; then the commit."""
        scores = detected.scores | "Scores" >> self._write(tables.SCORES_TABLE, self.scores_schema)
        alerts = self._apart(detected.alerts, "Alerts") | "Alerts" >> self._write(tables.ALERTS_TABLE, ALERTS)
        rejected = (detected.dead_letters, scores.dead_letters, alerts.dead_letters) | beam.Flatten()
        last = self._apart(rejected, "Errors") | "Errors" >> self._write(tables.ERRORS_TABLE, ERROR_RECORDS)
        _ = last.dead_letters | "Log" >> beam.ParDo(_LogFn())
        if self._commits_at_the_end:
            streams = (scores.streams, alerts.streams, last.streams) | "Streams" >> beam.Flatten()
            names = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE)
            order = [f"{self.dataset}.{name}" for name in names]
            _ = streams | "Commit" >> Commit(self.endpoints, order)

    @property
    def _commits_at_the_end(self) -> bool:
        return not (self.streaming or NEEDS[self.method].is_beams)

    def _apart(self, batches: beam.PCollection, name: str) -> beam.PCollection:
        return batches | f"{name} apart" >> Checkpoint() if self.streaming else batches

    def _write(self, table: str, schema: pa.Schema) -> WriteBatches:
        return WriteBatches(
            f"{self.dataset}.{table}",
            schema,
            method=self.method,
            streaming=self.streaming,
            endpoints=self.endpoints,
            commit=not self._commits_at_the_end,
        )


@dataclass
class WriteFiles(beam.PTransform):
    """Writes scores, alerts and dead letters to Parquet files.

    Detected  ->  DIRECTORY/scores-*.parquet, alerts-*.parquet, error_records-*.parquet

    Attributes:
      directory: local or gs://.
      scores_schema: SCORES or SCORES_FULL.
      overwrite: whether the files of an earlier job are removed; see transforms.files.WriteParquetBatches.
        Otherwise there must be none, or the rows of both jobs are mixed: see `output_files`.
    """

    directory: str
    scores_schema: pa.Schema = SCORES
    overwrite: bool = False

    def expand(self, detected: Detected) -> None:
        """Three sets of files."""
        for name, batches, schema in (
            (tables.SCORES_TABLE, detected.scores, self.scores_schema),
            (tables.ALERTS_TABLE, detected.alerts, ALERTS),
            (tables.ERRORS_TABLE, detected.dead_letters, ERROR_RECORDS),
        ):
            files = WriteParquetBatches(_prefix(self.directory, name), schema, overwrite=self.overwrite)
            _ = batches | f"Files {name}" >> files


def output_files(directory: str) -> list[str]:
    """Lists the files that WriteFiles left in a directory."""
    names = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE)
    return [path for name in names for path in shards(_prefix(directory, name))]


def _prefix(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


@dataclass
class PublishAlerts(beam.PTransform):
    """Publishes alerts.

    ALERTS batch  ->  Pub/Sub message a row; see transforms.alert.alert_messages

    Attributes:
      topic: "projects/PROJECT/topics/TOPIC".
    """

    topic: str

    def expand(self, alerts: beam.PCollection) -> None:
        """Alerts to the topic."""
        messages = alerts | Checkpoint() | AlertMessages()
        _ = messages | beam.io.WriteToPubSub(self.topic, with_attributes=True)


class _LogFn(beam.DoFn):
    """Counts and logs the dead letters that no table takes."""

    def process(self, element: pa.RecordBatch) -> Iterable[None]:
        for reason, payload in zip(element["errorMessage"], element["payloadBytes"], strict=True):
            metrics.counter(UNSTORED).inc()
            logging.error(
                "BigQuery refused a dead letter, which is lost: %s", unstored(reason.as_py(), payload.as_py())
            )
        return ()


def unstored(reason: str, payload: bytes) -> str:
    """Describes a dead letter that BigQuery refused, so that its message can be found at its source.

    A log is no place for transactions, and Cloud Logging takes 256 KB an entry: no payload, no attributes.

    >>> unstored("timestamp: bad", b'{"stage":"parse","attributes":[{"key":"message_id","value":"7"}]}')
    'timestamp: bad (stage parse, message id 7, 65 bytes)'

    Args:
      reason: BigQuery's.
      payload: the letter as JSON, maybe cut; see transforms.bigquery.rows.refused_rows.
    """
    try:
        letter = orjson.loads(payload)
    except orjson.JSONDecodeError:  # cut
        letter = {}
    attributes = {pair["key"]: pair["value"] for pair in letter.get("attributes", ())}
    stage, message_id = letter.get("stage", "unknown"), given_message_id(attributes) or "unknown"
    return f"{reason[:_LOGGED_CHARACTERS]} (stage {stage}, message id {message_id}, {len(payload)} bytes)"

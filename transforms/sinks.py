"""Sinks of Detect: BigQuery tables, Parquet files, a Pub/Sub topic."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import apache_beam as beam
import orjson
import pyarrow as pa

from common.clients import BigQueryEndpoints
from transforms import metrics, publication, tables
from transforms.bigquery import Commit, WriteBatches
from transforms.bigquery.methods import NEEDS, Method
from transforms.dead_letter import given_message_id
from transforms.detect import Detected
from transforms.parquet_sink import WriteParquetBatches
from transforms.schema import ALERTS, ERROR_RECORDS, FEATURE_PROFILES, SCORE_WINDOWS, SCORES
from transforms.topics import RowMessages
from transforms.trace import STORED_AT, stamped
from transforms.windows import CountWindows

FILE_SETS: Final = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE)
"""The sets of files that `WriteFiles` writes."""

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

    Detected  ->  scores, alerts, error_records; score_windows and feature_profiles where these are counted;
    rows that BigQuery refuses join the error records

    A batch job commits the tables when all of them are written, each of them at once: first the scores, then
    the alerts, windows and profiles, which are of no use without them, then the error records. In a stream,
    rows are visible as they are stored, so that a step that is repeated stores them again: alerts, profiles
    and dead letters pass a `Checkpoint`, windows a shuffle. Scores, by far the most rows, need none.

    Attributes:
      dataset: "PROJECT.DATASET"; its tables must exist, see transforms.tables.
      scores_schema: SCORES or SCORES_FULL.
      method: see transforms.bigquery.WriteBatches.
      streaming: whether the pipeline is.
      endpoints: where BigQuery answers.
      windows: sums the scores up by windows; None leaves that table empty.
    """

    dataset: str
    scores_schema: pa.Schema = SCORES
    method: Method = "storage_arrow"
    streaming: bool = False
    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)
    windows: CountWindows | None = None

    def expand(self, detected: Detected) -> None:
        """The tables; refused rows of the others go to the error records; then the commit."""
        sent = detected.scores | "Stamp" >> beam.Map(_sent).with_output_types(pa.RecordBatch)
        scores = sent | "Scores" >> self._write(tables.SCORES_TABLE, self.scores_schema)
        alerts = self._apart(detected.alerts, "Alerts") | "Alerts" >> self._write(tables.ALERTS_TABLE, ALERTS)
        written = [scores, alerts]
        if self.windows:
            windows = detected.scores | "Count windows" >> self.windows
            written.append(windows | "Windows" >> self._write(tables.WINDOWS_TABLE, SCORE_WINDOWS))
        for counted in detected.profiles:
            profiles = self._apart(counted, "Profiles")
            written.append(profiles | "Profiles" >> self._write(tables.PROFILES_TABLE, FEATURE_PROFILES))
        rejected = (detected.dead_letters, *(each.dead_letters for each in written)) | beam.Flatten()
        last = self._apart(rejected, "Errors") | "Errors" >> self._write(tables.ERRORS_TABLE, ERROR_RECORDS)
        _ = last.dead_letters | "Log" >> beam.ParDo(_LogFn())
        if self._commits_at_the_end:
            streams = [each.streams for each in (*written, last)] | "Streams" >> beam.Flatten()
            first = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.WINDOWS_TABLE, tables.PROFILES_TABLE)
            order = [f"{self.dataset}.{name}" for name in (*first, tables.ERRORS_TABLE)]
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

    Detected  ->  DIRECTORY/scores-*.parquet, alerts-*.parquet, error_records-*.parquet, _SUCCESS

    The three sets are published together, when all files of them are complete: see transforms.publication.

    Attributes:
      directory: local or gs://.
      scores_schema: SCORES or SCORES_FULL.
      overwrite: whether the files of an earlier job are replaced; otherwise the job fails where there are
        any.
      job: names the temporary files of this job.
    """

    directory: str
    scores_schema: pa.Schema = SCORES
    overwrite: bool = False
    job: str = field(default_factory=lambda: uuid.uuid4().hex)

    def expand(self, detected: Detected) -> None:
        """Three sets of files, and their names."""
        sets = (detected.scores, detected.alerts, detected.dead_letters)
        schemas = (self.scores_schema, ALERTS, ERROR_RECORDS)
        write = WriteParquetBatches(
            self.directory, dict(zip(FILE_SETS, schemas, strict=True)), self.overwrite, self.job
        )
        _ = dict(zip(FILE_SETS, sets, strict=True)) | "Files" >> write

    def discard(self) -> None:
        """Removes the temporary files of this job, which has failed."""
        try:
            publication.remove_temporary(self.directory, self.job)
        except OSError as error:
            logging.warning("%s: cannot remove the temporary files of this job: %s", self.directory, error)


@dataclass
class PublishRows(beam.PTransform):
    """Publishes scores or alerts.

    SCORES | ALERTS batch  ->  Pub/Sub message a row; see transforms.topics.row_messages

    Attributes:
      topic: "projects/PROJECT/topics/TOPIC".
      apart: whether a `Checkpoint` stands before it: yes for alerts. Scores are all rows, and the checkpoint
        would bill them; where it is missing, a failure of the topic stores the rows of the bundle again.
    """

    topic: str
    apart: bool = False

    def expand(self, batches: beam.PCollection) -> None:
        """Rows to the topic."""
        messages = (batches | Checkpoint() if self.apart else batches) | RowMessages()
        _ = messages | beam.io.WriteToPubSub(self.topic, with_attributes=True)


@dataclass
class PublishMessages(beam.PTransform):
    """Publishes messages that are made already.

    PubsubMessage  ->  the topic

    Attributes:
      topic: "projects/PROJECT/topics/TOPIC".
    """

    topic: str

    def expand(self, messages: beam.PCollection) -> None:
        """Messages to the topic, apart from the steps before."""
        _ = messages | Checkpoint() | beam.io.WriteToPubSub(self.topic, with_attributes=True)


def _sent(scores: pa.RecordBatch) -> pa.RecordBatch:
    """Notes in the rows when they go to the table. A sink that waits and tries again does so after this."""
    return stamped(scores, STORED_AT, time.time_ns() // 1000)


class _LogFn(beam.DoFn):
    """Counts and logs the dead letters that no table takes."""

    def process(self, element: pa.RecordBatch) -> Iterable[None]:
        for reason, payload in zip(element["errorMessage"], element["payloadBytes"], strict=True):
            metrics.counter(metrics.UNSTORED).inc()
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

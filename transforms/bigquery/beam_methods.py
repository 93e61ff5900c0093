"""Record batches to BigQuery by Beam's own connector: one dict a row, for what the columnar sink cannot do.

The connector takes no endpoint option. It is slower by orders of magnitude; FILE_LOADS is free of ingestion
cost, and STORAGE_WRITE_API gives exactly-once rows in a streaming pipeline.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.io.gcp.bigquery import BigQueryDisposition, WriteToBigQuery
from apache_beam.io.gcp.bigquery_tools import RetryStrategy
from apache_beam.utils.timestamp import Timestamp

from transforms.bigquery.rows import STAGE, conform
from transforms.columnar import row_dicts
from transforms.dead_letter import dead_letters
from transforms.metrics import counter
from transforms.schema import ERROR_RECORDS, empty, to_bigquery

STORAGE_WRITE_API: Final = "storage_write_api"
BEAM_METHODS: Final = {
    "streaming_inserts": WriteToBigQuery.Method.STREAMING_INSERTS,
    "file_loads": WriteToBigQuery.Method.FILE_LOADS,
    STORAGE_WRITE_API: WriteToBigQuery.Method.STORAGE_WRITE_API,
}


@dataclass
class WriteRows(beam.PTransform):
    """Writes record batches with Beam's WriteToBigQuery.

    Input: PCollection of pyarrow.RecordBatch. Output: PCollection of ERROR_RECORDS record batches, one for
    each row that BigQuery refused. FILE_LOADS refuses no single rows: a bad one fails the load job, and with
    it the pipeline.

    Attributes:
      table: "PROJECT.DATASET.TABLE"; it must exist.
      schema: the Arrow schema of the table.
      method: a key of BEAM_METHODS.
      streaming: whether the pipeline is; file_loads then starts a load job every `triggering_seconds`.
      triggering_seconds: seconds between load jobs, or between commits of the storage write API.
      temp_location: gs:// or local directory for the files of file_loads; the pipeline's when None.
    """

    table: str
    schema: pa.Schema
    method: str
    streaming: bool = False
    triggering_seconds: int = 60
    temp_location: str | None = None

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """One dict a row, then the connector, then its failed rows as dead letters."""
        to_rows = typed_rows if self.method == STORAGE_WRITE_API else row_dicts
        rows = batches | "To rows" >> beam.FlatMap(
            lambda batch, schema, convert: convert(conform(batch, schema)), self.schema, to_rows
        ).with_output_types(dict[str, Any])
        result = rows | "WriteToBigQuery" >> self._connector()
        if self.method == "file_loads":
            return batches.pipeline | "No refused rows" >> beam.Create(
                [empty(ERROR_RECORDS)], reshuffle=False
            )
        failed = "To dead letter" >> beam.ParDo(_ToDeadLetter(self.table)).with_output_types(pa.RecordBatch)
        return result.failed_rows_with_errors | failed

    def _connector(self) -> WriteToBigQuery:
        periodic = self.streaming and self.method != "streaming_inserts"
        return WriteToBigQuery(
            # The connector wants the colon between project and dataset.
            self.table.replace(".", ":", 1) if ":" not in self.table else self.table,
            schema={"fields": [field.to_api_repr() for field in to_bigquery(self.schema)]},
            method=BEAM_METHODS[self.method],
            create_disposition=BigQueryDisposition.CREATE_NEVER,
            write_disposition=BigQueryDisposition.WRITE_APPEND,
            insert_retry_strategy=RetryStrategy.RETRY_ON_TRANSIENT_ERROR,
            custom_gcs_temp_location=self.temp_location,
            triggering_frequency=self.triggering_seconds if periodic else None,
            with_auto_sharding=self.streaming and self.method == STORAGE_WRITE_API,
        )


class _ToDeadLetter(beam.DoFn):
    """What the connector says about a failed row in, an ERROR_RECORDS batch of one row out."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._refused = counter(f"{table.rpartition('.')[2]}.rows_refused")

    def process(self, failed: Any) -> Iterable[pa.RecordBatch]:
        self._refused.inc()
        row, reason = failed_row(failed)
        yield dead_letters([orjson.dumps(row, default=str)], [reason], STAGE, [{"table": self._table}])


def failed_row(failed: Any) -> tuple[dict[str, Any], str]:
    """Row and reason from an element of `failed_rows_with_errors`, which differs from method to method."""
    if isinstance(failed, dict):
        return failed["failed_row"], failed["error_message"]
    _, row, errors = failed
    messages = [
        ": ".join(filter(None, (error.get("location"), error.get("message") or error.get("reason"))))
        for error in errors
    ]
    return row, "; ".join(messages) or "refused without a reason"


def typed_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dicts of the types that Beam's schema coders expect: Timestamp, bytes, str, float."""
    return [_beam_values(row) for row in batch.to_pylist()]


def _beam_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _beam_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_beam_values(item) for item in value]
    if isinstance(value, dt.datetime):
        return Timestamp.from_utc_datetime(value.astimezone(dt.UTC))  # Arrow has a UTC of its own
    return value

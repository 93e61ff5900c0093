"""Writes record batches by Beam's own connector: one dict a row, for what the columnar sink cannot do.

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
from apache_beam.utils.timestamp import Timestamp

from transforms.bigquery.methods import Method
from transforms.bigquery.rows import STAGE, conform
from transforms.dead_letter import dead_letters
from transforms.json_rows import row_dicts
from transforms.metrics import counter
from transforms.schema import ERROR_RECORDS, empty, to_bigquery

BEAM_METHODS: Final[dict[Method, str]] = {
    "file_loads": WriteToBigQuery.Method.FILE_LOADS,
    "storage_write_api": WriteToBigQuery.Method.STORAGE_WRITE_API,
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
    """

    table: str
    schema: pa.Schema
    method: Method
    streaming: bool = False
    triggering_seconds: int = 60

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """One dict a row, then the connector, then its failed rows as dead letters."""
        to_rows = typed_rows if self.method == "storage_write_api" else row_dicts
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
        return WriteToBigQuery(
            # The connector wants the colon between project and dataset.
            self.table.replace(".", ":", 1) if ":" not in self.table else self.table,
            schema={"fields": [field.to_api_repr() for field in to_bigquery(self.schema)]},
            method=BEAM_METHODS[self.method],
            create_disposition=BigQueryDisposition.CREATE_NEVER,
            write_disposition=BigQueryDisposition.WRITE_APPEND,
            triggering_frequency=self.triggering_seconds if self.streaming else None,
            with_auto_sharding=self.streaming and self.method == "storage_write_api",
        )


class _ToDeadLetter(beam.DoFn):
    """A failed row of the storage write API in, an ERROR_RECORDS batch of one row out."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._refused = counter(f"{table.rpartition('.')[2]}.rows_refused")

    def process(self, failed: dict[str, Any]) -> Iterable[pa.RecordBatch]:
        self._refused.inc()
        payload = orjson.dumps(failed["failed_row"], default=str)
        yield dead_letters([payload], [failed["error_message"]], STAGE, [{"table": self._table}])


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

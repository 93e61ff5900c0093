"""Rows as messages for a topic: every scored row, or the alerts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage

import transforms.coder  # noqa: F401  registers the coder of record batches
from transforms.schema import MESSAGE_FIELDS, TRACE_FIELDS
from transforms.trace import PASSED, STORED_AT

_LEFT_OUT: Final = frozenset((*(field.name for field in (*TRACE_FIELDS, *MESSAGE_FIELDS)), STORED_AT))
"""Columns that a message has where the row has a value in them; of the others it also has nulls."""

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC


@dataclass
class RowMessages(beam.PTransform):
    """Turns rows into Pub/Sub messages.

    SCORES | ALERTS batch  ->  PubsubMessage (JSON; severity, top features and ids as attributes)
    """

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Rows to messages, one a row."""
        return batches | beam.FlatMap(row_messages).with_output_types(PubsubMessage)


def row_messages(batch: pa.RecordBatch) -> list[PubsubMessage]:
    """Makes one message per row of a SCORES or an ALERTS batch.

    The body is the row as JSON, and `pass_through` an object in it. The attributes let a subscription filter
    without decoding it: `severity`, `top_features` (names, largest contribution first, joined by commas),
    `transaction_id`, `model_version`.
    """
    # A column at a time: rows of Arrow cost several times as much, most of it for the times.
    columns = [_values(batch.column(name)) for name in batch.schema.names]
    return [_message(dict(zip(batch.schema.names, row, strict=True))) for row in zip(*columns, strict=True)]


def _message(row: dict[str, Any]) -> PubsubMessage:
    body = {name: value for name, value in row.items() if value is not None or name not in _LEFT_OUT}
    if PASSED in body:
        body[PASSED] = orjson.Fragment(body[PASSED])
    attributes = {
        "severity": row["severity"],
        "top_features": ",".join(item["feature"] for item in row["top_features"] or ()),
        "transaction_id": row["transaction_id"],
        "model_version": row["model_version"],
    }
    return PubsubMessage(orjson.dumps(body, option=_OPTIONS), attributes)


def _values(column: pa.Array) -> list[Any]:
    """The values of a column as orjson takes them; times as those of numpy, which cost least."""
    if not pa.types.is_timestamp(column.type) or column.null_count == len(column):
        values: list[Any] = column.to_pylist()
        return values
    moments = column.cast(pa.int64()).fill_null(0).to_numpy().astype("datetime64[us]")
    if not column.null_count:
        return list(moments)
    known = column.is_valid().to_pylist()
    return [moment if is_known else None for moment, is_known in zip(moments, known, strict=True)]

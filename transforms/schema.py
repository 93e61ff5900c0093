"""The elements that flow between transforms: Arrow schemas, and the BigQuery schemas that mirror them.

A column's name and description are written here once. `to_bigquery` derives the table schema, so that the
Arrow rows which a sink appends and the table which receives them cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
from google.cloud import bigquery

from features.default import ULB
from model.outputs import SCALAR_OUTPUTS, SCALES, VECTOR_OUTPUTS
from model.thresholds import SEVERITIES

TOP_FEATURES: Final = 3

_TIMESTAMP = pa.timestamp("us", tz="UTC")


def _field(name: str, kind: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


KEY_FIELDS: Final = (
    _field("transaction_id", pa.string(), "Identifier of the transaction; the deduplication key", False),
    _field("account_id", pa.string(), "Account that made the transaction, when the message names one"),
    _field("event_time", _TIMESTAMP, "When the transaction took place", False),
    _field(
        "event_time_derived",
        pa.bool_(),
        "True where the message named no event time: event_time is then the time of its publication, of the "
        "job's launch or of a rejection. Null in rows of an earlier version",
    ),
)

TRACE_FIELDS: Final = (
    _field("message_id", pa.string(), "Id of the Pub/Sub message (--trace_messages)"),
    _field("publish_time", _TIMESTAMP, "When Pub/Sub took the message (--trace_messages)"),
    _field("read_at", _TIMESTAMP, "When the pipeline began to parse the row"),
    _field(
        "pass_through",
        pa.string(),
        "JSON object of the fields that --pass_through and the feature spec name, values as they came. Null "
        "without any",
    ),
)
"""The columns by which a row is traced; see transforms.trace."""

SOURCE_FIELD: Final = _field(
    "source",
    pa.struct([pa.field("message_id", pa.string()), pa.field("attributes", pa.string())]),
    "Id of the Pub/Sub message and its attributes, a JSON object, for a dead letter; null without any",
)
CARRIED_FIELDS: Final = (*TRACE_FIELDS, SOURCE_FIELD)
"""The columns of a parsed batch that come with the message, behind the others."""

SHADOW_FIELDS: Final = (
    _field("shadow_score", pa.float64(), "Score of --shadow_model, which raises no alert"),
    _field("shadow_severity", pa.string(), "Severity by the thresholds of --shadow_model"),
    _field("shadow_version", pa.string(), "Version of --shadow_model"),
)
"""The columns of a second model that scores beside the first; see transforms.shadow."""


def transactions_schema(n_inputs: int, inputs: pa.DataType | None = None) -> pa.Schema:
    """Makes the schema of a parsed batch.

    Args:
      n_inputs: of the model; `features` holds one row of so many float32 values.
      inputs: a struct of the raw values by field, for specs that are not numbers alone.
    """
    features = _field("features", pa.list_(pa.float32(), n_inputs), "Inputs of the model", False)
    raw = [] if inputs is None else [_field("inputs", inputs, "Raw values", False)]
    return pa.schema([*KEY_FIELDS, features, *raw, *CARRIED_FIELDS])


TRANSACTIONS: Final = transactions_schema(len(ULB.inputs))
"""A parsed batch of the default spec."""

_TOP_FEATURES_FIELD = _field(
    "top_features",
    pa.list_(
        pa.struct(
            [
                pa.field("feature", pa.string()),
                pa.field("contribution", pa.float64()),
                pa.field("value", pa.string()),
            ]
        )
    ),
    "The features that contribute most to anomaly_score, largest first, with the value that the transaction "
    "had, from severity medium on",
)
_AMOUNT_FIELD = _field("amount", pa.float64(), "Amount of the transaction, where the feature spec names one")
_SEVERITY_FIELD = _field("severity", pa.string(), f"One of {', '.join(SEVERITIES)}", False)
_SCORE_FIELD = _field("anomaly_score", pa.float64(), "Anomaly score; higher is more anomalous", False)
_VERSION_FIELD = _field("model_version", pa.string(), "Version of the model that scored the row", False)
_SCORED_AT_FIELD = _field("scored_at", _TIMESTAMP, "When the row was scored", False)

SCORES: Final = pa.schema(
    [
        *KEY_FIELDS,
        _AMOUNT_FIELD,
        _SCORE_FIELD,
        _SEVERITY_FIELD,
        _field("encoded", pa.list_(pa.float64()), "The values of the autoencoder's bottleneck, 4 or fewer"),
        _TOP_FEATURES_FIELD,
        _VERSION_FIELD,
        _SCORED_AT_FIELD,
        *TRACE_FIELDS,
        *SHADOW_FIELDS,
        _field("stored_at", _TIMESTAMP, "When the row was sent to the table; null in files"),
    ]
)


def _full_fields() -> Iterable[pa.Field]:
    for scale in SCALES:
        for name in VECTOR_OUTPUTS:
            yield _field(
                f"{scale}_{name}", pa.list_(pa.float64()), f"{name}, {scale} scale, one value an input"
            )
        for name in SCALAR_OUTPUTS:
            yield _field(f"{scale}_{name}", pa.float64(), f"{name} over the features, {scale} scale")


SCORES_FULL: Final = pa.schema([*SCORES, *_full_fields()])
"""SCORES and the other outputs of the model (--output_detail=full)."""

MESSAGE_FIELDS: Final = (
    _field(
        "suppressed",
        pa.bool_(),
        "True where the alert topic got no message of the alert (--alert_cooldown, "
        "--max_alert_messages_per_minute). Null without these",
    ),
    _field(
        "suppressed_before",
        pa.int64(),
        "Alerts of the account without a message since the message before this one; null where none",
    ),
)
"""The columns of an alert that say what its topic got; see transforms.cooldown."""

ALERTS: Final = pa.schema(
    [
        *KEY_FIELDS,
        _AMOUNT_FIELD,
        _SCORE_FIELD,
        _SEVERITY_FIELD,
        _field("threshold", pa.float64(), "The threshold of this severity, which the score reached", False),
        _TOP_FEATURES_FIELD,
        _VERSION_FIELD,
        _SCORED_AT_FIELD,
        *TRACE_FIELDS,
        *MESSAGE_FIELDS,
    ]
)

ERROR_RECORDS: Final = pa.schema(
    [
        _field("timestamp", _TIMESTAMP, "When the record was rejected", False),
        _field("payloadString", pa.string(), "The payload as text; null where it is not valid UTF-8"),
        _field("payloadBytes", pa.binary(), "The payload as it came"),
        _field(
            "attributes",
            pa.list_(pa.struct([pa.field("key", pa.string()), pa.field("value", pa.string())])),
            "Attributes of the message, and what the stage knew of the row",
        ),
        _field("errorMessage", pa.string(), "Why the record was rejected; names the field", False),
        _field("stacktrace", pa.string(), "Stack trace, where there was an exception worth one"),
        _field("stage", pa.string(), "The stage that rejected the record: parse, score, sink", False),
        _field("attempt", pa.int64(), "How often the record was replayed before, from 0", False),
    ]
)
"""Dead letters: the columns of Google's own Dataflow templates, with stage and attempt."""


def _measure_fields(name: str, unit: str, text: str) -> Iterable[pa.Field]:
    yield _field(f"{name}_mean{unit}", pa.float64(), f"Mean of {text}")
    for percent in (50, 90, 99):
        yield _field(
            f"{name}_p{percent}{unit}", pa.float64(), f"{percent}th percentile of {text}, within 1 %"
        )
    yield _field(f"{name}_max{unit}", pa.float64(), f"Greatest of {text}")
    bins = pa.struct([_BIN_VALUE_FIELD, _BIN_ROWS_FIELD])
    yield _field(f"{name}_bins", pa.list_(bins), f"Bins of {text}, from which windows can be added up")


_BIN_VALUE_FIELD = _field("value", pa.float64(), "Within 1 % of each number of the bin", False)
_BIN_ROWS_FIELD = _field("transactions", pa.int64(), "How many numbers the bin holds", False)

SCORE_WINDOWS: Final = pa.schema(
    [
        _field("window_start", _TIMESTAMP, "Begin of the window of event time", False),
        _field("window_seconds", pa.int64(), "Length of the window", False),
        _VERSION_FIELD,
        _field("run_id", pa.string(), "The launch that counted; the counts of all runs add up", False),
        _field("pane", pa.int64(), "Number of this state of the window; a later one replaces it", False),
        _field("computed_at", _TIMESTAMP, "When the row was made", False),
        _field("transactions", pa.int64(), "Scored rows; one that was delivered twice counts twice", False),
        *(_field(name, pa.int64(), f"Those of severity {name}", False) for name in SEVERITIES[1:]),
        *_measure_fields("score", "", "anomaly_score"),
        *_measure_fields("latency", "_ms", "the time from publication to score (--trace_messages)"),
    ]
)
"""One state of a window; see transforms.windows."""

FEATURE_PROFILES: Final = pa.schema(
    [
        _field("profiled_at", _TIMESTAMP, "When counting began", False),
        _VERSION_FIELD,
        _field("feature", pa.string(), "Name of the feature; anomaly_score for the score", False),
        _field("profile_id", pa.string(), "Of the rows that were counted; the deduplication key", False),
        _field("transactions", pa.int64(), "Rows that were counted", False),
        _field("every", pa.int64(), "Each so-manieth row was counted (--profile_every)", False),
        _field("outside", pa.int64(), "Values outside the range of the training", False),
        _field("missing", pa.int64(), "Rows without a value; what takes its place is in the bins", False),
        _field("missing_share", pa.float64(), "Share of such rows in the training; null where not known"),
        _field(
            "bins",
            pa.list_(
                pa.struct(
                    [
                        _field("place", pa.int64(), "0 is below the range of the training", False),
                        _field("below", pa.float64(), "End of the bin; null for the last, above the range"),
                        _field("transactions", pa.int64(), "Values in the bin", False),
                        _field("share", pa.float64(), "Share of the training's values in the bin", False),
                    ]
                )
            ),
            "The values between the quantiles of the training",
        ),
    ]
)
"""The profile of a feature, which can be added up with others; see transforms.profiles."""

_BIGQUERY_TYPES: Final = {
    pa.bool_(): "BOOL",
    pa.string(): "STRING",
    pa.binary(): "BYTES",
    pa.int64(): "INT64",
    pa.float64(): "FLOAT64",
    pa.float32(): "FLOAT64",
    _TIMESTAMP: "TIMESTAMP",
}


def to_bigquery(schema: pa.Schema | Iterable[pa.Field]) -> list[bigquery.SchemaField]:
    """The BigQuery schema that takes record batches of `schema`, descriptions and modes included.

    Raises:
      TypeError: a column has an Arrow type that the project's tables do not use.
    """
    return [_bigquery_field(field) for field in schema]


def _bigquery_field(field: pa.Field) -> bigquery.SchemaField:
    kind, mode = field.type, "NULLABLE" if field.nullable else "REQUIRED"
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    description: Any = (field.metadata or {}).get(b"description", b"").decode() or None
    if pa.types.is_struct(kind):
        return bigquery.SchemaField(
            field.name, "RECORD", mode=mode, description=description, fields=to_bigquery(list(kind))
        )
    if kind not in _BIGQUERY_TYPES:
        raise TypeError(f"Column {field.name!r}: no BigQuery type for Arrow type {kind}")
    return bigquery.SchemaField(field.name, _BIGQUERY_TYPES[kind], mode=mode, description=description)


def empty(schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of `schema` without rows."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)

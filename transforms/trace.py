"""The columns by which a row is traced: its message, its times, and what passes through from its source.

A load test joins scores to what it has published by these columns, and takes latency apart by them. They cost
nothing where they are not asked for. A feature spec may name fields to pass through as well: its names join
those of the option in `MessageRules.pass_through`.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from transforms.json_rows import PASSED, row_dicts
from transforms.schema import TRACE_FIELDS

READ_AT: Final = "read_at"
STORED_AT: Final = "stored_at"
_TYPES: Final = {field.name: field.type for field in TRACE_FIELDS}


def stamped(batch: pa.RecordBatch, name: str, micros: int) -> pa.RecordBatch:
    """Returns a batch with one time in all rows of a column.

    >>> batch = pa.RecordBatch.from_pylist([{"read_at": None}], pa.schema([("read_at", pa.timestamp("us"))]))
    >>> stamped(batch, "read_at", 1_000_000).column("read_at").to_pylist()
    [datetime.datetime(1970, 1, 1, 0, 0, 1)]

    Args:
      batch: has the column.
      name: of a column of timestamps.
      micros: microseconds since the epoch.
    """
    number = batch.schema.get_field_index(name)
    field = batch.schema.field(number)
    times = pa.array(np.full(batch.num_rows, micros, np.int64)).cast(field.type)
    return batch.set_column(number, field, times)


def message_trace(
    message_ids: Sequence[str] | None,
    publish_times: Sequence[dt.datetime | None] | None,
    passed: pa.Array | None,
    rows: int,
) -> list[pa.Array]:
    """Makes the columns of TRACE_FIELDS for rows of messages; None stands for a column of nulls.

    Args:
      message_ids: those of the rows; "" for none.
      publish_times: those of the rows.
      passed: see `passed_values`.
      rows: how many they are.
    """
    columns: dict[str, pa.Array] = {}
    if message_ids is not None:
        columns["message_id"] = pa.array([each or None for each in message_ids], pa.string())
    if publish_times is not None:
        columns["publish_time"] = pa.array(publish_times, _TYPES["publish_time"])
    if passed is not None:
        columns[PASSED] = passed
    return [columns[name] if name in columns else pa.nulls(rows, kind) for name, kind in _TYPES.items()]


def passed_values(payloads: Sequence[bytes], names: Sequence[str]) -> pa.Array:
    """Takes top-level keys out of messages: one JSON object each, values as they came; null without any.

    >>> passed_values([b'{"card": {"bin": 1.50}, "x": 1}', b"{}"], ["card"]).to_pylist()
    ['{"card":{"bin": 1.50}}', None]

    Args:
      payloads: messages that the parser takes: JSON objects, valid UTF-8.
      names: the keys.
    """
    decode = _decoder(tuple(names))
    keys = [orjson.dumps(name) + b":" for name in names]
    texts: list[bytes | None] = []
    for payload in payloads:
        try:
            values = msgspec.structs.astuple(decode(payload))
        except RecursionError:  # the parser, a step higher on the stack, just fitted
            values = (None,) * len(keys)
        parts = [key + bytes(raw) for key, raw in zip(keys, values, strict=True) if raw is not None]
        texts.append(b"{%s}" % b",".join(parts) if parts else None)
    return pa.array(texts, pa.binary()).cast(pa.string())


@functools.cache
def _decoder(names: tuple[str, ...]) -> Any:
    """Decodes the keys alone, each to the bytes of its value."""
    # Any text may be the name of a key, and a field of a struct is an identifier.
    fields = [(f"field_{i}", msgspec.Raw, None) for i in range(len(names))]
    renamed = {f"field_{i}": name for i, name in enumerate(names)}
    return msgspec.json.Decoder(msgspec.defstruct("Passed", fields, rename=renamed, gc=False)).decode


def passed_columns(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array | None:
    """Takes columns of a columnar source as JSON, as BigQuery writes it; None where the source has none.

    >>> batch = pa.RecordBatch.from_pydict({"card": ["4000", None], "x": [1, 2]})
    >>> passed_columns(batch, ["card", "other"]).to_pylist()
    ['{"card":"4000"}', '{"card":null}']
    """
    there = [name for name in names if name in batch.schema.names]
    if not there:
        return None
    return pa.array([orjson.dumps(row).decode() for row in row_dicts(batch.select(there))], pa.string())

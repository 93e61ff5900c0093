"""The columns by which a row is traced: its message, its times, and what passes through from its source.

A load test joins scores to what it has published by these columns, and takes latency apart by them. They cost
nothing where they are not asked for. The feature spec and the option name what passes through:
`MessageRules.pass_through` has both. A dot in a name enters an object, or a struct, as in the feature spec.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson
import pyarrow as pa

from features.arrow import is_utf8, python_values
from features.columns import column_as_is, one_column
from transforms.dead_letter import ATTEMPT_ATTRIBUTE, traceable
from transforms.json_rows import PASSED, decode_object, json_value
from transforms.plain_columns import no_texts, one_time, texts
from transforms.schema import CARRIED_FIELDS, SOURCE_FIELD

READ_AT: Final = "read_at"
STORED_AT: Final = "stored_at"
_TYPES: Final = {field.name: field.type for field in CARRIED_FIELDS}


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
    schema = batch.schema
    number = schema.get_field_index(name)
    field = schema.field(number)
    return batch.set_column(number, field, one_time(micros, batch.num_rows, field.type))


def message_trace(
    message_ids: Sequence[str] | None,
    publish_times: Sequence[dt.datetime | None] | None,
    passed: pa.Array | None,
    rows: int,
    source: pa.Array | None = None,
) -> list[pa.Array]:
    """Makes the columns of CARRIED_FIELDS for rows of messages; None stands for a column of nulls.

    Args:
      message_ids: those of the rows; "" for none.
      publish_times: those of the rows.
      passed: see `passed_values`.
      rows: how many they are.
      source: see `source_column`.
    """
    columns: dict[str, pa.Array] = {}
    if message_ids is not None:
        columns["message_id"] = texts([each or None for each in message_ids])
    if publish_times is not None:
        columns["publish_time"] = pa.array(publish_times, _TYPES["publish_time"])
    if passed is not None:
        columns[PASSED] = passed
    if source is not None:
        columns[SOURCE_FIELD.name] = source
    return [columns.get(name, null) for name, null in _nulls(rows).items()]


@functools.lru_cache(maxsize=16)
def _nulls(rows: int) -> Mapping[str, pa.Array]:
    return {name: pa.nulls(rows, kind) for name, kind in _TYPES.items()}


def source_column(
    message_ids: Sequence[str] | None,
    attributes: Sequence[Mapping[str, str]] | None,
    with_attributes: bool,
) -> pa.Array | None:
    """Makes the column of ids and attributes that dead letters take; None where no row has any.

    Attributes cost four times as much as ids, so that they are asked for. Those of a message that was
    replayed are always taken, for they say how often.

    >>> rows = source_column(["7", "8"], [{"k": "v"}, {"dead_letter_attempt": "1"}], False).to_pylist()
    >>> [row["attributes"] for row in rows]
    [None, '{"dead_letter_attempt":"1"}']
    """
    if message_ids is None:
        return None
    ids = texts([each or None for each in message_ids])
    encoded = [
        orjson.dumps(each) if (each and with_attributes) or ATTEMPT_ATTRIBUTE in each else None
        for each in attributes or ()
    ]
    is_any = any(encoded)
    column = pa.array(encoded, pa.binary()).cast(pa.string()) if is_any else no_texts(len(ids))
    return pa.Array.from_buffers(SOURCE_FIELD.type, len(ids), [None], children=[ids, column])


def source_attributes(source: Mapping[str, str | None] | None) -> dict[str, str]:
    """Returns the attributes of the dead letter of a row, the message id among them.

    >>> source_attributes({"message_id": "7", "attributes": '{"k":"v"}'}), source_attributes(None)
    ({'k': 'v', 'message_id': '7'}, {})
    """
    if source is None:
        return {}
    attributes = orjson.loads(source["attributes"]) if source["attributes"] else {}
    return dict(traceable(attributes, source["message_id"] or ""))


def outer_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names, and of those with a dot also the object that they enter.

    >>> outer_names(["id", "shop.name", "shop.country"])
    ('id', 'shop.name', 'shop', 'shop.country')
    """
    return tuple(dict.fromkeys(each for name in names for each in (name, name.partition(".")[0])))


def passed_values(payloads: Sequence[bytes], names: Sequence[str]) -> pa.Array:
    """Takes keys out of messages: one JSON object each, values as they came; null without any.

    >>> passed_values([b'{"card": {"bin": 1.50, "type": 2}, "x": 1}', b"{}"], ["card.bin"]).to_pylist()
    ['{"card":{"bin":1.50}}', None]

    Args:
      payloads: messages that the parser takes: JSON objects, valid UTF-8.
      names: the keys.
    """
    paths = _paths(names)
    outer = tuple(dict.fromkeys(path[0] for path in paths))
    decode = _decoder(outer)
    passed: list[bytes | None] = []
    for payload in payloads:
        message: dict[str, Any] = {}
        try:
            values = dict(zip(outer, msgspec.structs.astuple(decode(payload)), strict=True))
            for path in paths:
                raw = _inner(values[path[0]], path[1:])
                if raw is not None:
                    _set(message, path, orjson.Fragment(bytes(raw)))
        except RecursionError:  # the parser, a step higher on the stack, just fitted
            message = {}
        passed.append(orjson.dumps(message) if message else None)
    return pa.array(passed, pa.binary()).cast(pa.string())


def _paths(names: Sequence[str]) -> list[list[str]]:
    """The keys of each name, without the names within an object that passes as a whole."""
    paths = [name.split(".") for name in names]
    return [path for path in paths if not any(path[:length] in paths for length in range(1, len(path)))]


@functools.cache
def _decoder(names: tuple[str, ...]) -> Any:
    """Decodes the keys alone, each to the bytes of its value."""
    # Any text may be the name of a key, and a field of a struct is an identifier.
    fields = [(f"field_{i}", msgspec.Raw, None) for i in range(len(names))]
    renamed = {f"field_{i}": name for i, name in enumerate(names)}
    return msgspec.json.Decoder(msgspec.defstruct("Passed", fields, rename=renamed, gc=False)).decode


def _inner(raw: msgspec.Raw | None, keys: Sequence[str]) -> msgspec.Raw | None:
    for key in keys:
        if raw is None:
            return None
        try:
            raw = decode_object(raw).get(key)
        except msgspec.ValidationError:  # no object
            return None
    return raw


def _set(message: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        message = message.setdefault(key, {})
    message[path[-1]] = value


def passed_columns(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array | None:
    """Takes columns of a columnar source as JSON, as BigQuery writes it; None where the source has none.

    >>> batch = pa.RecordBatch.from_pydict({"card": ["4000", None], "x": [1, 2]})
    >>> passed_columns(batch, ["card", "other"]).to_pylist()
    ['{"card":"4000"}', '{"card":null}']

    What neither Python nor JSON can have passes as a text; see `features.arrow.python_values`.

    Raises:
      ColumnError: a column is there more than once.
    """
    columns = [(path, column_as_is(batch, ".".join(path))) for path in _paths(names)]
    there = [(path, _json_values(column)) for path, column in columns if column is not None]
    if not there:
        return None
    passed = []
    for row in range(batch.num_rows):
        message: dict[str, Any] = {}
        for path, values in there:
            _set(message, path, values[row])
        passed.append(orjson.dumps(message).decode())
    return pa.array(passed, pa.string())


def _json_values(column: pa.Array) -> list[Any]:
    """The values of a column as JSON has them; an empty text is none, as where columns are read."""
    plain = one_column(column) if is_utf8(column) else column
    return [json_value(value) for value in python_values(plain)]

"""Rows of record batches as JSON: for tables and files, and as messages that can be sent again."""

from __future__ import annotations

import base64
import decimal
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from features.arrow import python_value
from transforms.schema import CARRIED_FIELDS

PASSED: Final = "pass_through"
"""The column with what passes through from a message or row, as JSON."""
_TRACE: Final = frozenset(field.name for field in CARRIED_FIELDS)

decode_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""Decodes the keys of a JSON object, each to the bytes of its value."""


def row_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows as dicts for JSON, as BigQuery writes it: times RFC 3339, bytes base64, NaN as text.

    >>> row_dicts(pa.RecordBatch.from_pydict({"raw": [b"abc"], "score": [float("nan")]}))
    [{'raw': 'YWJj', 'score': 'NaN'}]
    """
    return [json_value(row) for row in batch.to_pylist()]


def json_value(value: Any) -> Any:
    """Returns a value of a row as JSON has it; see `row_dicts`."""
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def row_messages(
    transactions: pa.RecordBatch,
    rows: Sequence[int],
    features: Sequence[Sequence[Any]],
    unread: Mapping[str, Mapping[int, Any]],
    names: Sequence[str],
) -> list[bytes]:
    """Makes messages of rows of a columnar source, as they would have been scored.

    Features go by name, so that no model takes them in another order. A value that could not be read is as
    the source has it, in a form that the message parser refuses as well.

    Args:
      transactions: a TRANSACTIONS batch; the rows of no valid features included.
      rows: numbers of the rows to write.
      features: of each of these rows, as the source has them; of another number where its list is.
      unread: by column, the values that could not be read, by row number.
      names: of the features.
    """
    messages = []
    for i, values in zip(rows, features, strict=True):
        message = _key_values(transactions, i, unread)
        if len(values) == len(names):
            message |= dict(zip(names, map(_number, values), strict=True))
        else:
            message["features"] = [_number(value) for value in values]
        messages.append(message_text(message, without_list(transactions.column(PASSED)[i].as_py())))
    return messages


def without_list(passed: str | None) -> str | None:
    """Leaves out a list `features` that passed through: a parser would take it before named features.

    >>> without_list('{"features":[1,2],"n":1.50}'), without_list('{"features":"x"}')
    ('{"n":1.50}', '{"features":"x"}')
    """
    if passed is None or '"features"' not in passed:
        return passed
    texts = {key: bytes(raw) for key, raw in decode_object(passed.encode()).items()}
    if not texts.get("features", b"").startswith(b"["):
        return passed
    kept = {key: orjson.Fragment(text) for key, text in texts.items() if key != "features"}
    return orjson.dumps(kept).decode() if kept else None


def object_messages(
    transactions: pa.RecordBatch,
    rows: Sequence[int],
    source: Mapping[str, pa.Array],
    unread: Mapping[str, Mapping[int, Any]],
) -> list[bytes]:
    """Makes messages of rows of a columnar source whose fields have several types.

    Args:
      transactions: a TRANSACTIONS batch; the rows of no valid features included.
      rows: numbers of the rows to write.
      source: by field, the columns as the source has them.
      unread: by role, the values that could not be read, by row number.
    """
    messages = []
    for i in rows:
        message = _key_values(transactions, i, unread)
        for name, column in source.items():
            put(message, name, _field(python_value(column[i])))
        messages.append(message_text(message, transactions.column(PASSED)[i].as_py()))
    return messages


def _key_values(
    transactions: pa.RecordBatch, row: int, unread: Mapping[str, Mapping[int, Any]]
) -> dict[str, Any]:
    """Returns id, account and time of a row by the roles' own names; unread ones as the source has them."""
    message = {
        "transaction_id": transactions.column("transaction_id")[row].as_py(),
        "account_id": transactions.column("account_id")[row].as_py(),
        "event_time": moment_text(transactions.column("event_time")[row]),
        "event_time_derived": transactions.column("event_time_derived")[row].as_py(),
    }
    message |= {name: _unread(cells[row]) for name, cells in unread.items() if row in cells}
    return {name: value for name, value in message.items() if value is not None}


def put(message: dict[str, Any], field: str, value: Any) -> None:
    """Sets a field of a message; a dot enters a nested object. None stays away.

    >>> message = {}
    >>> put(message, "shop.country", "NZ")
    >>> message
    {'shop': {'country': 'NZ'}}
    """
    if value is None:
        return
    *outer, key = field.split(".")
    for name in outer:
        message = message.setdefault(name, {})
    message[key] = value


def untraced(row: Mapping[str, Any], values: Mapping[str, Any]) -> bytes:
    """Makes a message of a row again: what passed through is in its place, and the trace is left out.

    >>> untraced({"account_id": "a-1", "message_id": "7", "pass_through": '{"shop":{"x":4}}'}, {"shop.y": 5})
    b'{"shop":{"x":4,"y":5},"account_id":"a-1"}'

    Args:
      row: of a TRANSACTIONS batch.
      values: of its features and amount, by field.
    """
    message = {key: value for key, value in row.items() if key not in _TRACE and value is not None}
    for name, value in values.items():
        put(message, name, value)
    return message_text(message, row.get(PASSED))


def message_text(message: Mapping[str, Any], passed: str | None) -> bytes:
    """Writes a message, and before its own keys those that passed through, as they came.

    >>> message_text({"shop": {"country": "NZ"}}, '{"shop":{"sales":1e400},"n":1.50}')
    b'{"shop":{"sales":1e400,"country":"NZ"},"n":1.50}'
    """
    return orjson.dumps(_joined(passed.encode(), message) if passed else message)


def _joined(passed: bytes, message: Mapping[str, Any]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key, raw in decode_object(passed).items():
        own, text = message.get(key), bytes(raw)
        if isinstance(own, Mapping) and text.startswith(b"{"):
            joined[key] = _joined(text, own)
        else:  # as text: numbers too long for a float are among them
            joined[key] = orjson.Fragment(text)
    return joined | {key: value for key, value in message.items() if not isinstance(joined.get(key), dict)}


def moment_text(moment: pa.TimestampScalar) -> str:
    """Returns a time in RFC 3339; where the year is one that datetime cannot hold, in words."""
    try:
        return str(moment.as_py().isoformat())
    except OverflowError:
        return f"{moment.value} microseconds after 1970"


def _field(value: Any) -> Any:
    if isinstance(value, decimal.Decimal) and value in (0, 1):
        return int(value)  # as a text with a fraction it would be no boolean
    # A column's NaN is a missing value, and the text Infinity would be a valid category.
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else {"number": json_value(value)}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return _unread(value)
    return json_value(value)


def _unread(value: Any) -> Any:
    # An object: base64 would be a valid text.
    return {"base64": json_value(value)} if isinstance(value, bytes) else json_value(value)


def _number(value: Any) -> Any:
    # Decimals become texts, which keep all their digits.
    return value.decode(errors="replace") if isinstance(value, bytes) else json_value(value)

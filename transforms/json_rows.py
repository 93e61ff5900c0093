"""Rows of record batches as JSON: for tables and files, and as messages that can be sent again."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa

from model.features import FEATURES, N_FEATURES
from transforms.schema import TRACE_FIELDS

PASSED: Final = "pass_through"
"""The column with what passes through from a message or row, as JSON."""
_TRACE: Final = frozenset(field.name for field in TRACE_FIELDS)


def row_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows as dicts for JSON, as BigQuery writes it: times RFC 3339, bytes base64, NaN as text.

    >>> row_dicts(pa.RecordBatch.from_pydict({"raw": [b"abc"], "score": [float("nan")]}))
    [{'raw': 'YWJj', 'score': 'NaN'}]
    """
    return [_plain(row) for row in batch.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
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
) -> list[bytes]:
    """Makes messages of rows of a columnar source, as they would have been scored.

    Features go by name, so that no model takes them in another order. A value that could not be read is as
    the source has it, in a form that the message parser refuses as well.

    Args:
      transactions: a TRANSACTIONS batch; the rows of no valid features included.
      rows: numbers of the rows to write.
      features: of each of these rows, as the source has them; of another number where its list is.
      unread: by column, the values that could not be read, by row number.
    """
    messages = []
    for i, values in zip(rows, features, strict=True):
        message = {
            "transaction_id": transactions.column("transaction_id")[i].as_py(),
            "account_id": transactions.column("account_id")[i].as_py(),
            "event_time": moment_text(transactions.column("event_time")[i]),
            "event_time_derived": transactions.column("event_time_derived")[i].as_py(),
        }
        message |= {name: _unread(cells[i]) for name, cells in unread.items() if i in cells}
        message = {name: value for name, value in message.items() if value is not None}
        if len(values) == N_FEATURES:
            message |= dict(zip(FEATURES, map(_number, values), strict=True))
        else:
            message["features"] = [_number(value) for value in values]
        messages.append(_joined(transactions.column(PASSED)[i].as_py(), message))
    return messages


def untraced(row: Mapping[str, Any]) -> bytes:
    """Makes a message of a row again: what passed through stands at its top, and the trace is left out.

    >>> untraced({"transaction_id": "t-1", "message_id": "7", "pass_through": '{"card":4}'})
    b'{"card":4,"transaction_id":"t-1"}'
    """
    return _joined(
        row.get(PASSED), {key: value for key, value in row.items() if key not in _TRACE and value is not None}
    )


def _joined(passed: str | None, message: Mapping[str, Any]) -> bytes:
    # Joined as text: the values stay as they came, numbers too long for a float among them.
    head, tail = (passed or "").encode().removesuffix(b"}"), orjson.dumps(message)
    return head + b"," + tail.removeprefix(b"{") if head else tail


def moment_text(moment: pa.TimestampScalar) -> str:
    """Returns a time in RFC 3339; where the year is one that datetime cannot hold, in words."""
    try:
        return str(moment.as_py().isoformat())
    except OverflowError:
        return f"{moment.value} microseconds after 1970"


def _unread(value: Any) -> Any:
    # An object: base64 would be a valid text.
    return {"base64": _plain(value)} if isinstance(value, bytes) else _plain(value)


def _number(value: Any) -> Any:
    # Decimals become texts, which keep all their digits.
    return value.decode(errors="replace") if isinstance(value, bytes) else _plain(value)

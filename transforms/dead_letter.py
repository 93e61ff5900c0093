"""Dead letters: messages and rows that could not be parsed, scored or stored, with reason and payload.

A dead letter is one row of an ERROR_RECORDS record batch, so that it takes the same sinks as other batches.
The columns are those of the error tables of Google's Dataflow templates, with the stage and the attempt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from transforms.schema import ERROR_RECORDS, empty

ATTEMPT_ATTRIBUTE: Final = "dead_letter_attempt"
"""Message attribute that counts how often a message was replayed from the dead letters."""

MAX_PAYLOAD_BYTES: Final = 4 * 1024 * 1024
"""Longer payloads are cut: both payload columns of a row must fit into one append request of 10 MB."""

_NONE: Final = empty(ERROR_RECORDS)


def dead_letters(
    payloads: Sequence[bytes],
    reasons: Sequence[str],
    stage: str,
    attributes: Sequence[Mapping[str, str]] | None = None,
    attempts: Sequence[int] | None = None,
    timestamp: int | None = None,
) -> pa.RecordBatch:
    """Builds an ERROR_RECORDS batch of one row per rejected message or row.

    >>> dead_letters([b"{}"], ["features: absent"], "parse").column("payloadString").to_pylist()
    ['{}']

    Args:
      payloads: the bytes as they came; over MAX_PAYLOAD_BYTES they are cut, and the reason says so.
      reasons: one message each, naming the field.
      stage: "parse", "score" or "sink".
      attributes: message attributes, or None when there are none.
      attempts: earlier replays; read from the attribute `dead_letter_attempt` when not given.
      timestamp: microseconds since the epoch, of all rows; now when not given.

    Raises:
      ValueError: the sequences differ in length.
    """
    n = len(payloads)
    if not (n or reasons):
        return _NONE
    attributes = attributes if attributes is not None else [{}] * n
    attempts = attempts if attempts is not None else [attempt(row) for row in attributes]
    if not len(reasons) == len(attributes) == len(attempts) == n:
        raise ValueError(
            f"{n} payloads, {len(reasons)} reasons, {len(attributes)} attributes: lengths differ"
        )
    kept = [payload[:MAX_PAYLOAD_BYTES] for payload in payloads]
    messages = [
        reason if len(payload) <= MAX_PAYLOAD_BYTES else f"{reason} (payload cut from {len(payload)} bytes)"
        for reason, payload in zip(reasons, payloads, strict=True)
    ]
    now = time.time_ns() // 1000 if timestamp is None else timestamp
    columns = [
        pa.array([now] * n, ERROR_RECORDS.field("timestamp").type),
        pa.array([_text(payload) for payload in kept], pa.string()),
        pa.array(kept, pa.binary()),
        pa.array(
            # In one order, whatever that of the client's map: copies of a letter are equal.
            [[{"key": key, "value": value} for key, value in sorted(row.items())] for row in attributes],
            ERROR_RECORDS.field("attributes").type,
        ),
        pa.array(messages, pa.string()),
        pa.nulls(n, pa.string()),
        pa.array([stage] * n, pa.string()),
        pa.array(attempts, pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ERROR_RECORDS)


def attempt(attributes: Mapping[str, str]) -> int:
    """Returns how often a message was replayed; 0 for a missing or unreadable count.

    >>> attempt({"dead_letter_attempt": "2"}), attempt({})
    (2, 0)
    """
    text = attributes.get(ATTEMPT_ATTRIBUTE, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return None

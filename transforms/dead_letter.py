"""Dead letters: messages and rows that could not be parsed, scored or stored, with reason and payload.

A dead letter is one row of an ERROR_RECORDS record batch, so that it takes the same sinks as other batches.
The columns are those of the error tables of Google's Dataflow templates, with the stage and the attempt.
Every letter fits into one request to BigQuery, whatever was rejected: what is longer is cut, and the reason
says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from common.limits import MAX_APPEND_BYTES
from transforms.schema import ERROR_RECORDS, empty

ATTEMPT_ATTRIBUTE: Final = "dead_letter_attempt"
"""Message attribute that counts how often a message was replayed from the dead letters."""

MESSAGE_ID: Final = "message_id"
"""Attribute of a dead letter with the id that Pub/Sub gave the message."""

PUBSUB_MESSAGE_ID: Final = "goog_message_id"
"""Attribute with that id where the publisher has a `message_id`. Publishers may not begin a name so."""

MAX_ATTRIBUTE_BYTES: Final = 256 * 1024
"""Attributes beyond are left out. Pub/Sub allows half of it: 100 names of 256 bytes, values of 1,024."""

MAX_REASON_BYTES: Final = 16 * 1024
"""Longer reasons are cut: an answer of a server, for one, may have any length."""

_FRAME_BYTES: Final = 8 * 1024
"""Room for the other columns of a row, and for Arrow's metadata and padding."""

MAX_PAYLOAD_BYTES: Final = (MAX_APPEND_BYTES - MAX_ATTRIBUTE_BYTES - MAX_REASON_BYTES - _FRAME_BYTES) // 2
"""Longer payloads are cut: a row holds the payload twice, and must fit into one request."""

_CUT: Final = re.compile(r"\((payload cut from \d+ bytes|attributes cut from \d+ to \d+)\)$")
_NONE: Final = empty(ERROR_RECORDS)
_OFFSET_BYTES: Final = 4
"""Arrow's overhead of a text."""


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
      reasons: one message each, naming the field; cut at MAX_REASON_BYTES.
      stage: "parse", "score" or "sink".
      attributes: message attributes, or None when there are none; over MAX_ATTRIBUTE_BYTES the last ones are
        left out, and the reason says so.
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
    kept = [_begin(payload, MAX_PAYLOAD_BYTES) for payload in payloads]
    pairs = [_attributes(row) for row in attributes]
    messages = [_begin(reason.encode(errors="replace"), MAX_REASON_BYTES).decode() for reason in reasons]
    for i, (payload, row) in enumerate(zip(payloads, attributes, strict=True)):
        if len(payload) > MAX_PAYLOAD_BYTES:
            messages[i] += f" (payload cut from {len(payload)} bytes)"
        if len(row) > len(pairs[i]):
            messages[i] += f" (attributes cut from {len(row)} to {len(pairs[i])})"
    now = time.time_ns() // 1000 if timestamp is None else timestamp
    columns = [
        pa.array([now] * n, ERROR_RECORDS.field("timestamp").type),
        pa.array([_text(payload) for payload in kept], pa.string()),
        pa.array(kept, pa.binary()),
        pa.array(pairs, ERROR_RECORDS.field("attributes").type),
        pa.array(messages, pa.string()),
        pa.nulls(n, pa.string()),
        pa.array([stage] * n, pa.string()),
        pa.array(attempts, pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ERROR_RECORDS)


def is_cut(reason: str) -> bool:
    """Tells by the reason whether a letter lacks a part of its message.

    >>> (letter,) = dead_letters([b" " * 10_000_000], ["payload: too long"], "parse").to_pylist()
    >>> letter["errorMessage"], is_cut(letter["errorMessage"])
    ('payload: too long (payload cut from 10000000 bytes)', True)
    """
    return _CUT.search(reason) is not None


def attempt(attributes: Mapping[str, str]) -> int:
    """Returns how often a message was replayed; 0 for a missing or unreadable count.

    >>> attempt({"dead_letter_attempt": "2"}), attempt({})
    (2, 0)
    """
    text = attributes.get(ATTEMPT_ATTRIBUTE, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def traceable(attributes: Mapping[str, str], message_id: str) -> Mapping[str, str]:
    """Returns the attributes of a message with the id that Pub/Sub gave it, where it has one.

    >>> traceable({"message_id": "the publisher's"}, "17")
    {'message_id': "the publisher's", 'goog_message_id': '17'}
    """
    if not message_id:
        return attributes
    return {**attributes, (PUBSUB_MESSAGE_ID if MESSAGE_ID in attributes else MESSAGE_ID): message_id}


def given_message_id(attributes: Mapping[str, str]) -> str | None:
    """Returns the id that Pub/Sub gave the message of a dead letter; None where it came from no topic.

    >>> given_message_id({"message_id": "17"})
    '17'
    >>> given_message_id({"message_id": "the publisher's", "goog_message_id": "17"})
    '17'
    """
    return attributes.get(PUBSUB_MESSAGE_ID) or attributes.get(MESSAGE_ID)


def _begin(data: bytes, limit: int) -> bytes:
    """Returns at most `limit` bytes, cut between two characters where the data is UTF-8."""
    if len(data) <= limit:
        return data
    end = limit
    while end > limit - 3 and data[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return data[:end] if data[end] & 0xC0 != 0x80 else data[:limit]


def _attributes(row: Mapping[str, str]) -> list[dict[str, str]]:
    pairs: list[dict[str, str]] = []
    room = MAX_ATTRIBUTE_BYTES
    # In one order, whatever that of the client's map: copies of a letter are equal.
    for key, value in sorted(row.items()):
        room -= len(key.encode()) + len(value.encode()) + 2 * _OFFSET_BYTES
        if room < 0:
            break
        pairs.append({"key": key, "value": value})
    return pairs


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return None

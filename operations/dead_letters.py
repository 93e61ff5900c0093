"""Dead letters as `anomaly replay` reads them, and the messages that it makes of them. No client here."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from google.cloud import bigquery

from transforms import tables
from transforms.dead_letter import ATTEMPT_ATTRIBUTE, MESSAGE_ID, PUBSUB_MESSAGE_ID, given_message_id, is_cut

ORIGINAL_MESSAGE_ID: Final = "original_message_id"
"""Attribute with the id of the message as it was first published."""
MAX_ATTRIBUTES: Final = 100
"""Of a Pub/Sub message."""


@dataclass(frozen=True)
class Letter:
    """A dead letter: the first of its rows in error_records, and the hash that is noted once it is sent."""

    key: str
    timestamp: dt.datetime
    stage: str
    reason: str
    attempt: int
    payload: bytes | None
    attributes: dict[str, str]


def reason_to_keep(letter: Letter, max_attempts: int) -> str | None:
    """Says why a letter cannot be sent; None where it can."""
    if letter.stage == "sink":
        return "stage sink: the payload is the row that BigQuery refused, not a message"
    if letter.payload is None:
        return "no payload"
    if is_cut(letter.reason):
        return "payload cut: the letter keeps a part of the message; publish it from its source"
    if letter.attempt >= max_attempts:
        return f"attempts used up: --max_attempts={max_attempts}"
    if len(_attributes(letter)) > MAX_ATTRIBUTES:
        return f"attributes: {MAX_ATTRIBUTES} or more, which leaves no room for {ATTEMPT_ATTRIBUTE}"
    return None


def message(letter: Letter) -> tuple[bytes, dict[str, str]]:
    """Makes payload and attributes of the message that replays a letter."""
    return with_event_time(letter.payload or b"", letter.timestamp), _attributes(letter)


def _attributes(letter: Letter) -> dict[str, str]:
    # Names that begin with goog are Pub/Sub's own, and it takes none from a publisher.
    attributes = {name: value for name, value in letter.attributes.items() if not name.startswith("goog")}
    first_id = given_message_id(letter.attributes)
    if PUBSUB_MESSAGE_ID not in letter.attributes:  # otherwise `message_id` is the publisher's
        attributes.pop(MESSAGE_ID, None)
    attributes[ATTEMPT_ATTRIBUTE] = str(letter.attempt + 1)
    if first_id and len(attributes) < MAX_ATTRIBUTES:
        attributes.setdefault(ORIGINAL_MESSAGE_ID, first_id)
    return attributes


def with_event_time(payload: bytes, moment: dt.datetime) -> bytes:
    """Adds the event time to a payload that names none.

    A message without one takes its publish time, which would be that of the replay. The letter's timestamp,
    when the message was rejected, comes closest to the time at which it was first published. It is added at
    the end, for the last of two equal keys counts: the message may have `"event_time": null`. It is marked as
    derived, so that the views take the transaction for the one that another message without a time holds.
    """
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return payload
    if not isinstance(document, dict) or not document or document.get("event_time") is not None:
        return payload
    if not isinstance(document.get("event_time_derived"), bool | None):  # the reason of its rejection stays
        return payload
    time = orjson.dumps({"event_time": moment.isoformat(), "event_time_derived": True})
    return payload.rstrip()[:-1] + b"," + time[1:]


def statement(
    dataset: str, since: dt.datetime, stage: str | None, reason: str | None, noted: bool
) -> tuple[str, list[bigquery.ScalarQueryParameter]]:
    """Makes the query of the letters that were not sent yet, the oldest first, and its parameters.

    It reads the table: no bound on the time passes through the window of the view, so that BigQuery would
    read all days.

    Args:
      dataset: "PROJECT.DATASET".
      since: the earliest rejection.
      stage: of the letters; any when None.
      reason: a LIKE pattern where it has a %, otherwise a part of the reason; any when None.
      noted: whether there is a table of the letters that were sent.
    """
    spec = tables.error_records_table()
    wanted = ["timestamp >= @since"]
    parameters = [bigquery.ScalarQueryParameter("since", "TIMESTAMP", since)]
    if stage is not None:
        wanted.append("stage = @stage")
        parameters.append(bigquery.ScalarQueryParameter("stage", "STRING", stage))
    if reason is not None:
        wanted.append("errorMessage LIKE @reason" if "%" in reason else "STRPOS(errorMessage, @reason) > 0")
        parameters.append(bigquery.ScalarQueryParameter("reason", "STRING", reason))
    replayed = f"`{dataset}.{tables.REPLAYED_TABLE}`"
    # Version 0.1.0 noted the hash of the attributes in the order in which the letter holds them.
    unsent = f"""\
letter NOT IN (SELECT letter FROM {replayed})
  AND letter NOT IN (
    SELECT copy.letter FROM letters AS copy JOIN {replayed} AS note ON note.letter = copy.as_stored
  )"""  # noqa: S608 - the form of the dataset is checked
    text = f"""\
WITH letters AS (
  SELECT
    {_hash(spec.key)} AS letter,
    {_hash((*spec.key[:-1], "TO_JSON_STRING(attributes)"))} AS as_stored,
    timestamp, stage, errorMessage, attempt, payloadBytes, attributes
  FROM `{dataset}.{spec.name}`
  WHERE {" AND ".join(wanted)}
)
SELECT * FROM letters
WHERE {unsent if noted else "TRUE"}
QUALIFY ROW_NUMBER() OVER (PARTITION BY letter ORDER BY timestamp) = 1
ORDER BY timestamp, letter"""  # noqa: S608 - the form of the dataset is checked, values are parameters
    return text, parameters


def _hash(key: Sequence[str]) -> str:
    columns = ", ".join(f"{column} AS key_{i}" for i, column in enumerate(key))
    return f"TO_HEX(SHA256(TO_JSON_STRING(STRUCT({columns}))))"


def to_letters(rows: Iterable[bigquery.Row]) -> Iterator[Letter]:
    """Reads rows of `statement` as letters."""
    for row in rows:
        attributes = {pair["key"]: pair["value"] or "" for pair in row["attributes"]}
        yield Letter(
            row["letter"],
            row["timestamp"],
            row["stage"],
            row["errorMessage"],
            row["attempt"],
            row["payloadBytes"],
            attributes,
        )

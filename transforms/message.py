"""Decodes transaction messages: bytes in, columns or a reason out. No Beam here.

The rules, each with a test under the same name:

| message | result |
|---|---|
| `features`: 30 finite JSON numbers | accepted; integers count as numbers |
| the 30 features as named keys (a row of `ulb_fraud_detection`) | accepted where `features` is absent |
| NaN, Infinity, 1e999, or a number over the float32 range | rejected, names the feature |
| a boolean, string, null or list in place of a number | rejected, names the feature |
| 29 or 31 features, or a missing named one | rejected, names the field |
| not JSON, cut-off JSON, not UTF-8, not an object, empty | rejected |
| nested deeper than the decoder's limit | rejected |
| longer than `max_bytes` | rejected before it is decoded |
| a line of a file of MAX_LINE_BYTES or more | rejected, as the reader cuts it there |
| a key twice in one object | the last one counts, as in most JSON parsers |
| an unknown key | ignored, also `Class`: a label never reaches the model |
| `transaction_id` or `account_id` that is not a text of 1 to 256 characters | rejected |
| no `transaction_id` | derived from the payload and the message id |
| `event_time` that is not RFC 3339 with an offset | rejected |
| `event_time` over `max_lead` ahead of the publish time, or over `max_age` behind it | rejected |
| no `event_time` | the publish time (for a file, the time at which the job was launched), marked as derived |
| `event_time_derived`: true beside `event_time` | the time is marked as derived; a replay says so |
| `event_time_derived` that is neither a boolean nor null | rejected |
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.limits import MAX_MESSAGE_BYTES
from model.features import FEATURES, N_FEATURES
from transforms.dead_letter import dead_letters
from transforms.schema import TRANSACTIONS
from transforms.trace import message_trace, passed_values

MAX_ID_LENGTH: Final = 256
"""Characters in an id: at most 1,024 bytes in UTF-8, the limit of a Pub/Sub attribute."""

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A reader of files cuts a line here: a line of this length may have been longer. Pub/Sub allows less."""

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
EventTime = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class Transaction(msgspec.Struct, gc=False):
    """A decoded message; UNSET features are named keys, or missing."""

    features: Annotated[list[float], msgspec.Meta(min_length=N_FEATURES, max_length=N_FEATURES)] = (
        msgspec.UNSET  # type: ignore[assignment]
    )
    transaction_id: Identifier | None = None
    account_id: Identifier | None = None
    event_time: EventTime | None = None
    event_time_derived: bool | None = None


NamedFeatures: Any = msgspec.defstruct("NamedFeatures", [(name, float) for name in FEATURES], gc=False)

_DECODE = msgspec.json.Decoder(Transaction).decode
_DECODE_NAMED = msgspec.json.Decoder(NamedFeatures).decode
_DECODE_TIME = msgspec.json.Decoder(EventTime).decode
_EARLIEST: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_LATEST: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_FEATURE_PATH: Final = re.compile(r"\$\.features\[(\d+)\]")


class MessageColumns(NamedTuple):
    """A batch of messages as columns of equal length; None where the source does not have the column."""

    payloads: Sequence[bytes]
    attributes: Sequence[Mapping[str, str]] | None = None
    message_ids: Sequence[str] | None = None
    publish_times: Sequence[dt.datetime | None] | None = None


@dataclass(frozen=True)
class MessageRules:
    """The rules that a message has to keep.

    Attributes:
      default_time: replaces the publish time where the source has none; timezone-aware. A batch job
        fixes it at launch, so that a retried bundle gives the same rows; None takes the clock at each batch,
        for a streaming job, which runs longer than any time fixed at launch is valid.
      max_bytes: the longest payload that is decoded.
      max_lead: how far `event_time` may lie ahead of the publish time.
      max_age: how far `event_time` may lie behind it. BigQuery takes streamed rows into day partitions of the
        last ten years at most.
      event_time_attribute: name of a message attribute (RFC 3339, or milliseconds since the epoch) that
        overrides the payload's event time; None to ignore attributes.
      pass_through: keys at the top of a message, or columns, that travel with the row as JSON.
      trace_messages: whether message id and publish time travel with the row.
    """

    default_time: dt.datetime | None = None
    max_bytes: int = MAX_MESSAGE_BYTES
    max_lead: dt.timedelta = dt.timedelta(days=1)
    max_age: dt.timedelta = dt.timedelta(days=3650)
    event_time_attribute: str | None = None
    pass_through: tuple[str, ...] = ()
    trace_messages: bool = False


class Parsed(NamedTuple):
    """One TRANSACTIONS batch and one ERROR_RECORDS batch; together they hold every message once."""

    transactions: pa.RecordBatch
    dead_letters: pa.RecordBatch


class _RejectedError(ValueError):
    """A message breaks a rule; the text is the reason."""


def parse_messages(messages: MessageColumns, rules: MessageRules) -> Parsed:
    """Decodes and validates a batch of messages. No content of a message makes it raise.

    >>> features = list(range(30))
    >>> payloads = [b'{"transaction_id": "t-1", "features": %s}' % str(features).encode(), b"{}"]
    >>> parsed = parse_messages(MessageColumns(payloads), MessageRules())
    >>> parsed.transactions.column("transaction_id").to_pylist()
    ['t-1']
    >>> parsed.dead_letters.column("errorMessage").to_pylist()
    ['features: absent, and as named keys incomplete: Object missing required field `Time`']

    Args:
      messages: the batch.
      rules: those that a message has to keep.
    """
    n = len(messages.payloads)
    attributes = messages.attributes or [{}] * n
    message_ids = messages.message_ids or [""] * n
    publish_times = messages.publish_times or [None] * n
    rows: list[Transaction] = []
    positions: list[int] = []
    reasons: dict[int, str] = {}
    default_time = rules.default_time or dt.datetime.now(dt.UTC)
    default_bounds = event_time_bounds(default_time, rules)
    # Read once: this loop runs for every message.
    max_bytes, time_attribute = min(rules.max_bytes, MAX_LINE_BYTES - 1), rules.event_time_attribute
    for i, payload in enumerate(messages.payloads):
        try:
            row = _decode(payload, max_bytes)
            published = publish_times[i]
            if published is None:
                published, (earliest, latest) = default_time, default_bounds
            else:
                earliest, latest = event_time_bounds(published, rules)
            moment = row.event_time
            if time_attribute and time_attribute in attributes[i]:
                moment = _attribute_time(time_attribute, attributes[i])
                row.event_time_derived = False
            if moment is None:
                row.event_time, row.event_time_derived = published, True
            elif earliest <= moment <= latest:
                row.event_time = moment
            else:
                raise _RejectedError(outside_text(moment.isoformat(), (earliest, latest)))
            if row.transaction_id is None:
                row.transaction_id = derived_id(payload, message_ids[i])
        except _RejectedError as error:
            reasons[i] = str(error)
        else:
            rows.append(row)
            positions.append(i)
    matrix = _matrix(rows)
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=1))
    if not finite.all():
        for k in np.flatnonzero(~finite):
            name = FEATURES[int(np.flatnonzero(~np.isfinite(matrix[k]))[0])]
            value = rows[k].features[FEATURES.index(name)]
            reasons[positions[k]] = f"features: {name} is {value!r}, not a finite float32"
        rows = [row for row, fits in zip(rows, finite, strict=True) if fits]
        positions = [i for i, fits in zip(positions, finite, strict=True) if fits]
        matrix = matrix[finite]
    rejected = sorted(reasons)
    return Parsed(
        _transactions(rows, matrix, _trace(messages, positions, rules)),
        dead_letters(
            [messages.payloads[i] for i in rejected],
            [reasons[i] for i in rejected],
            "parse",
            [_traceable(attributes[i], message_ids[i]) for i in rejected],
        ),
    )


def derived_id(payload: bytes, message_id: str) -> str:
    """Derives the id of a transaction that has none: 128 bits over payload and message id, as 32 hex digits.

    >>> derived_id(b"{}", "m-1") == derived_id(b"{}", "m-1") != derived_id(b"{}", "m-2")
    True

    The same message redelivered gets the same id. Lines of a file have no message id, so two equal lines
    without an id count as one transaction.
    """
    return hashlib.blake2b(payload, digest_size=16, key=message_id.encode()[:64]).hexdigest()


def _decode(payload: bytes, max_bytes: int) -> Transaction:
    if len(payload) > max_bytes:
        if len(payload) < MAX_LINE_BYTES:
            raise _RejectedError(f"payload: {len(payload)} bytes, over the limit of {max_bytes}")
        raise _RejectedError(f"payload: at least {len(payload)} bytes, over the limit of {max_bytes}")
    try:
        if not payload.isascii():
            payload.decode("utf-8")  # the decoder does not look inside the strings that it skips
        row = _DECODE(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _RejectedError(_reason(error)) from None
    if row.features is msgspec.UNSET:
        row.features = _named_features(payload)
    return row


def _named_features(payload: bytes) -> list[float]:
    try:
        return list(msgspec.structs.astuple(_DECODE_NAMED(payload)))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        reason = _reason(error)
        if "missing required field" in reason:
            reason = f"features: absent, and as named keys incomplete: {reason}"
        raise _RejectedError(reason) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "payload: nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"payload: not UTF-8 ({error.reason} at byte {error.start})"
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return f"payload: not JSON ({text})"
    path = _FEATURE_PATH.search(text)
    if path and int(path.group(1)) < N_FEATURES:
        text += f", which is {FEATURES[int(path.group(1))]}"
    return text if " - at `$" in text or "missing required field" in text else f"payload: {text}"


def event_time_bounds(published: dt.datetime, rules: MessageRules) -> tuple[dt.datetime, dt.datetime]:
    """Returns the earliest and the latest event time of a message by its publish time."""
    try:
        return published - rules.max_age, published + rules.max_lead
    except OverflowError:  # a limit beyond the calendar limits nothing
        return (
            published - rules.max_age if published - _EARLIEST > rules.max_age else _EARLIEST,
            published + rules.max_lead if _LATEST - published > rules.max_lead else _LATEST,
        )


def outside_text(moment: str, bounds: tuple[dt.datetime, dt.datetime]) -> str:
    """Returns the reason to reject an event time outside its bounds."""
    return f"event_time: {moment} is outside {bounds[0]} to {bounds[1]}"


def _attribute_time(name: str, attributes: Mapping[str, str]) -> dt.datetime:
    text = attributes[name]
    try:
        if text.isascii() and text.isdigit():
            return dt.datetime.fromtimestamp(int(text) / 1000, dt.UTC)
        moment: dt.datetime = _DECODE_TIME(msgspec.json.encode(text))
        return moment
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError):
        raise _RejectedError(
            f"attribute {name}: {text[:64]!r} is neither RFC 3339 nor milliseconds since the epoch"
        ) from None


def _traceable(attributes: Mapping[str, str], message_id: str) -> Mapping[str, str]:
    return {**attributes, "message_id": message_id} if message_id else attributes


def _matrix(rows: Sequence[Transaction]) -> npt.NDArray[np.float32]:
    values = itertools.chain.from_iterable(row.features for row in rows)
    wide = np.fromiter(values, np.float64, len(rows) * N_FEATURES)
    with np.errstate(over="ignore"):
        return wide.astype(np.float32).reshape(-1, N_FEATURES)


def _trace(messages: MessageColumns, positions: Sequence[int], rules: MessageRules) -> list[pa.Array]:
    """The columns of TRACE_FIELDS for the messages at these positions."""
    ids, times = (messages.message_ids, messages.publish_times) if rules.trace_messages else (None, None)
    passed = rules.pass_through and passed_values(
        [messages.payloads[i] for i in positions], rules.pass_through
    )
    return message_trace(
        ids and [ids[i] for i in positions],
        times and [times[i] for i in positions],
        passed or None,
        len(positions),
    )


def _transactions(
    rows: Sequence[Transaction], matrix: npt.NDArray[np.float32], trace: Sequence[pa.Array]
) -> pa.RecordBatch:
    features = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), N_FEATURES)
    columns = [
        pa.array([row.transaction_id for row in rows], pa.string()),
        pa.array([row.account_id for row in rows], pa.string()),
        pa.array([row.event_time for row in rows], TRANSACTIONS.field("event_time").type),
        pa.array([row.event_time_derived is True for row in rows], pa.bool_()),
        features,
        *trace,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRANSACTIONS)

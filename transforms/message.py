"""Decodes transaction messages: bytes in, columns or a reason out. No Beam here.

docs/messages.md has the rules in one table. The usual message is decoded and checked in C. One that the
strict decoder refuses is read again, value by value, by the rules of model.values and model.roles, which
files, tables, servers and training also follow.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.limits import MAX_MESSAGE_BYTES
from model import roles
from model.features import FEATURES, N_FEATURES
from model.roles import MAX_ID_LENGTH, Roles
from model.values import FeatureError, features, shown
from transforms.dead_letter import MESSAGE_ID, PUBSUB_MESSAGE_ID, dead_letters
from transforms.schema import TRANSACTIONS

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

_DECODE_NAMED = msgspec.json.Decoder(NamedFeatures).decode
_DECODE_ANY = msgspec.json.Decoder().decode
_DECODE_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw]).decode
_ROLE_TYPES: Final = {"transaction_id": Identifier, "account_id": Identifier, "event_time": EventTime}
_MOST_DIGITS: Final = 1_000
"""Python makes no integers of some thousand digits; no feature, id or time has as many."""
_EARLIEST: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_LATEST: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


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
      event_time_attribute: name of a message attribute that overrides the payload's event time; None to
        ignore attributes.
      roles: keys, or columns, that hold id, account and time. A message without one of these keys is read by
        the role's own name, under which dead letters have it.
    """

    default_time: dt.datetime | None = None
    max_bytes: int = MAX_MESSAGE_BYTES
    max_lead: dt.timedelta = dt.timedelta(days=1)
    max_age: dt.timedelta = dt.timedelta(days=3650)
    event_time_attribute: str | None = None
    roles: Roles = field(default_factory=Roles)


class Parsed(NamedTuple):
    """One TRANSACTIONS batch and one ERROR_RECORDS batch; together they hold every transaction once.

    Attributes:
      transactions, dead_letters: the batches.
      ids_derived: transactions that had no id.
      times_defaulted: transactions that had no time.
    """

    transactions: pa.RecordBatch
    dead_letters: pa.RecordBatch
    ids_derived: int = 0
    times_defaulted: int = 0


class _RejectedError(ValueError):
    """A message breaks a rule; the text is the reason."""


class _ArrayError(Exception):
    """A message is an array of transactions."""


def parse_messages(messages: MessageColumns, rules: MessageRules, is_element: bool = False) -> Parsed:
    """Decodes and validates a batch of messages. No content of a message makes it raise.

    >>> features = list(range(30))
    >>> payloads = [b'{"transaction_id": "t-1", "features": %s}' % str(features).encode(), b'{"id": 7}']
    >>> parsed = parse_messages(MessageColumns(payloads), MessageRules())
    >>> parsed.transactions.column("transaction_id").to_pylist()
    ['t-1']
    >>> parsed.dead_letters.column("errorMessage").to_pylist()  # doctest: +ELLIPSIS
    ['features: absent, and as named keys incomplete: Time, V1, V2, ... missing; the keys are id']

    Each object in a message that is an array is a transaction of its own, or a dead letter.

    Args:
      messages: the batch.
      rules: those that a message has to keep.
      is_element: whether the messages are elements of arrays; an array among them is rejected.
    """
    n = len(messages.payloads)
    attributes = messages.attributes or [{}] * n
    message_ids = messages.message_ids or [""] * n
    publish_times = messages.publish_times or [None] * n
    rows: list[Transaction] = []
    positions: list[int] = []
    reasons: dict[int, str] = {}
    arrays: list[int] = []
    ids_derived = times_defaulted = 0
    decode = _decoder(rules.roles)
    default_time = rules.default_time or dt.datetime.now(dt.UTC)
    default_bounds = event_time_bounds(default_time, rules)
    # Read once: this loop runs for every message.
    max_bytes, time_attribute = min(rules.max_bytes, MAX_LINE_BYTES - 1), rules.event_time_attribute
    for i, payload in enumerate(messages.payloads):
        try:
            row = _decode(payload, max_bytes, decode, rules.roles)
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
                times_defaulted += 1
            elif earliest <= moment <= latest:
                row.event_time = moment
            else:
                raise _RejectedError(outside_text(moment.isoformat(), (earliest, latest)))
            if row.transaction_id is None:
                row.transaction_id = derived_id(payload, message_ids[i])
                ids_derived += 1
        except _RejectedError as error:
            reasons[i] = str(error)
        except _ArrayError:
            if is_element:
                reasons[i] = "payload: an array within an array, not an object"
            else:
                arrays.append(i)
        else:
            rows.append(row)
            positions.append(i)
    matrix = _matrix(rows)
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=1))
    if not finite.all():
        for k in np.flatnonzero(~finite):
            name = FEATURES[int(np.flatnonzero(~np.isfinite(matrix[k]))[0])]
            value = rows[k].features[FEATURES.index(name)]
            reasons[positions[k]] = f"features: {name} is {shown(value)}, not a finite float32"
        rows = [row for row, fits in zip(rows, finite, strict=True) if fits]
        matrix = matrix[finite]
    rejected = sorted(reasons)
    parsed = Parsed(
        _transactions(rows, matrix),
        dead_letters(
            [messages.payloads[i] for i in rejected],
            [reasons[i] for i in rejected],
            "parse",
            [_traceable(attributes[i], message_ids[i]) for i in rejected],
        ),
        ids_derived,
        times_defaulted,
    )
    if arrays:
        columns = MessageColumns(messages.payloads, attributes, message_ids, publish_times)
        single = dataclasses.replace(rules, default_time=default_time)
        return _joined(parsed, parse_messages(_elements(columns, arrays), single, is_element=True))
    return parsed


def _elements(messages: MessageColumns, arrays: Sequence[int]) -> MessageColumns:
    """The elements of messages that are arrays, as messages; MESSAGE_ID/NUMBER is the id of one."""
    attributes, ids, times = (
        messages.attributes or (),
        messages.message_ids or (),
        messages.publish_times or (),
    )
    rows = [
        (bytes(element), attributes[i], ids[i] and f"{ids[i]}/{number}", times[i])
        for i in arrays
        for number, element in enumerate(_DECODE_ELEMENTS(messages.payloads[i]))
    ]
    payloads, *others = map(list, zip(*rows, strict=True))
    return MessageColumns(payloads, *others)


def _joined(first: Parsed, second: Parsed) -> Parsed:
    return Parsed(
        pa.concat_batches([first.transactions, second.transactions]),
        pa.concat_batches([first.dead_letters, second.dead_letters]),
        first.ids_derived + second.ids_derived,
        first.times_defaulted + second.times_defaulted,
    )


def derived_id(payload: bytes, message_id: str) -> str:
    """Derives the id of a transaction that has none: 128 bits over payload and message id, as 32 hex digits.

    >>> derived_id(b"{}", "m-1") == derived_id(b"{}", "m-1") != derived_id(b"{}", "m-2")
    True

    The same message redelivered gets the same id. Lines of a file have no message id, so two equal lines
    without an id count as one transaction.
    """
    return hashlib.blake2b(payload, digest_size=16, key=message_id.encode()[:64]).hexdigest()


@functools.cache
def _decoder(names: Roles) -> Callable[[bytes], Transaction]:
    """Makes the strict decoder of messages with these keys."""
    renamed = names.renamed()
    fields = [
        (f"own_{role}", _ROLE_TYPES[role] | None, msgspec.field(default=None, name=name))
        for role, name in renamed.items()
    ]
    if not fields:
        return msgspec.json.Decoder(Transaction).decode
    decode = msgspec.json.Decoder(msgspec.defstruct("Own", fields, bases=(Transaction,), gc=False)).decode

    def decode_own(payload: bytes) -> Transaction:
        row: Transaction = decode(payload)
        for role in renamed:
            value = getattr(row, f"own_{role}")
            if value is not None:
                setattr(row, role, value)
                if role == "event_time":  # event_time_derived speaks of the role's own key
                    row.event_time_derived = None
        return row

    return decode_own


def _decode(
    payload: bytes, max_bytes: int, decode: Callable[[bytes], Transaction], names: Roles
) -> Transaction:
    if len(payload) > max_bytes:
        if len(payload) < MAX_LINE_BYTES:
            raise _RejectedError(f"payload: {len(payload)} bytes, over the limit of {max_bytes}")
        raise _RejectedError(f"payload: at least {len(payload)} bytes, over the limit of {max_bytes}")
    try:
        if not payload.isascii():
            payload.decode("utf-8")  # the decoder does not look inside the strings that it skips
        row = decode(payload)
        if row.features is msgspec.UNSET:
            row.features = list(msgspec.structs.astuple(_DECODE_NAMED(payload)))
        return row
    except msgspec.ValidationError:
        pass
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _RejectedError(_reason(error)) from None
    return _read(payload, names)


def _read(payload: bytes, names: Roles) -> Transaction:
    """Reads a message that the strict decoder refuses, value by value."""
    try:
        message = _DECODE_ANY(payload)
    except msgspec.ValidationError:  # a number such as 1e999, which this decoder reads as infinite
        message = json.loads(payload, parse_int=_integer)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _RejectedError(_reason(error)) from None
    if isinstance(message, list) and any(isinstance(element, dict) for element in message):
        raise _ArrayError
    if not isinstance(message, dict):
        raise _RejectedError(f"payload: {shown(message)}, not an object or an array of objects")
    row = Transaction()
    try:
        row.features = features(message, FEATURES)
    except FeatureError as error:
        raise _RejectedError(f"features: {error}") from None
    derived = message.get("event_time_derived")
    if not (derived is None or isinstance(derived, bool)):
        raise _RejectedError(f"event_time_derived: {shown(derived)}, not true or false")
    row.transaction_id = _role(message, "transaction_id", names.transaction_id, roles.identifier)
    row.account_id = _role(message, "account_id", names.account_id, roles.identifier)
    row.event_time = _role(message, "event_time", names.event_time, roles.event_time)
    is_own = names.event_time == "event_time" or message.get(names.event_time) is None
    row.event_time_derived = derived if is_own else None
    return row


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < _MOST_DIGITS else math.inf


def _role(message: Mapping[str, Any], role: str, name: str, read: Callable[[Any], Any]) -> Any:
    value = message.get(name)
    if value is None:
        name, value = role, message.get(role)
    try:
        return read(value)
    except ValueError as error:
        raise _RejectedError(f"{name}: {error}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "payload: nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"payload: not UTF-8 ({error.reason} at byte {error.start})"
    return f"payload: not JSON ({error})"


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


def _attribute_time(name: str, attributes: Mapping[str, str]) -> dt.datetime | None:
    try:
        return roles.event_time(attributes[name])
    except ValueError as error:
        raise _RejectedError(f"attribute {name}: {error}") from None


def _traceable(attributes: Mapping[str, str], message_id: str) -> Mapping[str, str]:
    if not message_id:
        return attributes
    return {**attributes, (PUBSUB_MESSAGE_ID if MESSAGE_ID in attributes else MESSAGE_ID): message_id}


def _matrix(rows: Sequence[Transaction]) -> npt.NDArray[np.float32]:
    values = itertools.chain.from_iterable(row.features for row in rows)
    wide = np.fromiter(values, np.float64, len(rows) * N_FEATURES)
    with np.errstate(over="ignore"):
        return wide.astype(np.float32).reshape(-1, N_FEATURES)


def _transactions(rows: Sequence[Transaction], matrix: npt.NDArray[np.float32]) -> pa.RecordBatch:
    features = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), N_FEATURES)
    columns = [
        pa.array([row.transaction_id for row in rows], pa.string()),
        pa.array([row.account_id for row in rows], pa.string()),
        pa.array([row.event_time for row in rows], TRANSACTIONS.field("event_time").type),
        pa.array([row.event_time_derived is True for row in rows], pa.bool_()),
        features,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRANSACTIONS)

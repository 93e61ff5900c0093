"""Decodes transaction messages: bytes in, columns or a reason out. No Beam here.

docs/messages.md has the rules in one table. The usual message is decoded and checked in C. One that the
strict decoder refuses is read again, value by value, by the rules of features.values and features.roles,
which files, tables, servers and training also follow.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa

from common.limits import MAX_BATCH_BYTES, MAX_MESSAGE_BYTES
from features import roles
from features.roles import Roles
from transforms.dead_letter import dead_letters, traceable
from transforms.decode import MAX_LINE_BYTES, ArrayError, RejectedError, Transaction
from transforms.forms import Encoding, default_encoding
from transforms.schema import TRANSACTIONS
from transforms.trace import message_trace, passed_values, source_column

_DECODE_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw]).decode
_ELEMENT_ROWS: Final = 1024
"""Transactions out of arrays that are parsed at once."""
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
      encoding: the features of the model.
      pass_through: keys, or columns, that travel with the row as JSON. A dot enters a nested one.
      trace_messages: whether message id and publish time travel with the row.
    """

    default_time: dt.datetime | None = None
    max_bytes: int = MAX_MESSAGE_BYTES
    max_lead: dt.timedelta = dt.timedelta(days=1)
    max_age: dt.timedelta = dt.timedelta(days=3650)
    event_time_attribute: str | None = None
    roles: Roles = field(default_factory=Roles)
    encoding: Encoding = field(default_factory=default_encoding)
    pass_through: tuple[str, ...] = ()
    trace_messages: bool = False


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


def parse_messages(messages: MessageColumns, rules: MessageRules) -> Parsed:
    """Decodes and validates messages. No content of a message makes it raise.

    >>> features = list(range(30))
    >>> payloads = [b'{"transaction_id": "t-1", "features": %s}' % str(features).encode(), b'{"id": 7}']
    >>> parsed = parse_messages(MessageColumns(payloads), MessageRules())
    >>> parsed.transactions.column("transaction_id").to_pylist()
    ['t-1']
    >>> parsed.dead_letters.column("errorMessage").to_pylist()  # doctest: +ELLIPSIS
    ['features: absent, and as named keys incomplete: Time, V1, V2, ... missing; the keys are id']

    Args:
      messages: the batch.
      rules: those that a message has to keep.
    """
    parts = list(parse_parts(messages, rules))
    if len(parts) == 1:
        return parts[0]
    transactions, letters, ids, times = zip(*parts, strict=True)
    return Parsed(pa.concat_batches(transactions), pa.concat_batches(letters), sum(ids), sum(times))


def parse_parts(messages: MessageColumns, rules: MessageRules) -> Iterator[Parsed]:
    """Does the same in parts: first the messages, and then the transactions of those that are arrays.

    An array may hold many transactions, so that a part of them is bounded by rows and by bytes. The id of the
    message of an element is MESSAGE_ID/NUMBER.
    """
    default_time = rules.default_time or dt.datetime.now(dt.UTC)
    parsed, arrays = _parse(messages, rules, default_time)
    yield parsed
    for elements in _elements(messages, arrays):
        yield _parse(elements, rules, default_time, is_element=True)[0]


def _elements(messages: MessageColumns, arrays: Sequence[int]) -> Iterator[MessageColumns]:
    """The elements of the messages at these positions, as messages."""
    rows: list[tuple[bytes, Mapping[str, str], str, dt.datetime | None]] = []
    size = 0
    for i in arrays:
        attributes = messages.attributes[i] if messages.attributes else {}
        message_id = messages.message_ids[i] if messages.message_ids else ""
        published = messages.publish_times[i] if messages.publish_times else None
        # Each dead letter has a copy of them.
        width = sum(len(name) + len(value) for name, value in attributes.items())
        for number, element in enumerate(_DECODE_ELEMENTS(messages.payloads[i])):
            payload = bytes(element)
            rows.append((payload, attributes, message_id and f"{message_id}/{number}", published))
            size += len(payload) + width
            if len(rows) == _ELEMENT_ROWS or size >= MAX_BATCH_BYTES:
                yield MessageColumns(*map(list, zip(*rows, strict=True)))
                rows, size = [], 0
    if rows:
        yield MessageColumns(*map(list, zip(*rows, strict=True)))


def _parse(
    messages: MessageColumns, rules: MessageRules, default_time: dt.datetime, is_element: bool = False
) -> tuple[Parsed, list[int]]:
    """Parses messages; returns the positions of those that are arrays as well."""
    n = len(messages.payloads)
    attributes = messages.attributes or [{}] * n
    message_ids = messages.message_ids or [""] * n
    publish_times = messages.publish_times or [None] * n
    rows: list[Transaction] = []
    positions: list[int] = []
    reasons: dict[int, str] = {}
    arrays: list[int] = []
    unnamed: list[int] = []
    untimed: list[int] = []
    default_bounds = event_time_bounds(default_time, rules)
    # Read once: this loop runs for every message.
    form = rules.encoding.form
    decode = form.decoder(rules.roles, min(rules.max_bytes, MAX_LINE_BYTES - 1))
    time_attribute = rules.event_time_attribute
    for i, payload in enumerate(messages.payloads):
        try:
            row = decode(payload)
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
                untimed.append(i)
            elif earliest <= moment <= latest:
                row.event_time = moment
            else:
                raise RejectedError(outside_text(moment.isoformat(), moment < earliest, rules))
            if row.transaction_id is None:
                row.transaction_id = derived_id(payload, message_ids[i])
                unnamed.append(i)
        except RejectedError as error:
            reasons[i] = str(error)
        except ArrayError:
            if is_element:
                reasons[i] = "payload: an array within an array, not an object"
            else:
                arrays.append(i)
        else:
            rows.append(row)
            positions.append(i)
    times = pa.array([row.event_time for row in rows], TRANSACTIONS.field("event_time").type)
    assembled = form.assemble(rows, times)
    if assembled.reasons:
        kept = [k not in assembled.reasons for k in range(len(rows))]
        rows, times = list(itertools.compress(rows, kept)), times.filter(pa.array(kept))
        reasons |= {positions[k]: reason for k, reason in assembled.reasons.items()}
        positions = list(itertools.compress(positions, kept))
        assembled = assembled.kept()
    rejected = sorted(reasons)
    parsed = Parsed(
        _transactions(rows, times, [*assembled.columns(), *_trace(messages, positions, rules)], form.schema),
        dead_letters(
            [messages.payloads[i] for i in rejected],
            [reasons[i] for i in rejected],
            "parse",
            [traceable(attributes[i], message_ids[i]) for i in rejected],
        ),
        len(set(unnamed) - reasons.keys()) if unnamed else 0,
        len(set(untimed) - reasons.keys()) if untimed else 0,
    )
    return parsed, arrays


def derived_id(payload: bytes, message_id: str) -> str:
    """Derives the id of a transaction that has none: 128 bits over payload and message id, as 32 hex digits.

    >>> derived_id(b"{}", "m-1") == derived_id(b"{}", "m-1") != derived_id(b"{}", "m-2")
    True

    The same message redelivered gets the same id. Lines of a file have no message id, so two equal lines
    without an id count as one transaction.
    """
    return hashlib.blake2b(payload, digest_size=16, key=message_id.encode()[:64]).hexdigest()


def event_time_bounds(published: dt.datetime, rules: MessageRules) -> tuple[dt.datetime, dt.datetime]:
    """Returns the earliest and the latest event time of a message by its publish time."""
    try:
        return published - rules.max_age, published + rules.max_lead
    except OverflowError:  # a limit beyond the calendar limits nothing
        return (
            published - rules.max_age if published - _EARLIEST > rules.max_age else _EARLIEST,
            published + rules.max_lead if _LATEST - published > rules.max_lead else _LATEST,
        )


def outside_text(moment: str, is_early: bool, rules: MessageRules) -> str:
    """Returns the reason to reject an event time outside its bounds.

    It names the limits, which are those of the job. Moments would differ by message, and so would reasons.
    """
    limit = (
        f"--max_event_age_days={rules.max_age.days} before"
        if is_early
        else f"--max_event_lead_seconds={rules.max_lead.total_seconds():.0f} after"
    )
    return f"event_time: {moment} is more than {limit} its publication or the launch of the job"


def _attribute_time(name: str, attributes: Mapping[str, str]) -> dt.datetime | None:
    try:
        return roles.event_time(attributes[name])
    except ValueError as error:
        raise RejectedError(f"attribute {name}: {error}") from None


def _trace(messages: MessageColumns, positions: Sequence[int], rules: MessageRules) -> list[pa.Array]:
    """The columns of CARRIED_FIELDS for the messages at these positions."""
    ids = messages.message_ids and [messages.message_ids[i] for i in positions]
    attributes = messages.attributes and [messages.attributes[i] for i in positions]
    times = messages.publish_times if rules.trace_messages else None
    passed = rules.pass_through and passed_values(
        [messages.payloads[i] for i in positions], rules.pass_through
    )
    return message_trace(
        ids if rules.trace_messages else None,
        times and [times[i] for i in positions],
        passed or None,
        len(positions),
        source_column(ids or None, attributes or None, rules.trace_messages),
    )


def _transactions(
    rows: Sequence[Transaction], times: pa.Array, others: Sequence[pa.Array], schema: pa.Schema
) -> pa.RecordBatch:
    columns = [
        pa.array([row.transaction_id for row in rows], pa.string()),
        pa.array([row.account_id for row in rows], pa.string()),
        times,
        pa.array([row.event_time_derived is True for row in rows], pa.bool_()),
        *others,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)

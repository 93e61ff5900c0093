"""Decodes transaction messages: bytes in, columns or a reason out. No Beam here.

docs/messages.md has the rules in one table. The usual message is decoded and checked in C. One that the
strict decoder refuses is read again, value by value, by the rules of features.values and features.roles,
which files, tables, servers and training also follow.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from common.limits import MAX_BATCH_BYTES, MAX_MESSAGE_BYTES
from features import roles
from features.arrow import EVENT_TIME
from features.roles import EPOCH, Roles
from transforms.dead_letter import dead_letters, traceable
from transforms.decode import MAX_LINE_BYTES, ArrayError, RejectedError, Transaction
from transforms.forms import Encoding, default_encoding
from transforms.number_lists import (
    AT_ONCE,
    LEAST_MESSAGES,
    LEAST_TEXTS,
    Block,
    moments_of,
    read_times,
    since_epoch,
)
from transforms.plain_columns import all_false, texts
from transforms.trace import message_trace, passed_values, source_column

_DECODE_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw]).decode
_ELEMENT_ROWS: Final = 1024
"""Transactions out of arrays that are parsed at once."""
_EARLIEST: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_LATEST: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_FIRST_MICROS, _LAST_MICROS = ((moment - EPOCH) // _MICROSECOND for moment in (_EARLIEST, _LATEST))
_MOST_MICROS: Final = 2**61
"""A longer limit is beyond the calendar, from either end of it."""
_CENTURY: Final = 100 * 365 * 86_400_000_000


class MessageColumns(NamedTuple):
    """A batch of messages as columns of equal length; None where the source does not have the column."""

    payloads: Sequence[bytes]
    attributes: Sequence[Mapping[str, str]] | None = None
    message_ids: Sequence[str] | None = None
    publish_times: Sequence[dt.datetime | None] | None = None

    def at(self, positions: Sequence[int]) -> MessageColumns:
        """Returns the messages at these positions."""
        if len(positions) == len(self.payloads):
            return self
        return MessageColumns(
            [self.payloads[i] for i in positions],
            self.attributes and [self.attributes[i] for i in positions],
            self.message_ids and [self.message_ids[i] for i in positions],
            self.publish_times and [self.publish_times[i] for i in positions],
        )


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

    @cached_property
    def usual_lead(self) -> tuple[int, int]:
        """Microseconds by which an event time may lie ahead of the publish time, within a century."""
        return -min(_micros(self.max_age), _CENTURY), min(_micros(self.max_lead), _CENTURY)


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
    payloads = messages.payloads
    rows: list[Transaction] = []
    positions: list[int] = []
    rejected: dict[int, str] = {}
    arrays: list[int] = []
    form = rules.encoding.form
    limits = rules.roles, min(rules.max_bytes, MAX_LINE_BYTES - 1)
    decode = form.decoder(*limits)
    has_texts = len(payloads) >= LEAST_TEXTS
    decode_block = form.block_decoder(*limits, has_texts) if len(payloads) >= LEAST_MESSAGES else None
    blocks: list[tuple[int, Block]] = []
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(payloads), AT_ONCE)][::-1]
    while parts:
        part = parts.pop()
        some = payloads[part]
        if decode_block and len(some) >= LEAST_MESSAGES:
            if block := decode_block(some):
                blocks.append((len(rows), block))
                rows += block.rows
                positions += range(part.start, part.start + len(some))
                continue
            middle = part.start + len(some) // 2
            parts += [slice(middle, part.start + len(some)), slice(part.start, middle)]
            continue
        for i, payload in enumerate(some, part.start):
            try:
                rows.append(decode(payload))
            except RejectedError as error:
                rejected[i] = str(error)
            except ArrayError:
                if is_element:
                    rejected[i] = "payload: an array within an array, not an object"
                else:
                    arrays.append(i)
            else:
                positions.append(i)

    def again(k: int) -> Transaction:
        return decode(payloads[positions[k]])

    timed = _times(rows, messages.at(positions), rules, default_time, again, has_texts)
    assembled = form.assemble(rows, timed.column, blocks)
    ids, unnamed = _ids(rows, positions, messages)
    derived = [row.event_time_derived is True for row in rows]
    columns = [
        ids,
        texts([row.account_id for row in rows]),
        timed.column,
        pa.array(derived, pa.bool_()) if any(derived) else all_false(len(rows)),
    ]
    # A message that cannot be read says so, whatever its time.
    refused = {**assembled.reasons, **timed.reasons, **timed.unread}
    if refused:
        rejected |= {positions[k]: reason for k, reason in refused.items()}
        kept = [k not in refused for k in range(len(rows))]
        columns = [column.filter(pa.array(kept)) for column in columns]
        assembled = assembled.kept(kept)
        positions = list(itertools.compress(positions, kept))
    columns += [*assembled.columns(), *_trace(messages.at(positions), rules)]
    parsed = Parsed(
        pa.RecordBatch.from_arrays(columns, schema=form.schema),
        _letters(messages, rejected),
        len(set(unnamed) - refused.keys()),
        len(set(timed.defaulted) - refused.keys()),
    )
    return parsed, arrays


def _letters(messages: MessageColumns, rejected: Mapping[int, str]) -> pa.RecordBatch:
    """The dead letters of messages by their positions and reasons."""
    if not rejected:
        return dead_letters([], [], "parse")
    numbers = sorted(rejected)
    payloads, attributes, message_ids, _ = messages.at(numbers)
    traced = map(traceable, attributes or [{}] * len(numbers), message_ids or [""] * len(numbers))
    return dead_letters(payloads, [rejected[i] for i in numbers], "parse", list(traced))


def _ids(
    rows: Sequence[Transaction], positions: Sequence[int], messages: MessageColumns
) -> tuple[pa.Array, list[int]]:
    """The column of ids, and the numbers of the rows whose message had none."""
    ids = [row.transaction_id for row in rows]
    column = texts(ids)
    if not column.null_count:
        return column, []
    unnamed = [k for k, each in enumerate(ids) if each is None]
    for k in unnamed:
        i = positions[k]
        ids[k] = derived_id(messages.payloads[i], messages.message_ids[i] if messages.message_ids else "")
    return pa.array(ids, pa.string()), unnamed


class _Times(NamedTuple):
    """The column of event times.

    Attributes:
      column: of all rows.
      reasons: why a row is refused by its time.
      defaulted: the rows whose message had no time.
      unread: the reasons of rows whose message cannot be decoded after all.
    """

    column: pa.Array
    reasons: dict[int, str]
    defaulted: list[int]
    unread: dict[int, str]


def _times(
    rows: list[Transaction],
    messages: MessageColumns,
    rules: MessageRules,
    default: dt.datetime,
    again: Callable[[int], Transaction],
    has_texts: bool,
) -> _Times:
    """Reads the event times of rows, and sets `event_time_derived` where another place has them."""
    reasons: dict[int, str] = {}
    unread: dict[int, str] = {}
    moments: list[Any] = [row.event_time for row in rows]
    column = read_times(moments) if has_texts and not rules.event_time_attribute else None
    if has_texts and column is None:
        moments = moments_of(rows, again, unread)
    if rules.event_time_attribute:
        for k, attributes in enumerate(messages.attributes or ()):
            if rules.event_time_attribute in attributes:
                try:
                    moments[k] = _attribute_time(rules.event_time_attribute, attributes)
                except RejectedError as error:
                    reasons[k] = str(error)
                rows[k].event_time_derived = False
    published = messages.publish_times
    defaulted = [] if column is not None else [k for k, moment in enumerate(moments) if moment is None]
    for k in defaulted:
        moments[k] = (published and published[k]) or default
        rows[k].event_time_derived = True
    if column is None:
        column = pa.Array.from_buffers(EVENT_TIME, len(rows), [None, pa.py_buffer(since_epoch(moments))])
    micros = column.view(pa.int64()).to_numpy()
    origin: Any = (default - EPOCH) // _MICROSECOND
    if published and any(published):
        origin = since_epoch([each or default for each in published])
    lead = micros - origin
    least, most = rules.usual_lead
    # The usual case: near the publish time, so that no bound is beyond the calendar.
    if len(lead) and (np.minimum.reduce(lead) < least or np.maximum.reduce(lead) > most):
        most_age, most_lead = _micros(rules.max_age), _micros(rules.max_lead)
        is_early = micros < np.maximum(origin - most_age, _FIRST_MICROS)
        is_late = micros > np.minimum(origin + most_lead, _LAST_MICROS)
        for k in np.flatnonzero(is_early | is_late).tolist():
            moment: Any = again(k).event_time if type(moments[k]) is str else moments[k]
            reasons.setdefault(k, outside_text(moment.isoformat(), bool(is_early[k]), rules))
    return _Times(column, reasons, defaulted, unread)


def _micros(limit: dt.timedelta) -> int:
    return min(limit // _MICROSECOND, _MOST_MICROS)


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


def _trace(messages: MessageColumns, rules: MessageRules) -> Sequence[pa.Array]:
    """The columns of CARRIED_FIELDS for messages."""
    passed = passed_values(messages.payloads, rules.pass_through) if rules.pass_through else None
    ids, is_traced = messages.message_ids or None, rules.trace_messages
    return message_trace(
        ids if is_traced else None,
        (messages.publish_times or None) if is_traced else None,
        passed,
        len(messages.payloads),
        source_column(ids, messages.attributes or None, is_traced),
    )

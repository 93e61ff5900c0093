"""Parses messages to TRANSACTIONS record batches, with one dead letter per message that breaks a rule."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage

import transforms.coder  # noqa: F401  registers the coder of record batches
from transforms import metrics
from transforms.columnar import to_transactions
from transforms.gather import Messages
from transforms.message import MessageColumns, MessageRules, Parsed, parse_parts
from transforms.observations import letter_counters
from transforms.trace import READ_AT, stamped

DEAD_LETTER_TAG: Final = "dead_letters"
"""Tag of the second output of every transform that can reject a row."""


class ParseOutput(NamedTuple):
    """Output of Parse: TRANSACTIONS batches, and ERROR_RECORDS batches."""

    transactions: beam.PCollection
    dead_letters: beam.PCollection


@dataclass
class Parse(beam.PTransform):
    """Decodes and validates messages.

    list of PubsubMessage | list of bytes  ->  TRANSACTIONS batch  +  ERROR_RECORDS batch

    >>> with beam.Pipeline("FnApiRunner") as p:
    ...     parsed = p | beam.Create([[b"not JSON"]]) | Parse()
    ...     _ = parsed.dead_letters | beam.Map(lambda batch: print(batch.column("stage").to_pylist()))
    ['parse']

    Attributes:
      rules: those that a message has to keep; see docs/messages.md.
    """

    rules: MessageRules = field(default_factory=MessageRules)

    def expand(self, messages: beam.PCollection) -> ParseOutput:
        """Lists of messages to transactions and dead letters."""
        return ParseOutput(*(messages | two_outputs(_ParseFn(self.rules))))


@dataclass
class ParseColumns(beam.PTransform):
    """Validates batches of a columnar source in the ULB layout.

    record batch  ->  TRANSACTIONS batch  +  ERROR_RECORDS batch

    Attributes:
      default_event_time: event time of rows that have none; timezone-aware, fixed at launch.
      rules: roles of columns, and how far an event time may lie from that; see to_transactions.
    """

    default_event_time: dt.datetime
    rules: MessageRules = field(default_factory=MessageRules)

    def expand(self, batches: beam.PCollection) -> ParseOutput:
        """Columnar batches to transactions and dead letters."""
        return ParseOutput(*(batches | two_outputs(_ParseColumnsFn(self.default_event_time, self.rules))))


def two_outputs(fn: beam.DoFn) -> beam.PTransform:
    """Makes a ParDo of `fn` with two outputs of record batches: the main one, and dead letters."""
    types = {DEAD_LETTER_TAG: pa.RecordBatch}
    typed = beam.ParDo(fn).with_output_types(pa.RecordBatch, **types)
    return typed.with_outputs(DEAD_LETTER_TAG, main="main")


def message_columns(messages: Sequence[PubsubMessage] | Sequence[bytes]) -> MessageColumns:
    """Makes columns of a list that holds either Pub/Sub messages or bare payloads, not both.

    >>> message_columns([b"{}", b"[]"]).payloads
    [b'{}', b'[]']
    """
    if not messages or isinstance(messages[0], bytes):
        return MessageColumns(cast(Sequence[bytes], messages))
    messages = cast(Sequence[PubsubMessage], messages)
    return MessageColumns(
        [message.data for message in messages],
        [message.attributes or {} for message in messages],
        [message.message_id or "" for message in messages],
        [message.publish_time for message in messages],
    )


class _CountingFn(beam.DoFn):
    def __init__(self) -> None:
        self._rows_in = metrics.counter(metrics.ROWS_IN)
        self._dead = metrics.counter(metrics.DEAD_LETTERS)

    def _emit(self, parsed: Parsed, began: int) -> Iterable[pa.RecordBatch]:
        # By the outcome: a message that is an array counts as the transactions in it.
        self._rows_in.inc(parsed.transactions.num_rows + parsed.dead_letters.num_rows)
        metrics.add(
            {metrics.IDS_DERIVED: parsed.ids_derived, metrics.TIMES_DEFAULTED: parsed.times_defaulted}
        )
        if parsed.transactions.num_rows:
            yield stamped(parsed.transactions, READ_AT, began)
        if parsed.dead_letters.num_rows:
            self._dead.inc(parsed.dead_letters.num_rows)
            metrics.add(letter_counters(parsed.dead_letters))
            yield beam.pvalue.TaggedOutput(DEAD_LETTER_TAG, parsed.dead_letters)


class _ParseFn(_CountingFn):
    def __init__(self, rules: MessageRules) -> None:
        super().__init__()
        self._rules = rules

    def process(
        self, element: Messages | Sequence[PubsubMessage] | Sequence[bytes]
    ) -> Iterable[pa.RecordBatch]:
        began = time.time_ns() // 1000
        for parsed in parse_parts(message_columns(element), self._rules):
            yield from self._emit(parsed, began)


class _ParseColumnsFn(_CountingFn):
    def __init__(self, default_event_time: dt.datetime, rules: MessageRules) -> None:
        super().__init__()
        self._default_event_time = default_event_time
        self._rules = rules

    def process(self, element: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        began = time.time_ns() // 1000
        parsed = to_transactions(element, self._default_event_time, self._rules)
        return self._emit(parsed, began)

"""Alert messages that do not flood: a pause for each account, and a limit for the whole job.

The table keeps every alert, marked where the topic got no message of it. Time is `scored_at`, which a row has
when it is alerted: a bundle that is run again decides the same.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
from apache_beam.coders import PickleCoder
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

import transforms.coder  # noqa: F401  registers the coder of record batches
from model.thresholds import SEVERITIES
from transforms import metrics
from transforms.schema import ALERTS
from transforms.topics import row_messages

BUCKETS: Final = 64
"""Keys of the state, for a state of each account would cost a call each. Running jobs have states in them."""
REMEMBERED: Final = 32
"""Alerts of an account that are known again when they are delivered once more."""
KEPT_MICROS: Final = 86_400_000_000
"""An account without an alert for so long is forgotten, and how many were suppressed; the table has these."""
SUPPRESSED: Final = "suppressed"
SUPPRESSED_BEFORE: Final = "suppressed_before"
_MINUTE: Final = 60_000_000
_SENT: Final = "sent"
"""Column between the steps: whether a message is to go out."""
_SCHEMA: Final = ALERTS.append(pa.field(_SENT, pa.bool_(), nullable=False))
_MESSAGES: Final = "messages"


@dataclass
class Account:
    """The alerts of an account since its last message.

    Attributes:
      at: time of the last message, in microseconds since the epoch.
      last: time of the last alert.
      severity: of the last message, as an index into SEVERITIES.
      suppressed: alerts without a message since.
      known: hash of the id of the latest alerts -> whether there was a message of it.
    """

    at: int
    last: int
    severity: int
    suppressed: int = 0
    known: dict[int, bool] = field(default_factory=dict)


class Decision(NamedTuple):
    """The fate of an alert.

    Attributes:
      is_suppressed: the topic gets no message of it, now or at its first delivery.
      is_sent: a message goes out now.
      before: alerts that were suppressed since the message before; 0 without a message.
    """

    is_suppressed: bool
    is_sent: bool
    before: int


def decide(
    accounts: MutableMapping[str, Account],
    account: str,
    identifier: str,
    severity: int,
    at: int,
    cooldown: int,
) -> Decision:
    """Decides about one alert, and notes it.

    >>> accounts = {}
    >>> for minute, severity in ((0, 1), (1, 1), (2, 2), (11, 2), (12, 1)):
    ...     print(*decide(accounts, "a", f"t{minute}", severity, minute, cooldown=10))
    False True 0
    True False 0
    False True 1
    True False 0
    False True 1

    Args:
      accounts: the state, by account.
      account: that made the transaction.
      identifier: of the transaction: an alert that is delivered again has the fate that it had.
      severity: index into SEVERITIES.
      at: time of the alert.
      cooldown: the pause after a message, in the same unit.
    """
    known = zlib.crc32(identifier.encode())
    found = accounts.get(account)
    if found is None:
        found = accounts[account] = Account(at - cooldown, at, 0)
    if (was_sent := found.known.get(known)) is not None:
        return Decision(not was_sent, False, 0)
    found.last = max(found.last, at)
    is_sent = at - found.at >= cooldown or severity > found.severity
    found.known[known] = is_sent
    if len(found.known) > REMEMBERED:
        del found.known[next(iter(found.known))]
    if not is_sent:
        found.suppressed += 1
        return Decision(True, False, 0)
    before, found.suppressed, found.at, found.severity = found.suppressed, 0, at, severity
    return Decision(False, True, before)


def cool(alerts: pa.RecordBatch, accounts: MutableMapping[str, Account], cooldown: int) -> pa.RecordBatch:
    """Marks the rows of an ALERTS batch; those without an account all get a message.

    Args:
      alerts: a batch.
      accounts: the state, which is changed; accounts without an alert for KEPT_MICROS are removed.
      cooldown: microseconds.

    Returns:
      The batch with the column `sent`.
    """
    times = alerts["scored_at"].cast(pa.int64()).to_pylist()
    decisions = [
        Decision(False, True, 0)
        if account is None
        else decide(accounts, account, identifier, SEVERITIES.index(severity), at, cooldown)
        for account, identifier, severity, at in zip(
            *(alerts[name].to_pylist() for name in ("account_id", "transaction_id", "severity")),
            times,
            strict=True,
        )
    ]
    oldest = max(times, default=0) - max(KEPT_MICROS, cooldown)
    for name in [name for name, account in accounts.items() if account.last < oldest]:
        del accounts[name]
    return _marked(alerts, decisions)


@dataclass
class Minute:
    """The messages of a minute.

    Attributes:
      number: of the minute since the epoch.
      sent: messages in it.
      suppressed: alerts over the limit since the last summary.
    """

    number: int = -1
    sent: int = 0
    suppressed: int = 0


def limit(alerts: pa.RecordBatch, minute: Minute, most: int) -> tuple[pa.RecordBatch, list[PubsubMessage]]:
    """Lets at most so many messages of a minute through; says once a minute that there are more.

    Args:
      alerts: a batch with the column `sent`.
      minute: the state, which is changed.
      most: messages a minute.

    Returns:
      The batch, with the rows over the limit marked, and the summaries.
    """
    decisions, summaries = [], []
    columns = (SUPPRESSED, _SENT, SUPPRESSED_BEFORE)
    times = alerts["scored_at"].cast(pa.int64()).to_pylist()
    for is_suppressed, is_sent, before, at in zip(
        *(alerts[name].to_pylist() for name in columns), times, strict=True
    ):
        if at // _MINUTE > minute.number:
            minute.number, minute.sent = at // _MINUTE, 0
        if is_sent and minute.sent >= most:
            if minute.sent == most:
                summaries.append(_summary(minute, most))
                minute.suppressed = 0
            is_suppressed, is_sent = True, False
            minute.suppressed += 1
            minute.sent = most + 1
        elif is_sent:
            minute.sent += 1
        decisions.append(Decision(is_suppressed, is_sent, before or 0))
    return _marked(alerts, decisions), summaries


def _summary(minute: Minute, most: int) -> PubsubMessage:
    body = {
        "summary": "alerts are suppressed: more than --max_alert_messages_per_minute",
        "minute": np.datetime64(minute.number * _MINUTE, "us"),
        "max_alert_messages_per_minute": most,
        "suppressed_since_last_summary": minute.suppressed,
    }
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC
    return PubsubMessage(orjson.dumps(body, option=options), {"kind": "summary"})


def _marked(alerts: pa.RecordBatch, decisions: list[Decision]) -> pa.RecordBatch:
    columns = {
        SUPPRESSED: pa.array([each.is_suppressed for each in decisions], pa.bool_()),
        SUPPRESSED_BEFORE: pa.array([each.before or None for each in decisions], pa.int64()),
        _SENT: pa.array([each.is_sent for each in decisions], pa.bool_()),
    }
    return pa.RecordBatch.from_arrays(
        [columns[name] if name in columns else alerts[name] for name in _SCHEMA.names], schema=_SCHEMA
    )


class Quiet(NamedTuple):
    """Output of Cooldown: ALERTS batches, all of them; messages."""

    alerts: beam.PCollection
    messages: beam.PCollection


@dataclass
class Cooldown(beam.PTransform):
    """Chooses the alerts that get a message.

    ALERTS batch  ->  the same, marked  +  PubsubMessage

    Attributes:
      seconds: the pause of an account after a message; a higher severity passes. 0 for none.
      per_minute: the most messages of the whole job in a minute; 0 for any number.
    """

    seconds: float = 0
    per_minute: int = 0

    def expand(self, alerts: beam.PCollection) -> Quiet:
        """Alerts by bucket of their account, then by one key, then to messages."""
        buckets = BUCKETS if self.seconds else 1
        keyed = alerts | "Divide" >> beam.FlatMap(_divided, buckets).with_output_types(
            tuple[int, pa.RecordBatch]
        )
        cool_down = beam.ParDo(_CoolFn(int(self.seconds * 1_000_000)))
        marked = keyed | "Cool down" >> cool_down.with_output_types(tuple[int, pa.RecordBatch])
        summaries: list[beam.PCollection] = []
        if self.per_minute:
            limited = marked | "Limit" >> beam.ParDo(_LimitFn(self.per_minute)).with_outputs(
                _MESSAGES, main="marked"
            )
            marked, more = limited
            summaries.append(more)
        stripped = marked | "Strip" >> beam.Map(_stripped).with_output_types(pa.RecordBatch)
        rows = marked | "Messages" >> beam.FlatMap(_messages).with_output_types(PubsubMessage)
        return Quiet(stripped, (rows, *summaries) | "All messages" >> beam.Flatten())


def bucket_of(account: str, buckets: int = BUCKETS) -> int:
    """Returns the bucket of an account, the same in every process and at all times."""
    return zlib.crc32(account.encode()) % buckets


def _divided(alerts: pa.RecordBatch, buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Divides a batch by the bucket of the account; rows without an account go to that of an empty name."""
    names = alerts["account_id"].to_pylist()
    places = np.array([bucket_of(name or "", buckets) for name in names])
    for bucket in np.unique(places).tolist():
        yield bucket, alerts.take(pa.array(np.flatnonzero(places == bucket)))


_ACCOUNTS_PARAM: Final[Any] = beam.DoFn.StateParam(ReadModifyWriteStateSpec("accounts", PickleCoder()))
_MINUTE_PARAM: Final[Any] = beam.DoFn.StateParam(ReadModifyWriteStateSpec("minute", PickleCoder()))


class _CoolFn(beam.DoFn):
    """A bucket's alerts in; the same, marked, under one key out."""

    def __init__(self, cooldown: int) -> None:
        self._cooldown = cooldown

    def process(
        self, element: tuple[int, pa.RecordBatch], accounts: Any = _ACCOUNTS_PARAM
    ) -> Iterable[tuple[int, pa.RecordBatch]]:
        """Marks a batch."""
        _, alerts = element
        if not self._cooldown:
            yield 0, _marked(alerts, [Decision(False, True, 0)] * alerts.num_rows)
            return
        # Beam may hold what it has read, and give it again after a bundle that failed.
        state: dict[str, Account] = copy.deepcopy(accounts.read()) or {}
        marked = cool(alerts, state, self._cooldown)
        accounts.write(state)
        _count(marked)
        yield 0, marked


class _LimitFn(beam.DoFn):
    """All marked alerts in; the same, with those over the limit marked, and summaries out."""

    def __init__(self, most: int) -> None:
        self._most = most

    def process(self, element: tuple[int, pa.RecordBatch], minute: Any = _MINUTE_PARAM) -> Iterable[Any]:
        """Marks a batch."""
        state = copy.deepcopy(minute.read()) or Minute()
        key, alerts = element
        marked, summaries = limit(alerts, state, self._most)
        minute.write(state)
        _count(marked, alerts)
        yield key, marked
        for summary in summaries:
            yield beam.pvalue.TaggedOutput(_MESSAGES, summary)


def _count(marked: pa.RecordBatch, before: pa.RecordBatch | None = None) -> None:
    known = 0 if before is None else before[SUPPRESSED].true_count
    metrics.add({metrics.ALERTS_SUPPRESSED: marked[SUPPRESSED].true_count - known})


def _stripped(element: tuple[int, pa.RecordBatch]) -> pa.RecordBatch:
    return element[1].select(ALERTS.names)


def _messages(element: tuple[int, pa.RecordBatch]) -> list[PubsubMessage]:
    sent = element[1].filter(element[1][_SENT])
    return row_messages(sent.select([name for name in ALERTS.names if name != SUPPRESSED]))

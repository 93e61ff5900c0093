"""Alert messages that do not flood: a pause for each account, and a limit for the whole job.

The table keeps every alert, marked where the topic got no message of it. Time is `scored_at`, which a row has
when it is alerted: a bundle that is run again decides the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BytesCoder, PickleCoder
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

import transforms.coder  # noqa: F401  registers the coder of record batches
from features.history.hashing import bucket_of, hashes
from model.thresholds import SEVERITIES
from transforms import metrics
from transforms.cooldown_accounts import KEPT_MICROS, Account, Accounts
from transforms.schema import ALERTS
from transforms.topics import row_messages

BUCKETS: Final = 1024
"""Keys of the state. A state of each account would cost a call each; a batch reads its buckets as a whole."""
SUPPRESSED: Final = "suppressed"
SUPPRESSED_BEFORE: Final = "suppressed_before"
_MINUTE: Final = 60_000_000
_FATE: Final = "fate"
"""Column between the steps: a Fate."""
_SCHEMA: Final = ALERTS.append(pa.field(_FATE, pa.int8(), nullable=False))
_MESSAGES: Final = "messages"


class Fate(IntEnum):
    """The fate of an alert, as far as the steps have decided."""

    SENT = 0
    """A message goes out."""
    PAUSED = 1
    """The account has its pause: there is no message, now or at the first delivery."""
    REPEATED = 2
    """Passed the pause at its first delivery: no message goes out again."""
    OVER = 3
    """Passed the pause, and is over the limit of the job."""


class Decision(NamedTuple):
    """A decision about an alert.

    Attributes:
      fate: of the alert.
      before: alerts of the account that were suppressed since the message before; 0 without a message.
    """

    fate: Fate
    before: int = 0


def decide(
    accounts: Accounts, account: str, identifier: str, severity: int, at: int, cooldown: int
) -> Decision:
    """Decides about one alert, and notes it.

    >>> accounts = Accounts()
    >>> for minute, severity in ((0, 1), (1, 1), (2, 2), (11, 2), (12, 1)):
    ...     fate, before = decide(accounts, "a", f"t{minute}", severity, minute, cooldown=10)
    ...     print(fate.name, before)
    SENT 0
    PAUSED 0
    SENT 1
    PAUSED 0
    SENT 1

    Args:
      accounts: the state.
      account: that made the transaction.
      identifier: of the transaction: an alert that is delivered again has the fate that it had.
      severity: index into SEVERITIES.
      at: time of the alert.
      cooldown: the pause after a message, in the same unit; 0 for none.
    """
    found = accounts.get(account) or accounts.add(account, Account(at - cooldown, at))
    if (is_told := found.is_told(identifier)) is not None:
        return Decision(Fate.REPEATED if is_told else Fate.PAUSED)
    found.last = max(found.last, at)
    is_sent = not cooldown or at - found.at >= cooldown or severity > found.severity
    found.remember(identifier, is_sent)
    if not is_sent:
        found.suppressed += 1
        return Decision(Fate.PAUSED)
    before, found.suppressed, found.at, found.severity = found.suppressed, 0, at, severity
    return Decision(Fate.SENT, before)


def cool(alerts: pa.RecordBatch, accounts: Accounts, cooldown: int) -> pa.RecordBatch:
    """Decides about the rows of an ALERTS batch. Those without an account have no pause.

    Args:
      alerts: a batch.
      accounts: the state, which is changed.
      cooldown: microseconds; 0 for no pause at all.

    Returns:
      The batch with the column `fate`.
    """
    columns = (alerts[name].to_pylist() for name in ("account_id", "transaction_id", "severity"))
    decisions = [
        decide(
            accounts, account or "", identifier, SEVERITIES.index(severity), at, cooldown if account else 0
        )
        for account, identifier, severity, at in zip(*columns, _times(alerts), strict=True)
    ]
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
      alerts: a batch with fates.
      minute: the state, which is changed.
      most: messages a minute.

    Returns:
      The batch, where rows over the limit have the fate OVER, and the summaries.
    """
    decisions, summaries = [], []
    for (fate, before), at in zip(_decisions(alerts), _times(alerts), strict=True):
        if at // _MINUTE > minute.number:
            minute.number, minute.sent = at // _MINUTE, 0
        if fate == Fate.SENT and minute.sent >= most:
            if minute.sent == most:
                summaries.append(_summary(minute, most))
                minute.suppressed = 0
            fate = Fate.OVER
            minute.suppressed += 1
            minute.sent = most + 1
        elif fate == Fate.SENT:
            minute.sent += 1
        decisions.append(Decision(fate, before))
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


def settle(alerts: pa.RecordBatch, accounts: Accounts) -> pa.RecordBatch:
    """Keeps what the limit held back, and adds it to the next message of the account.

    For the pause, a message that the limit holds back is sent. So this step notes how many alerts the next
    message has to tell of, and which alerts get no message when they are delivered again. Rows without an
    account count as one account.

    Args:
      alerts: a batch with fates, after the limit.
      accounts: the state of this step, which is changed.

    Returns:
      The batch, where rows that the limit held back are suppressed.
    """
    decisions = []
    columns = (alerts[name].to_pylist() for name in ("account_id", "transaction_id"))
    for (fate, before), account, identifier, at in zip(
        _decisions(alerts), *columns, _times(alerts), strict=True
    ):
        found = accounts.get(account or "")
        if found is None and fate == Fate.OVER:
            found = accounts.add(account or "", Account(at, at))
        if found is not None:
            is_told = found.is_told(identifier)
            if fate == Fate.OVER:
                found.suppressed += before + (is_told is None)
                found.last = max(found.last, at)
                found.remember(identifier, is_told or False)
                before = 0
            elif fate == Fate.SENT:
                # One that was held back, and passes when it is delivered again, is not suppressed any more.
                before, found.suppressed = before + found.suppressed - (is_told is False), 0
                found.forget(identifier)
                found.known = dict.fromkeys(found.known, True)
            elif is_told is not None:
                fate = Fate.OVER
        decisions.append(Decision(fate, before))
    return _marked(alerts, decisions)


def _times(alerts: pa.RecordBatch) -> list[int]:
    times: list[int] = alerts["scored_at"].cast(pa.int64()).to_pylist()
    return times


def _decisions(alerts: pa.RecordBatch) -> Iterator[Decision]:
    for fate, before in zip(alerts[_FATE].to_pylist(), alerts[SUPPRESSED_BEFORE].to_pylist(), strict=True):
        yield Decision(Fate(fate), before or 0)


def _marked(alerts: pa.RecordBatch, decisions: list[Decision]) -> pa.RecordBatch:
    is_suppressed = [fate in (Fate.PAUSED, Fate.OVER) for fate, _ in decisions]
    columns = {
        SUPPRESSED: pa.array(is_suppressed, pa.bool_()),
        SUPPRESSED_BEFORE: pa.array([before or None for _, before in decisions], pa.int64()),
        _FATE: pa.array([fate for fate, _ in decisions], pa.int8()),
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
        """Alerts by bucket of their account, by one key, by bucket again; then to messages."""
        keyed = tuple[int, pa.RecordBatch]
        cool_fn = beam.ParDo(_CoolFn(int(self.seconds * 1_000_000))).with_output_types(pa.RecordBatch)
        marked = alerts | "Divide" >> beam.FlatMap(divided).with_output_types(keyed) | "Cool down" >> cool_fn
        summaries: list[beam.PCollection] = []
        if self.per_minute:
            limited, more = (
                marked
                | "One key" >> beam.WithKeys(0).with_output_types(keyed)
                | "Limit" >> beam.ParDo(_LimitFn(self.per_minute)).with_outputs(_MESSAGES, main="marked")
            )
            divide = beam.FlatMap(divided).with_output_types(keyed)
            settle_fn = beam.ParDo(_SettleFn()).with_output_types(pa.RecordBatch)
            marked = limited | "Divide again" >> divide | "Settle" >> settle_fn
            summaries.append(more)
        stripped = marked | "Strip" >> beam.Map(_stripped).with_output_types(pa.RecordBatch)
        rows = marked | "Messages" >> beam.FlatMap(_messages).with_output_types(PubsubMessage)
        return Quiet(stripped, (rows, *summaries) | "All messages" >> beam.Flatten())


def divided(alerts: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Divides a batch by the bucket of the account; rows without an account have one bucket."""
    places = bucket_of(hashes(alerts["account_id"]), BUCKETS)
    for bucket in np.unique(places).tolist():
        yield bucket, alerts.take(pa.array(np.flatnonzero(places == bucket)))


# Beam may hold what it has read, and give it again after a bundle that failed: bytes do not change.
_ACCOUNTS_PARAM: Final[Any] = beam.DoFn.StateParam(ReadModifyWriteStateSpec("packed", BytesCoder()))
_MINUTE_PARAM: Final[Any] = beam.DoFn.StateParam(ReadModifyWriteStateSpec("minute", PickleCoder()))


class _CoolFn(beam.DoFn):
    """A bucket's alerts in, the same with their fates out."""

    def __init__(self, cooldown: int) -> None:
        self._cooldown = cooldown

    def process(
        self, element: tuple[int, pa.RecordBatch], packed: Any = _ACCOUNTS_PARAM
    ) -> Iterable[pa.RecordBatch]:
        """Decides about a batch."""
        accounts = Accounts(packed.read())
        yield cool(element[1], accounts, self._cooldown)
        packed.write(accounts.to_bytes(max(KEPT_MICROS, self._cooldown)))


class _LimitFn(beam.DoFn):
    """All alerts in; the same, with those over the limit marked, and summaries out."""

    def __init__(self, most: int) -> None:
        self._most = most

    def process(self, element: tuple[int, pa.RecordBatch], minute: Any = _MINUTE_PARAM) -> Iterable[Any]:
        """Decides about a batch."""
        state = copy.deepcopy(minute.read()) or Minute()
        marked, summaries = limit(element[1], state, self._most)
        minute.write(state)
        yield marked
        for summary in summaries:
            yield beam.pvalue.TaggedOutput(_MESSAGES, summary)


class _SettleFn(beam.DoFn):
    """A bucket's alerts after the limit in, the same with their last fates out."""

    def process(
        self, element: tuple[int, pa.RecordBatch], packed: Any = _ACCOUNTS_PARAM
    ) -> Iterable[pa.RecordBatch]:
        """Decides about a batch."""
        accounts = Accounts(packed.read())
        settled = settle(element[1], accounts)
        if len(accounts):
            packed.write(accounts.to_bytes())
        yield settled


def _stripped(marked: pa.RecordBatch) -> pa.RecordBatch:
    metrics.add({metrics.ALERTS_SUPPRESSED: marked[SUPPRESSED].true_count})
    return marked.select(ALERTS.names)


def _messages(marked: pa.RecordBatch) -> list[PubsubMessage]:
    is_sent = pc.equal(marked[_FATE], pa.scalar(Fate.SENT.value, pa.int8()))
    names = [name for name in ALERTS.names if name != SUPPRESSED]
    return row_messages(marked.filter(is_sent).select(names))

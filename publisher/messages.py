"""Messages made from transactions: JSON payloads, attributes, and the malformed ones among them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from model.synthetic.generator import BLOCK, TransactionGenerator, Transactions
from model.synthetic.parameters import CYCLE_SECONDS
from publisher import malformed

EVENT_TIME: Final = "event_time"
PLANTED_KIND: Final = "planted_kind"
MALFORMED_KIND: Final = "malformed_kind"

_MALFORMED_STREAM: Final = 4


@dataclass(frozen=True)
class Messages:
    """A run of consecutive messages, in columns of n entries.

    Attributes:
      transactions: what they were made from, spoiled ones included.
      event_times: RFC 3339 in UTC, to the millisecond.
      payloads: JSON in UTF-8, or whatever a malformed message holds.
      attributes: of the Pub/Sub message. `event_time` as in the payload (absent where a malformed message has
        no valid one), `planted_kind` for a planted fraud, `malformed_kind` for a malformed message. One dict
        can serve several messages: do not change them.
      planted_kinds: the kind of fraud; None for a normal and for a malformed message.
      malformed_kinds: the kind of malformed message; None for a good one.
      transaction_ids: as in the payload; None where a malformed payload has none that can be read.
    """

    transactions: Transactions
    event_times: list[str]
    payloads: list[bytes]
    attributes: list[dict[str, str]]
    planted_kinds: list[str | None]
    malformed_kinds: list[str | None]
    transaction_ids: list[str | None]

    def __len__(self) -> int:
        return len(self.payloads)

    def slice(self, start: int, stop: int) -> Messages:
        """The messages from `start` up to `stop`."""
        return Messages(
            self.transactions.slice(start, stop),
            self.event_times[start:stop],
            self.payloads[start:stop],
            self.attributes[start:stop],
            self.planted_kinds[start:stop],
            self.malformed_kinds[start:stop],
            self.transaction_ids[start:stop],
        )

    def well_formed(self) -> Messages:
        """The messages without the malformed ones."""
        rows = [i for i, kind in enumerate(self.malformed_kinds) if kind is None]
        if len(rows) == len(self):
            return self
        return Messages(
            self.transactions.select(np.array(rows, np.int64)),
            [self.event_times[i] for i in rows],
            [self.payloads[i] for i in rows],
            [self.attributes[i] for i in rows],
            [self.planted_kinds[i] for i in rows],
            [None] * len(rows),
            [self.transaction_ids[i] for i in rows],
        )


class MessageSource:
    """An endless stream of messages, one for each transaction of a generator.

    Args:
      generator: makes the transactions.
      malformed_share: share of the messages that are spoiled, from 0 to 1. A spoiled message takes the place
        of the transaction that it was made from; if that was a planted fraud, it no longer counts as one.
      malformed_kinds: names in publisher.malformed.KINDS, all equally likely.
      start_time: simulated event time, when the stream starts; a transaction happens `elapsed` later. None
        takes the wall clock at the moment when the message is made, which is when it is sent.

    Raises:
      ValueError: an argument is out of its range, or a kind is unknown.
    """

    def __init__(
        self,
        generator: TransactionGenerator,
        malformed_share: float = 0.0,
        malformed_kinds: Sequence[str] = tuple(malformed.KINDS),
        start_time: dt.datetime | None = None,
    ) -> None:
        unknown = sorted(set(malformed_kinds) - set(malformed.KINDS))
        if unknown:
            raise ValueError(
                f"malformed_kinds: no kind {', '.join(unknown)}; there are {', '.join(malformed.KINDS)}"
            )
        if not 0 <= malformed_share <= 1:
            raise ValueError(f"malformed_share: {malformed_share} is not between 0 and 1")
        if malformed_share > 0 and not malformed_kinds:
            raise ValueError("malformed_kinds: name at least one kind, or set malformed_share to 0")
        if start_time is not None and start_time.tzinfo is None:
            raise ValueError(f"start_time: {start_time} has no time zone")
        self.generator = generator
        self.malformed_share = malformed_share
        self.kinds = [malformed.KINDS[name] for name in dict.fromkeys(malformed_kinds)]
        self.start_time = start_time

    def take(self, n: int) -> Messages:
        """The next `n` messages."""
        batch = self.generator.transactions(n)
        event_times = self._event_times(batch)
        payloads = _payloads(batch, event_times)
        planted = batch.planted_kinds
        ids: list[str | None] = list(batch.transaction_ids)
        attributes = [{EVENT_TIME: time} for time in event_times]
        for i in np.flatnonzero(batch.kind_codes).tolist():
            attributes[i][PLANTED_KIND] = planted[i] or ""
        kinds: list[str | None] = [None] * len(batch)
        for i, rng in self._spoiled(batch):
            kind = self.kinds[int(rng.integers(len(self.kinds)))]
            payloads[i] = kind.make(orjson.loads(payloads[i]), rng)
            attributes[i] = {MALFORMED_KIND: kind.name}
            if kind.has_time:
                attributes[i][EVENT_TIME] = event_times[i]
            kinds[i], planted[i] = kind.name, None
            if not kind.has_id:
                ids[i] = None
        return Messages(batch, event_times, payloads, attributes, planted, kinds, ids)

    def _event_times(self, batch: Transactions) -> list[str]:
        if self.start_time is None:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
            return [now.replace("+00:00", "Z")] * len(batch)
        start = np.datetime64(self.start_time.astimezone(dt.UTC).replace(tzinfo=None), "ms")
        moments = start + np.floor(batch.elapsed * 1e3).astype("timedelta64[ms]")
        return [f"{time}Z" for time in np.datetime_as_string(moments).tolist()]

    def _spoiled(self, batch: Transactions) -> list[tuple[int, np.random.Generator]]:
        """Positions in `batch` of the messages to spoil, each with its source of chance.

        A function of seed and index, so that it does not matter in which portions the stream is taken.
        """
        if self.malformed_share == 0 or not len(batch):
            return []
        seed = self.generator.seed
        first, last = int(batch.index[0]), int(batch.index[-1])
        out = []
        for block in range(first // BLOCK, last // BLOCK + 1):
            rng = np.random.default_rng([seed, _MALFORMED_STREAM, block])
            chosen = np.flatnonzero(rng.random(BLOCK) < self.malformed_share) + block * BLOCK
            for index in chosen[(chosen >= first) & (chosen <= last)].tolist():
                out.append((index - first, np.random.default_rng([seed, _MALFORMED_STREAM, block, index])))
        return out


def _payloads(batch: Transactions, event_times: list[str]) -> list[bytes]:
    dumps = orjson.dumps
    columns = zip(
        batch.transaction_ids,
        batch.account_ids,
        batch.merchants,
        event_times,
        batch.features.tolist(),
        strict=True,
    )
    return [
        dumps(
            {
                "transaction_id": transaction,
                "account_id": account,
                "merchant": merchant,
                "event_time": time,
                "features": features,
            }
        )
        for transaction, account, merchant, time, features in columns
    ]


def default_start_time(now: dt.datetime | None = None) -> dt.datetime:
    """Midnight UTC two days ago: one cycle of simulated time ends with today's midnight, none of it ahead."""
    moment = (now or dt.datetime.now(dt.UTC)).astimezone(dt.UTC)
    today = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return today - dt.timedelta(seconds=CYCLE_SECONDS)

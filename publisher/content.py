"""The options of `anomaly publish` for the messages themselves, and the sources that they configure."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.limits import MAX_EVENT_AGE_DAYS
from common.options import OptionError, option
from common.values import SHARE, Number, at_least
from model.synthetic import frauds
from model.synthetic.cards import frauds as card_frauds
from model.synthetic.cards.generator import FRAUD_SHARE as CARD_FRAUD_SHARE
from model.synthetic.cards.generator import CardGenerator
from model.synthetic.generator import CYCLE_TRANSACTIONS, FRAUD_SHARE, TransactionGenerator
from publisher.cards import CARD
from publisher.forms import Form
from publisher.messages import FileSource, MessageSource, Source, default_start_time
from publisher.ulb import ULB

_UNKNOWN_DAYS: Final = 365
"""Days of simulated time before today of a stream of card payments without an end."""
_LAST_START_YEAR: Final = 9000
"""Times of the calendar end in 9999; the transactions after the start may take centuries."""

_SKIPPED_AT_ONCE: Final = 10_000


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _time(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"expected a time with its offset such as 2026-01-01T00:00:00Z, got {text!r}"
        )
    return moment


@dataclass(frozen=True)
class ContentOptions:
    """The messages themselves: synthetic ones, or the lines of a file."""

    input: Path | None = option(
        None,
        type=Path,
        metavar="FILE",
        help="with --topic: send the lines of this file, each as a message, in place of synthetic ones; "
        ".gz is decompressed",
    )
    spec: Literal["ulb", "card"] = option(
        "ulb",
        help="ulb: the 30 numbers of the ULB table; card: payments of accounts with habits, with account, "
        "merchant, category, country, channel, amount and time (default: %(default)s)",
    )
    seed: int = option(0, type=at_least(0), metavar="N", help="default: %(default)s")
    skip: int = option(
        0,
        type=at_least(0),
        metavar="N",
        help="leave out the first N transactions, made by a run with the same options and --count N: "
        "accounts have a past (default: %(default)s)",
    )
    fraud_share: float | None = option(
        None,
        type=Number(0, 0.9, whole=False),
        metavar="SHARE",
        help=f"share of planted frauds, 0 to 0.9, of card payments to 0.5 (default: {FRAUD_SHARE}, that of "
        f"the real data, of card payments {CARD_FRAUD_SHARE})",
    )
    fraud_kinds: tuple[str, ...] | None = option(
        None, type=_names, metavar="A,B", help="default: all, in equal shares"
    )
    malformed_share: float = option(
        0.0, type=SHARE, metavar="SHARE", help="share of malformed messages, 0 to 1 (default: %(default)s)"
    )
    malformed_kinds: tuple[str, ...] | None = option(
        None, type=_names, metavar="A,B", help="default: all, in equal shares"
    )
    accounts: int = option(2_000, type=at_least(1), metavar="N", help="how many (default: %(default)s)")
    merchants: int = option(500, type=at_least(1), metavar="N", help="how many (default: %(default)s)")
    cycle: int | None = option(
        None,
        type=at_least(1),
        metavar="N",
        help="with --spec ulb: transactions in the two days over which Time runs; default: --count, so that "
        f"a run shows the whole rhythm of day and night, otherwise {CYCLE_TRANSACTIONS}",
    )
    event_time: Literal["now", "simulated"] | None = option(
        None,
        help="now: the clock when a message is made, just before it is sent; simulated: --start_time and the "
        "time that has passed in the stream. Default: simulated with a file and for card payments, now for "
        "--spec ulb with --topic",
    )
    start_time: dt.datetime | None = option(
        None,
        type=_time,
        metavar="RFC3339",
        help="start of simulated time, for example 2026-01-01T00:00:00Z; default: midnight UTC two days ago, "
        "for card payments so many days ago that the run ends before today. Pass it to get the same file "
        "another day",
    )

    def __post_init__(self) -> None:
        for word in ("fraud", "malformed"):
            if getattr(self, f"{word}_kinds") is not None and getattr(self, f"{word}_share") == 0:
                raise OptionError(f"--{word}_kinds: expected --{word}_share above 0, got 0")
        if self.input:
            synthetic = dataclasses.fields(self)[1:]
            given = [f"--{field.name}" for field in synthetic if getattr(self, field.name) != field.default]
            if given:
                raise OptionError(f"--input: its lines are sent as they are: leave out {', '.join(given)}")

    @property
    def form(self) -> Form:
        """The form of the messages."""
        return {form.name: form for form in (ULB, CARD)}[self.spec]

    def source(self, to_topic: bool, count: int | None, expected: int | None) -> Source:
        """Makes the source of messages.

        Args:
          to_topic: whether the messages are sent.
          count: messages of the whole run, if there is an end.
          expected: messages that the run can have at most, where that is known.

        Raises:
          ValueError: an option is out of its range, or a kind is unknown.
          OSError: --input cannot be read.
        """
        if self.input:
            return FileSource(self.input)
        is_card = self.spec == "card"
        is_simulated = (
            self.event_time == "simulated" if self.event_time is not None else is_card or not to_topic
        )
        if self.start_time and not is_simulated:
            raise OptionError("--start_time: expected --event_time simulated, got now")
        if self.start_time and self.start_time.year > _LAST_START_YEAR:
            raise OptionError(
                f"--start_time: expected a year up to {_LAST_START_YEAR}, got {self.start_time}"
            )
        start: dt.datetime | None
        generator: CardGenerator | TransactionGenerator
        if is_card:
            generator = self._card_generator()
            start = self.start_time or _start_time(
                generator, None if expected is None else expected + self.skip
            )
        else:
            generator = self._ulb_generator(count)
            start = self.start_time or default_start_time()
        for first in range(0, self.skip, _SKIPPED_AT_ONCE):
            generator.transactions(min(_SKIPPED_AT_ONCE, self.skip - first))
        return MessageSource(
            generator,
            malformed_share=self.malformed_share,
            malformed_kinds=self.malformed_kinds,
            start_time=start if is_simulated else None,
            form=self.form,
            ends_at_present=to_topic or (is_card and not self.start_time),
        )

    def _ulb_generator(self, count: int | None) -> TransactionGenerator:
        return TransactionGenerator(
            seed=self.seed,
            fraud_share=FRAUD_SHARE if self.fraud_share is None else self.fraud_share,
            fraud_kinds=tuple(frauds.KINDS) if self.fraud_kinds is None else self.fraud_kinds,
            accounts=self.accounts,
            merchants=self.merchants,
            cycle=self.cycle or count or CYCLE_TRANSACTIONS,
        )

    def _card_generator(self) -> CardGenerator:
        if self.cycle is not None:
            raise OptionError(
                "--cycle: leave it out with --spec card, whose clock follows the rates of the accounts; "
                "--accounts says how many payments make a day"
            )
        start = self.start_time.astimezone(dt.UTC) if self.start_time else None
        return CardGenerator(
            seed=self.seed,
            fraud_share=CARD_FRAUD_SHARE if self.fraud_share is None else self.fraud_share,
            fraud_kinds=tuple(card_frauds.KINDS) if self.fraud_kinds is None else self.fraud_kinds,
            accounts=self.accounts,
            merchants=self.merchants,
            midnight=(start - start.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
            if start
            else 0.0,
        )


def _start_time(generator: CardGenerator, count: int | None) -> dt.datetime:
    """Returns the midnight so many days ago that `count` payments end before today.

    Raises:
      OptionError: that is longer ago than the pipelines take.
    """
    # Chance moves the end of the run: the time of `count` payments has a deviation of the root of that.
    most = 0 if count is None else count + 4 * math.sqrt(count)
    days = _UNKNOWN_DAYS if count is None else math.ceil(most / generator.per_day) + 1
    if days >= MAX_EVENT_AGE_DAYS:
        raise OptionError(
            f"--accounts: expected more accounts for {count:,} payments: these make {generator.per_day:,.0f} "
            f"a day, so that the first would be {days:,} days old; pipelines take {MAX_EVENT_AGE_DAYS:,} days"
        )
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - dt.timedelta(days=days)

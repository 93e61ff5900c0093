"""Payments by habit: a Poisson process for each account, drawn for all accounts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from model.synthetic.cards.accounts import FAVOURITE_WEIGHTS, RHYTHMS, Accounts, Floats, journeys
from model.synthetic.cards.places import CASH, CATEGORY_AMOUNTS, ONLINE, PAID, Ints, Merchants

CHANNELS: Final = ("chip", "contactless", "online", "magstripe", "atm")
CHIP, CONTACTLESS, ONLINE_CHANNEL, MAGSTRIPE, ATM = range(len(CHANNELS))
CONTACTLESS_LIMIT: Final = 50.0
MAGSTRIPE_SHARE: Final = 0.01
AMOUNT_SPREAD: Final = 0.4
"""Of the logarithm of an amount, within one account and category."""
ELSEWHERE: Final = 0.1
"""Share of the payments at another merchant of the same country and category as a favourite."""


@dataclass(frozen=True)
class Payments:
    """Payments in columns of n entries.

    Attributes:
      time: seconds since the start of the stream.
      account: position in Accounts.
      merchant: position in Merchants.
      channel: position in CHANNELS.
      amount: euros, to the cent.
      kind: 0 for a normal, otherwise 1 + the position of the kind of fraud.
    """

    time: Floats
    account: npt.NDArray[np.int64]
    merchant: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int8]
    amount: Floats
    kind: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Payments:
        """Takes the payments of some positions, of a mask or of a slice."""
        return Payments(*(getattr(self, field.name)[rows] for field in fields(self)))


def concatenate(parts: Sequence[Payments]) -> Payments:
    """Puts payments one after another."""
    return Payments(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Payments)))


@dataclass(frozen=True)
class World:
    """Everything that is fixed for a stream.

    Attributes:
      seed: of the stream.
      merchants: their pool.
      accounts: their pool.
      midnight: seconds from the midnight before the start of the stream to the start.
    """

    seed: int
    merchants: Merchants
    accounts: Accounts
    midnight: float = 0.0

    def draw(self, start: float, hours: int, rng: np.random.Generator) -> Payments:
        """Draws the payments of all accounts from `start` [s] on, for some hours, in any order."""
        time, account = self._times(start, hours, rng)
        n = len(time)
        home = self.accounts.home[account]
        slot = np.searchsorted(np.cumsum(FAVOURITE_WEIGHTS / FAVOURITE_WEIGHTS.sum()), rng.random(n))
        merchant = self.accounts.favourites[account, np.minimum(slot, len(FAVOURITE_WEIGHTS) - 1)].astype(
            np.int64
        )
        away, is_on_the_way = journeys(self.seed, account, home, time)
        country = np.where(away >= 0, away, home)
        is_here = PAID[self.merchants.category[merchant]] != ONLINE
        rows = np.flatnonzero((rng.random(n) < ELSEWHERE) | (is_here & (away >= 0)))
        merchant[rows] = self.merchants.pick(country[rows], self.merchants.category[merchant[rows]], rng)
        rows = np.flatnonzero(is_here & is_on_the_way)
        merchant[rows] = self._online(account[rows], rng)
        amount = self.amounts(account, merchant, rng)
        return Payments(
            time,
            account,
            merchant,
            self.channels(account, merchant, amount, rng),
            amount,
            np.zeros(n, np.int8),
        )

    def amounts(self, account: Ints, merchant: Ints, rng: np.random.Generator) -> Floats:
        """Draws usual amounts of accounts at merchants [n]."""
        factor = rng.lognormal(0.0, AMOUNT_SPREAD, len(account))
        return self.rounded(self.usual(account, merchant) * factor, merchant)

    def usual(self, account: Ints, merchant: Ints) -> Floats:
        """Returns the usual amounts of accounts in the categories of merchants [n]."""
        usual: Floats = self.accounts.level[account] * CATEGORY_AMOUNTS[self.merchants.category[merchant]]
        return usual

    def rounded(self, amount: Floats, merchant: Ints) -> Floats:
        """Rounds amounts [n] to cents, at a cash machine to tens."""
        is_cash = PAID[self.merchants.category[merchant]] == CASH
        return np.where(
            is_cash, np.maximum(np.round(amount, -1), 10.0), np.maximum(np.round(amount, 2), 0.01)
        )

    def channels(
        self, account: Ints, merchant: Ints, amount: Floats, rng: np.random.Generator
    ) -> npt.NDArray[np.int8]:
        """Draws the channels of payments [n]."""
        chance = rng.random(len(account))
        is_quick = (amount < CONTACTLESS_LIMIT) & (chance > 1 - self.accounts.contactless[account])
        till = np.where(is_quick, CONTACTLESS, np.where(chance < MAGSTRIPE_SHARE, MAGSTRIPE, CHIP))
        paid = PAID[self.merchants.category[merchant]]
        channel = np.where(paid == ONLINE, ONLINE_CHANNEL, np.where(paid == CASH, ATM, till))
        return channel.astype(np.int8)

    def _times(self, start: float, hours: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
        """Draws the times and accounts of payments: of a group of accounts first, then of one in it."""
        cumulative = np.concatenate([[0.0], np.cumsum(self.accounts.rate)])
        groups = np.searchsorted(self.accounts.rhythm, np.arange(len(RHYTHMS) + 1))
        bounds = cumulative[groups]
        hour_of_day = (int((start + self.midnight) // 3600) + np.arange(hours)) % 24
        counts = rng.poisson(np.diff(bounds)[:, None] * RHYTHMS[:, hour_of_day])
        group = np.repeat(np.arange(len(RHYTHMS)), counts.sum(axis=1))
        hour = np.repeat(np.tile(np.arange(hours), len(RHYTHMS)), counts.ravel())
        n = len(hour)
        point = bounds[group] + rng.random(n) * (bounds[group + 1] - bounds[group])
        account = np.clip(np.searchsorted(cumulative, point, side="right") - 1, 0, len(self.accounts) - 1)
        return start + 3600.0 * (hour + rng.random(n)), account

    def _online(self, account: Ints, rng: np.random.Generator) -> Ints:
        """Picks an online favourite for each account [n], or any online merchant where it has none."""
        favourites = self.accounts.favourites[account]
        is_online = PAID[self.merchants.category[favourites]] == ONLINE
        chosen = np.argmax(is_online * rng.random(is_online.shape), axis=1)
        every = np.flatnonzero(PAID[self.merchants.category] == ONLINE)
        picked: Ints = np.where(
            is_online.any(axis=1),
            favourites[np.arange(len(account)), chosen],
            rng.choice(every, len(account)),
        )
        return picked

"""The kinds of fraud that are planted among card payments: one entry in KINDS each.

Every planted payment follows a payment of the account itself. A kind never shows in a payload. It travels as
the message attribute `planted_kind`, for checking afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model.synthetic.cards.accounts import DAY_SECONDS, KEEPS_NIGHTS, NIGHT, Floats, destinations, journeys
from model.synthetic.cards.payments import (
    ATM,
    CHIP,
    MAGSTRIPE,
    ONLINE_CHANNEL,
    Payments,
    World,
    concatenate,
)
from model.synthetic.cards.places import CASH, CATEGORIES, IS_RISKY, ONLINE, PAID, TILL, Ints

Mask = npt.NDArray[np.bool_]

SPIKE: Final = (20.0, 60.0)
MAX_AMOUNT: Final = 30_000.0
TEST_AMOUNTS: Final = (0.3, 3.0)
TEST_GAP_SECONDS: Final = 15.0
NIGHT_GAP_SECONDS: Final = 600.0
LEAST_COMPROMISED: Final = 3
"""A merchant is compromised where at least so many cards are copied at a time."""
COMPROMISED_SECONDS: Final = 14 * DAY_SECONDS
"""For so long, one merchant is the first choice of those who copy cards."""


@dataclass(frozen=True)
class Runs:
    """Runs of planted payments, each of them on one account.

    Attributes:
      anchors: the payment that each run follows.
      run: [n], the run of each planted payment.
      order: [n], its position in the run.
    """

    anchors: Payments
    run: Ints
    order: Ints

    @property
    def account(self) -> Ints:
        """The account of each planted payment [n]."""
        return self.anchors.account[self.run]

    def times(self, delay: Floats, gap: float, rng: np.random.Generator) -> Floats:
        """Draws times [n]: `delay` [runs] after the anchor, then gaps of `gap` seconds on average."""
        gaps = np.where(self.order > 0, rng.exponential(gap, len(self.run)), delay[self.run])
        total = np.cumsum(gaps)
        first = np.searchsorted(self.run, self.run)
        since = total - total[first] + gaps[first]
        times: Floats = self.anchors.time[self.run] + since
        return times


Plant = Callable[[World, Runs, np.random.Generator], Payments]
"""Makes the planted payments of runs; their `kind` is set by the caller."""
Eligible = Callable[[World, Payments], Mask]
"""Tells which payments a run may follow."""


@dataclass(frozen=True)
class CardFraudKind:
    """One kind of planted fraud.

    Attributes:
      name: as in the attribute `planted_kind`.
      description: one line.
      plant: makes the payments.
      sizes: least and greatest number of payments of a run.
      eligible: the payments that a run may follow.
      by_merchant: the runs follow payments that were made at one merchant within some time, all of them.
    """

    name: str
    description: str
    plant: Plant
    sizes: tuple[int, int] = (1, 1)
    eligible: Eligible = lambda world, payments: np.ones(len(payments), bool)
    by_merchant: bool = False


def _payments(
    world: World, runs: Runs, time: Floats, merchant: Ints, amount: Floats, channel: npt.NDArray[np.integer]
) -> Payments:
    amount = np.minimum(world.rounded(amount, merchant), MAX_AMOUNT)
    none = np.zeros(len(time), np.int8)
    return Payments(time, runs.account, merchant, channel.astype(np.int8), amount, none)


def _each(runs: Runs, per_run: npt.NDArray[np.integer]) -> Ints:
    chosen: Ints = per_run[runs.run].astype(np.int64)
    return chosen


def _amount_spike(world: World, runs: Runs, rng: np.random.Generator) -> Payments:
    n = len(runs.run)
    merchant = _each(runs, runs.anchors.merchant)
    usual = np.maximum(world.usual(runs.account, merchant), world.accounts.level[runs.account])
    is_online = PAID[world.merchants.category[merchant]] == ONLINE
    return _payments(
        world,
        runs,
        runs.times(rng.uniform(300.0, 3600.0, len(runs.anchors)), 300.0, rng),
        merchant,
        usual * rng.uniform(*SPIKE, n),
        np.where(is_online, ONLINE_CHANNEL, CHIP),
    )


def _no_cash(world: World, payments: Payments) -> Mask:
    return PAID[world.merchants.category[payments.merchant]] != CASH


def _card_testing(world: World, runs: Runs, rng: np.random.Generator) -> Payments:
    n = len(runs.run)
    digital = next(i for i, category in enumerate(CATEGORIES) if category.name == "digital")
    home = world.accounts.home[runs.anchors.account]
    merchant = world.merchants.pick(home, np.full(len(home), digital), rng)
    return _payments(
        world,
        runs,
        runs.times(rng.uniform(60.0, 7200.0, len(runs.anchors)), TEST_GAP_SECONDS, rng),
        _each(runs, merchant),
        rng.uniform(*TEST_AMOUNTS, n),
        np.full(n, ONLINE_CHANNEL),
    )


_ABROAD: Final = np.flatnonzero(((PAID == TILL) & ~IS_RISKY) | (PAID == CASH))


def _new_country(world: World, runs: Runs, rng: np.random.Generator) -> Payments:
    n = len(runs.run)
    country = destinations(world.accounts.home[runs.anchors.account], rng.random(len(runs.anchors)))
    merchant = world.merchants.pick(_each(runs, country), rng.choice(_ABROAD, n), rng)
    is_cash = PAID[world.merchants.category[merchant]] == CASH
    return _payments(
        world,
        runs,
        runs.times(rng.uniform(1800.0, 3 * 3600.0, len(runs.anchors)), 1200.0, rng),
        merchant,
        world.accounts.level[runs.account] * rng.uniform(1.5, 5.0, n),
        # A copied card has the magnetic stripe alone.
        np.where(is_cash, ATM, np.where(rng.random(n) < 0.6, MAGSTRIPE, CHIP)),
    )


def _at_home(world: World, payments: Payments) -> Mask:
    """Payments at a till or cash machine of the own country, more than a day from a journey."""
    is_here = PAID[world.merchants.category[payments.merchant]] != ONLINE
    home = world.accounts.home[payments.account]
    stays = world.merchants.country[payments.merchant] == home
    later, on_the_way = journeys(world.seed, payments.account, home, payments.time + DAY_SECONDS / 4)
    mask: Mask = is_here & stays & (later < 0) & ~on_the_way
    return mask


def _night_use(world: World, runs: Runs, rng: np.random.Generator) -> Payments:
    n, anchors = len(runs.run), runs.anchors
    places = np.flatnonzero((PAID == CASH) | ((PAID == TILL) & ~IS_RISKY))
    merchant = world.merchants.pick(world.accounts.home[runs.account], rng.choice(places, n), rng)
    midnight = (np.floor((anchors.time + world.midnight) / DAY_SECONDS) + 1) * DAY_SECONDS - world.midnight
    first, last = NIGHT
    night = midnight + 3600.0 * rng.uniform(first + 0.25, last - 1.5, len(anchors))
    amount = world.amounts(runs.account, merchant, rng) * rng.uniform(1.0, 3.0, n)
    channel = world.channels(runs.account, merchant, amount, rng)
    return _payments(
        world, runs, runs.times(night - anchors.time, NIGHT_GAP_SECONDS, rng), merchant, amount, channel
    )


def _keeps_nights(world: World, payments: Payments) -> Mask:
    return _at_home(world, payments) & KEEPS_NIGHTS[world.accounts.rhythm[payments.account]]


def _risky(world: World, runs: Runs, rng: np.random.Generator) -> Ints:
    """Picks a merchant for each run, in a category of IS_RISKY in which its account never pays."""
    accounts = runs.anchors.account
    is_new = IS_RISKY & ~world.accounts.own[accounts]
    category = np.argmax(is_new * rng.random(is_new.shape), axis=1)
    return world.merchants.pick(world.accounts.home[accounts], category, rng)


def _new_category(world: World, runs: Runs, rng: np.random.Generator) -> Payments:
    merchant = _each(runs, _risky(world, runs, rng))
    amount = world.accounts.level[runs.account] * rng.uniform(2.0, 6.0, len(runs.run))
    delay = rng.uniform(600.0, 6 * 3600.0, len(runs.anchors))
    channel = world.channels(runs.account, merchant, amount, rng)
    return _payments(world, runs, runs.times(delay, 900.0, rng), merchant, amount, channel)


def _merchant_compromise(world: World, runs: Runs, rng: np.random.Generator) -> Payments:
    n = len(runs.run)
    online = np.flatnonzero((PAID == ONLINE) & ~IS_RISKY)
    merchant = world.merchants.pick(world.accounts.home[runs.account], rng.choice(online, n), rng)
    return _payments(
        world,
        runs,
        runs.times(rng.uniform(2.0, 36.0, len(runs.anchors)) * 3600.0, 1800.0, rng),
        merchant,
        world.accounts.level[runs.account] * rng.uniform(3.0, 8.0, n),
        np.full(n, ONLINE_CHANNEL),
    )


KINDS: Final[dict[str, CardFraudKind]] = {
    kind.name: kind
    for kind in (
        CardFraudKind(
            "amount_spike",
            "one payment at a usual merchant, 20 to 60 times the account's usual amount",
            _amount_spike,
            eligible=_no_cash,
        ),
        CardFraudKind(
            "card_testing",
            "a burst of 6 to 15 online payments of up to 3.00 within minutes",
            _card_testing,
            sizes=(6, 15),
        ),
        CardFraudKind(
            "new_country",
            "1 to 3 payments at tills of another country, at most 3 hours after one at home",
            _new_country,
            sizes=(1, 3),
            eligible=_at_home,
        ),
        CardFraudKind(
            "night_use",
            "2 to 4 payments between 1 and 5 in the night, which the account usually sleeps through",
            _night_use,
            sizes=(2, 4),
            eligible=_keeps_nights,
        ),
        CardFraudKind(
            "new_category",
            "1 or 2 payments of a category that is new to the account, such as jewellery or gift cards",
            _new_category,
            sizes=(1, 2),
        ),
        CardFraudKind(
            "merchant_compromise",
            "all cards that paid at one merchant for some time are copied, each is used 1 to 3 times online",
            _merchant_compromise,
            sizes=(1, 3),
            by_merchant=True,
        ),
    )
}


class Planter:
    """Plants frauds among normal payments, so that each kind gets the same share of all payments.

    Each kind has an account of what it may still plant, so that runs do not change the share.

    Args:
      world: accounts and merchants.
      kinds: entries of KINDS.
      share: of the frauds among all payments.
    """

    def __init__(self, world: World, kinds: tuple[CardFraudKind, ...], share: float) -> None:
        self._world = world
        self._kinds = kinds
        self._per_normal = share / (1 - share) / max(len(kinds), 1)
        self._credit = np.zeros(len(kinds))

    def plant(self, normals: Payments, rng: np.random.Generator) -> Payments:
        """Makes the frauds that follow some of the `normals`, which are in the order of time."""
        self._credit += self._per_normal * len(normals)
        parts = [normals.take(slice(0, 0))]
        for code, kind in enumerate(self._kinds, start=1):
            runs = self._runs(kind, normals, float(self._credit[code - 1]), rng)
            if len(runs.run):
                planted = kind.plant(self._world, runs, rng)
                planted.kind[:] = code
                parts.append(planted)
                self._credit[code - 1] -= len(planted)
        return concatenate(parts)

    def _runs(self, kind: CardFraudKind, normals: Payments, credit: float, rng: np.random.Generator) -> Runs:
        least, greatest = kind.sizes
        if kind.by_merchant:
            chosen = self._visits(normals, credit * 2 / (least + greatest), rng)
        else:
            chosen = np.flatnonzero(kind.eligible(self._world, normals))
        sizes = rng.integers(least, greatest + 1, int(max(credit, 0) / least) + 1)
        if kind.by_merchant:
            sizes = sizes[: len(chosen)]
        else:
            # A run starts where more than half of it is due: on average neither early nor late.
            sizes = sizes[np.cumsum(sizes) - sizes / 2 <= credit][: len(chosen)]
            chosen = rng.choice(chosen, len(sizes), replace=False)
        run = np.repeat(np.arange(len(sizes)), sizes)
        order = np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return Runs(normals.take(chosen[: len(sizes)]), run, order)

    def _visits(self, normals: Payments, cards: float, rng: np.random.Generator) -> Ints:
        """Chooses visits whose cards are copied: all of a merchant within some time, a card once."""
        chosen: list[Ints] = []
        if cards < LEAST_COMPROMISED or not len(normals):
            return np.zeros(0, np.int64)
        by_merchant = np.argsort(normals.merchant, kind="stable")
        merchants = normals.merchant[by_merchant]
        epoch = int(normals.time[0] // COMPROMISED_SECONDS)
        preferred = np.random.default_rng([self._world.seed, 9, epoch]).permutation(
            len(self._world.merchants.ids)
        )
        first = np.searchsorted(merchants, preferred)
        visits = np.searchsorted(merchants, preferred, side="right") - first
        for i in np.flatnonzero(visits >= LEAST_COMPROMISED).tolist():
            count = min(int(visits[i]), int(cards))
            start = int(first[i] + rng.integers(0, visits[i] - count + 1))
            rows = by_merchant[start : start + count]
            _, once = np.unique(normals.account[rows], return_index=True)
            if len(once) < LEAST_COMPROMISED:
                continue
            chosen.append(rows[once])
            cards -= len(once)
            if cards < LEAST_COMPROMISED:
                break
        return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)

"""The stream of synthetic card payments: reproducible, in the order of time, with planted frauds.

The stream has a clock of its own: the rates of the accounts say how many payments fall on a simulated day,
and `elapsed` runs on with the payments that are taken, however fast that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from model.synthetic.cards import frauds
from model.synthetic.cards.accounts import Accounts
from model.synthetic.cards.payments import CHANNELS, Payments, World, concatenate
from model.synthetic.cards.places import CATEGORIES, COUNTRIES, Merchants
from model.synthetic.ids import CARD_STREAM, transaction_ids

FRAUD_SHARE: Final = 0.005
MAX_FRAUD_SHARE: Final = 0.5
"""Frauds follow payments of the account; with more of them there are no habits to see."""
CURRENCY: Final = "EUR"
_SLICE_PAYMENTS: Final = 8_192
_MAX_SLICE_HOURS: Final = 24 * 30
_STREAM: Final = 10

_CODES: Final = np.array([country.code for country in COUNTRIES], dtype=object)
_NAMES: Final = np.array([category.name for category in CATEGORIES], dtype=object)
_CHANNELS: Final = np.array(CHANNELS, dtype=object)


@dataclass(frozen=True)
class CardPayments:
    """A run of consecutive payments, in columns of n entries.

    Attributes:
      index: int64, position in the stream, from 0.
      payments: times since the start of the stream, ascending; accounts, merchants, channels, amounts, kinds.
      world: the pools in which accounts and merchants are positions.
      seed: of the stream.
      kind_names: the kinds of fraud that this stream plants.
    """

    index: npt.NDArray[np.int64]
    payments: Payments
    world: World
    seed: int
    kind_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def elapsed(self) -> npt.NDArray[np.float64]:
        """Seconds since the start of the stream, float64 [n], ascending."""
        return self.payments.time

    @property
    def transaction_ids(self) -> list[str]:
        """Ids of 32 hexadecimal digits, a function of seed and index."""
        return transaction_ids(self.seed, self.index, CARD_STREAM)

    @property
    def account_ids(self) -> list[str]:
        """Account numbers."""
        names: list[str] = self.world.accounts.numbers[self.payments.account].tolist()
        return names

    @property
    def channels(self) -> list[str]:
        """Names in CHANNELS."""
        names: list[str] = _CHANNELS[self.payments.channel].tolist()
        return names

    @property
    def countries(self) -> list[str]:
        """Codes of the merchants' countries."""
        names: list[str] = _CODES[self.world.merchants.country[self.payments.merchant]].tolist()
        return names

    @property
    def categories(self) -> list[str]:
        """Names of the merchants' categories."""
        names: list[str] = _NAMES[self.world.merchants.category[self.payments.merchant]].tolist()
        return names

    @property
    def kind_codes(self) -> npt.NDArray[np.int8]:
        """0 for a normal, otherwise 1 + the position in `kind_names`, int8 [n]."""
        return self.payments.kind

    @property
    def labels(self) -> npt.NDArray[np.int8]:
        """1 for a planted fraud, 0 for a normal, int8 [n]."""
        return (self.kind_codes > 0).astype(np.int8)

    @property
    def planted_kinds(self) -> list[str | None]:
        """The kind of fraud by name; None for a normal."""
        names = (None, *self.kind_names)
        return [names[code] for code in self.kind_codes.tolist()]

    def slice(self, start: int, stop: int) -> CardPayments:
        """Takes the payments from `start` up to `stop`."""
        rows = slice(start, stop)
        return replace(self, index=self.index[rows], payments=self.payments.take(rows))


class CardGenerator:
    """An endless stream of synthetic card payments.

    >>> generator = CardGenerator(seed=7, accounts=100)
    >>> batch = generator.transactions(1_000)
    >>> len(batch), batch.categories[:3], round(batch.elapsed[-1] / 86_400)
    (1000, ['transport', 'grocery', 'restaurant'], 7)

    Args:
      seed: the same seed, with the same other arguments, gives the same payments.
      fraud_share: share of planted frauds among the payments, from 0 to MAX_FRAUD_SHARE.
      fraud_kinds: names in model.synthetic.cards.frauds.KINDS; each makes up the same share of the frauds.
      accounts: size of the pool of accounts.
      merchants: size of the pool of merchants.
      midnight: seconds from midnight UTC to the start of the stream, so that habits keep to the clock.

    Raises:
      ValueError: an argument is out of its range or a kind is unknown.
    """

    def __init__(
        self,
        seed: int = 0,
        fraud_share: float = FRAUD_SHARE,
        fraud_kinds: Sequence[str] = tuple(frauds.KINDS),
        accounts: int = 2_000,
        merchants: int = 500,
        midnight: float = 0.0,
    ) -> None:
        unknown = sorted(set(fraud_kinds) - set(frauds.KINDS))
        if unknown:
            raise ValueError(
                f"fraud_kinds: no kind {', '.join(unknown)}; there are {', '.join(frauds.KINDS)}"
            )
        if not 0 <= fraud_share <= MAX_FRAUD_SHARE:
            raise ValueError(f"fraud_share: {fraud_share} is not between 0 and {MAX_FRAUD_SHARE}")
        if fraud_share > 0 and not fraud_kinds:
            raise ValueError("fraud_kinds: name at least one kind, or set fraud_share to 0")
        for name, value, least in (("seed", seed, 0), ("accounts", accounts, 1)):
            if value < least:
                raise ValueError(f"{name}: {value} is less than {least}")
        self.seed = seed
        self.fraud_share = fraud_share
        kinds = tuple(frauds.KINDS[name] for name in dict.fromkeys(fraud_kinds))
        self.kind_names = tuple(kind.name for kind in kinds)
        pool = Merchants.create(seed, merchants)
        self.world = World(seed, pool, Accounts.create(seed, accounts, pool), midnight)
        self._planter = frauds.Planter(self.world, kinds, fraud_share)
        normals_per_hour = float(self.world.accounts.rate.sum()) / 24
        self._hours = int(np.clip(round(_SLICE_PAYMENTS / normals_per_hour), 1, _MAX_SLICE_HOURS))
        self._slices = 0
        self._ready = self._pending = self.world.draw(0.0, 0, np.random.default_rng(0))
        self._next = 0

    @property
    def per_day(self) -> float:
        """Payments that fall on a simulated day, on average."""
        return float(self.world.accounts.rate.sum()) / (1 - self.fraud_share)

    def transactions(self, n: int) -> CardPayments:
        """Takes the next `n` payments of the stream."""
        parts, missing = [self._ready], n - len(self._ready)
        while missing > 0:
            parts.append(self._make_slice())
            missing -= len(parts[-1])
        ready = concatenate(parts) if len(parts) > 1 else self._ready
        self._ready = ready.take(slice(n, None))
        index = np.arange(self._next, self._next + n, dtype=np.int64)
        self._next += n
        return CardPayments(index, ready.take(slice(0, n)), self.world, self.seed, self.kind_names)

    def _make_slice(self) -> Payments:
        """Draws the payments of the next hours; planted ones that happen later are kept for their time."""
        rng = np.random.default_rng([self.seed, _STREAM, self._slices])
        start = self._slices * self._hours * 3600.0
        self._slices += 1
        normals = _in_order(self.world.draw(start, self._hours, rng))
        every = concatenate([self._pending, normals, self._planter.plant(normals, rng)])
        is_due = every.time < start + self._hours * 3600.0
        self._pending = every.take(~is_due)
        return _in_order(every.take(is_due))


def _in_order(payments: Payments) -> Payments:
    return payments.take(np.argsort(payments.time, kind="stable"))

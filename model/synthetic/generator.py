"""The stream of synthetic transactions: reproducible, in the order of time, with planted frauds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from features.ulb import N_FEATURES, TIME_INDEX
from model.synthetic import frauds, parameters
from model.synthetic.ids import transaction_ids
from model.synthetic.people import Pools

FRAUD_SHARE: Final = 0.00172
"""Share of frauds in the full ULB data (492 of 284,807)."""
CYCLE_TRANSACTIONS: Final = 284_807
"""Transactions in the two days of the full ULB data."""
BLOCK: Final = 4_096
"""Transactions are drawn in blocks of this size, each with its own random generator (seed, block number).
So a transaction depends on the seed and its index, not on the size of a request."""

_STREAM, _FEATURES = 0, 1


@dataclass(frozen=True)
class Transactions:
    """A run of consecutive transactions, in columns of n entries.

    Attributes:
      index: int64, position in the stream, from 0.
      transaction_ids: 32 hexadecimal digits, a function of seed and index.
      account_ids: account numbers.
      merchants: merchant names.
      elapsed: float64, seconds since the start of the stream, ascending.
      features: [n, 30] float64 in the order of features.ulb.FEATURES; Time is `elapsed` modulo two days.
      kind_codes: int8, 0 for a normal, otherwise 1 + the position in `kind_names`.
      kind_names: the kinds of fraud that this stream plants.
    """

    index: npt.NDArray[np.int64]
    transaction_ids: list[str]
    account_ids: list[str]
    merchants: list[str]
    elapsed: npt.NDArray[np.float64]
    features: npt.NDArray[np.float64]
    kind_codes: npt.NDArray[np.int8]
    kind_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> npt.NDArray[np.int8]:
        """1 for a planted fraud, 0 for a normal, int8 [n]."""
        return (self.kind_codes > 0).astype(np.int8)

    @property
    def planted_kinds(self) -> list[str | None]:
        """The kind of fraud by name; None for a normal."""
        names = (None, *self.kind_names)
        return [names[code] for code in self.kind_codes.tolist()]

    def slice(self, start: int, stop: int) -> Transactions:
        """Takes the transactions from `start` up to `stop`."""
        return Transactions(
            index=self.index[start:stop],
            transaction_ids=self.transaction_ids[start:stop],
            account_ids=self.account_ids[start:stop],
            merchants=self.merchants[start:stop],
            elapsed=self.elapsed[start:stop],
            features=self.features[start:stop],
            kind_codes=self.kind_codes[start:stop],
            kind_names=self.kind_names,
        )


class TransactionGenerator:
    """An endless stream of synthetic transactions.

    >>> generator = TransactionGenerator(seed=7, fraud_share=0.01)
    >>> batch = generator.transactions(1_000)
    >>> batch.features.shape, batch.transaction_ids[0]
    ((1000, 30), 'c4ce962956a6166046565263f83984aa')
    >>> int(batch.labels.sum())
    29

    Args:
      seed: the same seed, with the same other arguments, gives the same transactions.
      fraud_share: share of planted frauds among the transactions, from 0 to 0.9.
      fraud_kinds: names in model.synthetic.frauds.KINDS; each makes up the same share of the frauds.
      accounts: size of the pool of accounts.
      merchants: size of the pool of merchants, at least 3.
      cycle: transactions in the two days over which Time runs; a stream of `cycle` transactions shows the
        whole rhythm of the days, and a longer one starts again with the next two days.

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
        cycle: int = CYCLE_TRANSACTIONS,
    ) -> None:
        unknown = sorted(set(fraud_kinds) - set(frauds.KINDS))
        if unknown:
            raise ValueError(
                f"fraud_kinds: no kind {', '.join(unknown)}; there are {', '.join(frauds.KINDS)}"
            )
        if not 0 <= fraud_share <= 0.9:
            raise ValueError(f"fraud_share: {fraud_share} is not between 0 and 0.9")
        if fraud_share > 0 and not fraud_kinds:
            raise ValueError("fraud_kinds: name at least one kind, or set fraud_share to 0")
        for name, value, least in (
            ("seed", seed, 0),
            ("accounts", accounts, 1),
            ("merchants", merchants, frauds.COMPROMISED_MERCHANTS),
            ("cycle", cycle, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: {value} is less than {least}")
        self.seed = seed
        self.fraud_share = fraud_share
        self.kinds = tuple(frauds.KINDS[name] for name in dict.fromkeys(fraud_kinds))
        self.kind_names = tuple(kind.name for kind in self.kinds)
        self.cycle = cycle
        self._parameters = parameters.load()
        self._hourly_fraud_share = self._parameters.hourly_fraud_share(fraud_share)
        self._pools = Pools.create(seed, accounts, merchants)
        self._next = 0
        self._block: tuple[int, Transactions] | None = None
        self._feature_calls = 0

    def features(self, n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]:
        """Draws `n` transactions over the two days, for training and evaluation.

        Each call draws other rows, and the calls of two generators with the same seed draw the same. The
        stream of `transactions` is not advanced.

        Returns:
          Features, float64 [n, 30], and labels, int8 [n] (1: fraud).
        """
        self._feature_calls += 1
        features = np.empty((n, N_FEATURES))
        codes = np.empty(n, np.int8)
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            rng = np.random.default_rng([self.seed, _FEATURES, self._feature_calls, start])
            position = (np.arange(start, stop) + rng.random(stop - start)) / n
            drawn = self._draw(position, rng)
            features[start:stop], codes[start:stop] = drawn.features, drawn.codes
        return features, (codes > 0).astype(np.int8)

    def transactions(self, n: int) -> Transactions:
        """Takes the next `n` transactions of the stream."""
        parts = []
        while n > 0:
            block = self._current_block()
            start = self._next % BLOCK
            stop = min(start + n, BLOCK)
            parts.append(block.slice(start, stop))
            self._next += stop - start
            n -= stop - start
        return parts[0] if len(parts) == 1 else _concatenate(parts, self.kind_names)

    def _current_block(self) -> Transactions:
        number = self._next // BLOCK
        if self._block is None or self._block[0] != number:
            self._block = (number, self._make_block(number))
        return self._block[1]

    def _make_block(self, number: int) -> Transactions:
        rng = np.random.default_rng([self.seed, _STREAM, number])
        index = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
        drawn = self._draw((index + rng.random(BLOCK)) / self.cycle, rng)
        accounts = self._pools.pick_accounts(rng, BLOCK)[drawn.leader]
        merchants = self._pools.pick_merchants(rng, BLOCK)
        for code, kind in enumerate(self.kinds, start=1):
            if kind.at_compromised_merchant:
                rows = np.flatnonzero(drawn.codes == code)
                merchants[rows] = rng.integers(0, frauds.COMPROMISED_MERCHANTS, len(rows))
        return Transactions(
            index=index,
            transaction_ids=transaction_ids(self.seed, index),
            account_ids=self._pools.accounts[accounts].tolist(),
            merchants=self._pools.merchants[merchants].tolist(),
            elapsed=drawn.elapsed,
            features=drawn.features,
            kind_codes=drawn.codes,
            kind_names=self.kind_names,
        )

    def _draw(self, position: npt.NDArray[np.float64], rng: np.random.Generator) -> _Drawn:
        """Draws transactions at `position` [n], in cycles since the start of the stream, ascending."""
        cycles = np.floor(position)
        seconds = self._parameters.normal.draw_times(position - cycles)
        elapsed = cycles * parameters.CYCLE_SECONDS + seconds
        codes, leader = self._plant(seconds, rng)
        # A burst happens within seconds, whatever the pace of the stream; times only move forward to its
        # start.
        order = np.arange(len(position)) - leader
        elapsed = np.minimum(elapsed, elapsed[leader] + order * frauds.BURST_GAP_SECONDS)
        seconds = elapsed % parameters.CYCLE_SECONDS
        features = np.empty((len(position), N_FEATURES))
        normal = codes == 0
        features[normal] = self._parameters.normal.draw(seconds[normal], rng)
        for code, kind in enumerate(self.kinds, start=1):
            rows = codes == code
            if rows.any():
                features[rows] = kind.draw(self._parameters, seconds[rows], rng)
        features[:, TIME_INDEX] = np.floor(seconds)
        return _Drawn(elapsed, features, codes, leader)

    def _plant(
        self, seconds: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """Draws kind codes [n], and for each row the first row of its burst [n], or the row itself."""
        n = len(seconds)
        codes, leader = np.zeros(n, np.int8), np.arange(n)
        if self.fraud_share == 0:
            return codes, leader
        share = self._hourly_fraud_share[(seconds // 3600).astype(np.int64)]
        single = [code for code, kind in enumerate(self.kinds, start=1) if not kind.burst]
        bursts = [code for code, kind in enumerate(self.kinds, start=1) if kind.burst]
        in_bursts = share * len(bursts) / len(self.kinds)
        if single:
            # Bursts are laid over single frauds; this share of singles makes the union the share asked for.
            planted = rng.random(n) < 1 - (1 - share) / (1 - in_bursts)
            codes[planted] = rng.choice(single, int(planted.sum()))
        if bursts:
            least, greatest = frauds.BURST_SIZES
            # A row is in a burst unless none starts within its length before: 1 - exp(-starts * mean length).
            starts_rate = -np.log1p(-in_bursts) * 2 / (least + greatest)
            for start in np.flatnonzero(rng.random(n) < starts_rate):
                stop = min(start + int(rng.integers(least, greatest + 1)), n)
                codes[start:stop] = rng.choice(bursts)
                leader[start:stop] = start
        return codes, leader


@dataclass(frozen=True)
class _Drawn:
    elapsed: npt.NDArray[np.float64]
    features: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int8]
    leader: npt.NDArray[np.int64]


def _concatenate(parts: list[Transactions], kind_names: tuple[str, ...]) -> Transactions:
    if not parts:
        none = np.zeros(0)
        features = np.zeros((0, N_FEATURES))
        return Transactions(
            none.astype(np.int64), [], [], [], none, features, none.astype(np.int8), kind_names
        )
    return Transactions(
        index=np.concatenate([part.index for part in parts]),
        transaction_ids=[v for part in parts for v in part.transaction_ids],
        account_ids=[v for part in parts for v in part.account_ids],
        merchants=[v for part in parts for v in part.merchants],
        elapsed=np.concatenate([part.elapsed for part in parts]),
        features=np.concatenate([part.features for part in parts]),
        kind_codes=np.concatenate([part.kind_codes for part in parts]),
        kind_names=kind_names,
    )

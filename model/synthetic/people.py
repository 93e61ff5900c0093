"""Pools of accounts and merchants. Faker makes them once; a transaction only picks from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from faker import Faker

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pools:
    """Account numbers and merchant names, and how often each occurs.

    Attributes:
      accounts: distinct account numbers.
      merchants: distinct merchant names.
      account_cumulative: [accounts], cumulative activity (log-normal over the accounts), ends at 1.
      merchant_cumulative: [merchants], cumulative share of the merchants (Zipf's law), ends at 1.
    """

    accounts: npt.NDArray[np.object_]
    merchants: npt.NDArray[np.object_]
    account_cumulative: Floats
    merchant_cumulative: Floats

    @classmethod
    def create(cls, seed: int, accounts: int, merchants: int) -> Pools:
        """Makes pools of these sizes; the same seed makes the same pools."""
        faker = Faker("en_GB")
        faker.seed_instance(seed)
        rng = np.random.default_rng([seed, 2])
        activity = rng.lognormal(0.0, 1.0, accounts)
        popularity = 1.0 / np.arange(1, merchants + 1)
        return cls(
            accounts=distinct(faker.bban, accounts),
            # Shuffled, so that the compromised merchants, the first ones, are not the most popular.
            merchants=distinct(faker.company, merchants),
            account_cumulative=np.cumsum(activity) / activity.sum(),
            merchant_cumulative=np.cumsum(rng.permutation(popularity)) / popularity.sum(),
        )

    def pick_accounts(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        """Picks `n` positions in `accounts`."""
        return _pick(self.account_cumulative, rng, n)

    def pick_merchants(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        """Picks `n` positions in `merchants`."""
        return _pick(self.merchant_cumulative, rng, n)


def _pick(cumulative: Floats, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
    return np.minimum(np.searchsorted(cumulative, rng.random(n)), len(cumulative) - 1)


def distinct(
    make: Callable[[], str], n: int, taken: dict[str, None] | None = None
) -> npt.NDArray[np.object_]:
    """Makes `n` distinct names, none of them in `taken`, to which they are added."""
    names = {} if taken is None else taken
    before = len(names)
    while len(names) < before + n:
        # A repeated company becomes a branch of it, so that a large pool ends as well.
        name = make()
        names[name if name not in names else f"{name} {len(names)}"] = None
    return np.array(list(names)[before:], dtype=object)

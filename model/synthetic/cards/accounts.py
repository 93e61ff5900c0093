"""Accounts with habits of their own: how often, how much, when, where and how they pay.

The ranges are estimated from simulated card payments of the "Practical Handbook" of reproducible fraud
detection (Le Borgne et al. 2022): 0.2 to 3.7 payments a day and account, mean amounts from 9 to 98.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from faker import Faker

from model.synthetic.cards.places import CATEGORIES, CATEGORY_WEIGHTS, HOME_SHARES, VISITS, Ints, Merchants
from model.synthetic.ids import GOLDEN, mix, uniform
from model.synthetic.people import distinct

Floats = npt.NDArray[np.float64]

RATES: Final = (0.1, 5.0)
"""Least and greatest number of payments of an account in a day."""
MEDIAN_RATE, RATE_SPREAD = 1.3, 0.7
LEVELS: Final = (5.0, 200.0)
"""Least and greatest level of an account: its usual amount, in euros."""
MEDIAN_LEVEL, LEVEL_SPREAD = 30.0, 0.6
OWN_CATEGORIES: Final = 6
"""Categories in which an account pays. Its payments never leave them, a planted fraud may."""
FAVOURITES: Final = 16
"""Merchants at which an account usually pays, by how often: the first five times as often as the last."""
FAVOURITE_WEIGHTS: Final = 1.0 / (np.arange(FAVOURITES) + 3.0)

_BUMPS: Final = (
    # Share of the accounts, and (hour, width in hours, weight) of the times at which they pay.
    (0.40, ((8.0, 1.0, 0.25), (12.5, 1.2, 0.35), (18.0, 1.5, 0.40))),
    (0.30, ((11.0, 2.5, 0.60), (16.0, 2.0, 0.40))),
    (0.25, ((13.0, 2.0, 0.30), (19.5, 1.6, 0.70))),
    (0.05, ((22.5, 1.5, 0.30), (2.5, 1.8, 0.50), (16.0, 2.0, 0.20))),
)
NIGHT: Final = (1.0, 5.0)
"""Hours of a night, in which one account in twenty has a habit to pay and the others hardly ever do."""
AWAKE: Final = 0.001
"""Share of the payments that fall on any hour alike, whatever the habit."""

DAY_SECONDS: Final = 86_400.0
JOURNEY_PERIOD: Final = 30 * DAY_SECONDS
JOURNEY_CHANCE: Final = 0.15
"""Chance of a journey abroad in each period of an account."""
JOURNEY_DAYS: Final = (3.0, 10.0)
TRANSIT_SECONDS: Final = 8 * 3600.0
"""Before and after a journey an account is on its way, and pays online alone."""


def rhythms() -> Floats:
    """Makes the rhythms [4, 24]: share of the payments of a day in each hour of UTC."""
    hours = np.arange(24) + 0.5
    out = np.full((len(_BUMPS), 24), AWAKE / 24)
    for row, (_, bumps) in enumerate(_BUMPS):
        for centre, width, weight in bumps:
            distance = (hours - centre + 12) % 24 - 12
            bump = np.exp(-0.5 * (distance / width) ** 2)
            out[row] += (1 - AWAKE) * weight * bump / bump.sum()
    return out


RHYTHMS: Final = rhythms()
_NIGHT_SHARE: Final = RHYTHMS[:, int(NIGHT[0]) : int(NIGHT[1])].sum(axis=1)
KEEPS_NIGHTS: Final = _NIGHT_SHARE < 0.02
"""For each rhythm, whether a payment at night is unusual."""


@dataclass(frozen=True)
class Accounts:
    """The pool of accounts, in the order of their rhythms.

    Attributes:
      numbers: distinct account numbers.
      rate: payments a day.
      level: usual amount in euros, of a category whose amount is 1.
      home: position in COUNTRIES, int8.
      rhythm: row of RHYTHMS, int8, ascending.
      contactless: share of the small payments at a till that are made without the chip.
      own: [accounts, categories], whether an account pays in a category.
      favourites: [accounts, FAVOURITES], merchants, the most frequent first.
    """

    numbers: npt.NDArray[np.object_]
    rate: Floats
    level: Floats
    home: npt.NDArray[np.int8]
    rhythm: npt.NDArray[np.int8]
    contactless: Floats
    own: npt.NDArray[np.bool_]
    favourites: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rate)

    @classmethod
    def create(cls, seed: int, n: int, merchants: Merchants) -> Accounts:
        """Makes a pool of `n` accounts; the same seed and merchants make the same pool."""
        rng = np.random.default_rng([seed, 7])
        faker = Faker("en_GB")
        faker.seed_instance(seed)
        home = rng.choice(len(HOME_SHARES), n, p=HOME_SHARES).astype(np.int8)
        # The greatest of weights with Gumbel noise are a draw without replacement.
        appeal = np.log(CATEGORY_WEIGHTS) + rng.gumbel(size=(n, len(CATEGORIES)))
        chosen = np.argsort(-appeal, axis=1)[:, :OWN_CATEGORIES]
        own = np.zeros((n, len(CATEGORIES)), bool)
        np.put_along_axis(own, chosen, True, axis=1)
        slots = chosen[:, np.arange(FAVOURITES) % OWN_CATEGORIES]
        favourites = merchants.pick(np.repeat(home, FAVOURITES), slots.ravel(), rng)
        return cls(
            numbers=distinct(faker.bban, n),
            rate=np.clip(rng.lognormal(np.log(MEDIAN_RATE), RATE_SPREAD, n), *RATES),
            level=np.clip(rng.lognormal(np.log(MEDIAN_LEVEL), LEVEL_SPREAD, n), *LEVELS),
            home=home,
            rhythm=np.sort(rng.choice(len(_BUMPS), n, p=[share for share, _ in _BUMPS])).astype(np.int8),
            contactless=rng.beta(4.0, 2.0, n),
            own=own,
            favourites=favourites.reshape(n, FAVOURITES).astype(np.int32),
        )


def journeys(
    seed: int, accounts: npt.NDArray[np.integer], home: npt.NDArray[np.integer], times: Floats
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Finds where accounts are at times [n]: the country of a journey, or -1; and who is on the way.

    A function of seed, account and time, so that no state is kept: an account has at most one journey in each
    period, and each journey lies within its period.
    """
    period = np.floor(times / JOURNEY_PERIOD)
    words = mix(
        (accounts.astype(np.uint64) * np.uint64(1 << 20) + period.astype(np.uint64)) * GOLDEN
        + np.random.SeedSequence([seed, 8]).generate_state(1, np.uint64)
    )
    chance = uniform(words)
    country = np.full(len(times), -1, np.int64)
    is_on_the_way = np.zeros(len(times), bool)
    rows = np.flatnonzero(chance < JOURNEY_CHANCE)
    length, start, where = (
        uniform(mix(words[rows] + step)) for step in np.arange(1, 4, dtype=np.uint64) * GOLDEN
    )
    length = (JOURNEY_DAYS[0] + (JOURNEY_DAYS[1] - JOURNEY_DAYS[0]) * length) * DAY_SECONDS
    start = TRANSIT_SECONDS + (JOURNEY_PERIOD - length - 2 * TRANSIT_SECONDS) * start
    into = times[rows] - period[rows] * JOURNEY_PERIOD - start
    is_there = (into >= 0) & (into < length)
    is_on_the_way[rows] = ~is_there & (into >= -TRANSIT_SECONDS) & (into < length + TRANSIT_SECONDS)
    country[rows[is_there]] = destinations(home[rows[is_there]], where[is_there])
    return country, is_on_the_way


def destinations(home: npt.NDArray[np.integer], chance: Floats) -> Ints:
    """Turns numbers from 0 to 1 [n] into countries other than `home`, by VISITS."""
    before = np.cumsum(VISITS) - VISITS
    # The weight of home is cut out of the line of all weights.
    point = chance * (VISITS.sum() - VISITS[home])
    point = np.where(point >= before[home], point + VISITS[home], point)
    found: Ints = np.searchsorted(np.cumsum(VISITS), point, side="right")
    return np.minimum(found, len(VISITS) - 1)

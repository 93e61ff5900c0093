"""Countries, categories and merchants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from faker import Faker

from model.synthetic.people import distinct

Ints = npt.NDArray[np.int64]

TILL, ONLINE, CASH = 0, 1, 2
"""Channels of a category: at a till, online, or at a cash machine."""


@dataclass(frozen=True)
class Category:
    """One category of merchants.

    Attributes:
      name: as in a message.
      weight: how common it is among the habits of accounts.
      amount: its usual amount, as a multiple of the account's level.
      paid: TILL, ONLINE or CASH.
      is_risky: thieves turn a stolen card into money there.
    """

    name: str
    weight: float
    amount: float
    paid: int = TILL
    is_risky: bool = False


CATEGORIES: Final = (
    Category("grocery", 4.0, 0.9),
    Category("restaurant", 2.0, 0.9),
    Category("fuel", 1.2, 1.6),
    Category("transport", 1.5, 0.4),
    Category("clothing", 1.0, 1.8),
    Category("pharmacy", 0.8, 0.7),
    Category("household", 0.6, 1.5),
    Category("entertainment", 0.7, 0.8),
    Category("cash", 0.6, 2.5, CASH),
    Category("travel", 0.3, 3.0, ONLINE),
    Category("marketplace", 2.0, 1.2, ONLINE),
    Category("digital", 1.5, 0.4, ONLINE),
    Category("electronics", 0.15, 3.0, TILL, is_risky=True),
    Category("jewellery", 0.05, 3.0, TILL, is_risky=True),
    Category("gift_cards", 0.06, 1.5, ONLINE, is_risky=True),
    Category("gambling", 0.1, 1.0, ONLINE, is_risky=True),
    Category("money_transfer", 0.1, 3.0, ONLINE, is_risky=True),
    Category("crypto", 0.05, 3.0, ONLINE, is_risky=True),
)
CATEGORY_WEIGHTS: Final = np.array([category.weight for category in CATEGORIES])
CATEGORY_AMOUNTS: Final = np.array([category.amount for category in CATEGORIES])
PAID: Final = np.array([category.paid for category in CATEGORIES])
IS_RISKY: Final = np.array([category.is_risky for category in CATEGORIES])


@dataclass(frozen=True)
class Country:
    """One country.

    Attributes:
      code: ISO 3166, as in a message.
      locale: of Faker, for the names of merchants.
      homes: share of the accounts that live there.
      visits: how often those of other countries travel there, or thieves use a copied card there.
    """

    code: str
    locale: str
    homes: float
    visits: float


COUNTRIES: Final = (
    Country("DE", "de_DE", 0.25, 0.5),
    Country("FR", "fr_FR", 0.20, 1.0),
    Country("ES", "es_ES", 0.15, 1.5),
    Country("IT", "it_IT", 0.15, 1.2),
    Country("NL", "nl_NL", 0.10, 0.4),
    Country("BE", "fr_BE", 0.06, 0.3),
    Country("AT", "de_AT", 0.05, 0.6),
    Country("PT", "pt_PT", 0.04, 0.7),
    Country("GB", "en_GB", 0.0, 1.0),
    Country("US", "en_US", 0.0, 1.0),
    Country("CH", "de_CH", 0.0, 0.5),
    Country("PL", "pl_PL", 0.0, 0.5),
    Country("GR", "el_GR", 0.0, 0.8),
    Country("TR", "tr_TR", 0.0, 0.6),
    Country("TH", "th_TH", 0.0, 0.4),
    Country("BR", "pt_BR", 0.0, 0.3),
)
HOME_SHARES: Final = np.array([country.homes for country in COUNTRIES])
VISITS: Final = np.array([country.visits for country in COUNTRIES])
MERCHANTS_ABROAD: Final = 0.2
"""Share of the merchants in all countries alike; the others are where the accounts live."""

_ONE_OF_EACH: Final = tuple(
    (country, category)
    for country, place in enumerate(COUNTRIES)
    for category, kind in enumerate(CATEGORIES)
    # Online merchants serve every country, so that one of each suffices.
    if (country == 0 if kind.paid == ONLINE else place.homes or kind.name in ("grocery", "cash"))
)
MIN_MERCHANTS: Final = len(_ONE_OF_EACH)
"""So many merchants have one of each category in every country where accounts live."""


@dataclass(frozen=True, eq=False)
class Merchants:
    """The pool of merchants, and the ways to pick from it.

    Attributes:
      ids: "m-00017".
      names: distinct, in the language of the country.
      category: position in CATEGORIES, int8 [merchants].
      country: position in COUNTRIES, int8 [merchants].
      members: merchants, those of a cell (country, category) one after another.
      first: [countries, categories], where a cell begins in `members`.
      size: [countries, categories], merchants in it, at least 1. An empty cell holds what is nearest to it.
    """

    ids: npt.NDArray[np.object_]
    names: npt.NDArray[np.object_]
    category: npt.NDArray[np.int8]
    country: npt.NDArray[np.int8]
    members: Ints
    first: Ints
    size: Ints

    @classmethod
    def create(cls, seed: int, n: int) -> Merchants:
        """Makes a pool of `n` merchants; the same seed makes the same pool.

        Raises:
          ValueError: `n` is less than MIN_MERCHANTS.
        """
        if n < MIN_MERCHANTS:
            raise ValueError(f"merchants: {n} is less than {MIN_MERCHANTS}")
        rng = np.random.default_rng([seed, 6])
        shares = (1 - MERCHANTS_ABROAD) * HOME_SHARES + MERCHANTS_ABROAD / len(COUNTRIES)
        country = rng.choice(len(COUNTRIES), n, p=shares / shares.sum())
        # By the root: a rare category has more merchants than its share of payments would give it.
        weights = np.sqrt(CATEGORY_WEIGHTS)
        category = rng.choice(len(CATEGORIES), n, p=weights / weights.sum())
        country[:MIN_MERCHANTS], category[:MIN_MERCHANTS] = np.array(_ONE_OF_EACH).T
        cells = [_cell(country, category, *cell) for cell in np.ndindex(len(COUNTRIES), len(CATEGORIES))]
        size = np.array([len(cell) for cell in cells])
        shape = (len(COUNTRIES), len(CATEGORIES))
        return cls(
            ids=np.array([f"m-{i:05}" for i in range(n)], dtype=object),
            names=_names(seed, country),
            category=category.astype(np.int8),
            country=country.astype(np.int8),
            members=np.concatenate(cells),
            first=(np.cumsum(size) - size).reshape(shape),
            size=size.reshape(shape),
        )

    def pick(
        self, country: npt.NDArray[np.integer], category: npt.NDArray[np.integer], rng: np.random.Generator
    ) -> Ints:
        """Picks a merchant for each country and category [n]; online merchants sell to every country."""
        size = self.size[country, category]
        chosen = (rng.random(len(size)) * size).astype(np.int64)
        picked: Ints = self.members[self.first[country, category] + chosen]
        return picked


def _cell(countries: Ints, categories: Ints, country: int, category: int) -> Ints:
    """Returns the merchants of a category in a country, otherwise those nearest to them; never none."""
    alike = categories == category
    if PAID[category] == ONLINE:
        return np.flatnonzero(alike)
    there = countries == country
    found = np.flatnonzero(alike & there)
    return found if len(found) else np.flatnonzero(there & (PAID[categories] == TILL) & ~IS_RISKY[categories])


def _names(seed: int, country: Ints) -> npt.NDArray[np.object_]:
    """Makes distinct names in the languages of the countries [n]."""
    names = np.empty(len(country), dtype=object)
    taken: dict[str, None] = {}
    for code in np.unique(country).tolist():
        faker = Faker(COUNTRIES[code].locale)
        faker.seed_instance(seed)
        rows = np.flatnonzero(country == code)
        names[rows] = distinct(faker.company, len(rows), taken)
    return names

"""The habits of accounts: rates, levels, hours, places, and journeys. Judged on 120 days without frauds."""

import numpy as np
import pytest

from model.synthetic.cards.accounts import (
    FAVOURITES,
    JOURNEY_CHANCE,
    KEEPS_NIGHTS,
    NIGHT,
    OWN_CATEGORIES,
    RATES,
    RHYTHMS,
    Accounts,
    destinations,
    journeys,
)
from model.synthetic.cards.generator import CardGenerator
from model.synthetic.cards.payments import ATM, CONTACTLESS, CONTACTLESS_LIMIT, ONLINE_CHANNEL
from model.synthetic.cards.places import (
    CASH,
    CATEGORIES,
    COUNTRIES,
    HOME_SHARES,
    MIN_MERCHANTS,
    ONLINE,
    PAID,
    TILL,
    Merchants,
)

DAY = 86_400


def test_rates_are_those_of_the_accounts(normals):
    days = normals.elapsed[-1] / DAY
    accounts = normals.world.accounts
    counts = np.bincount(normals.payments.account, minlength=len(accounts))
    expected = accounts.rate * days
    # Poisson: the deviations have the size of the root of what is expected.
    deviations = (counts - expected) / np.sqrt(expected)
    assert np.abs(deviations).max() < 5
    assert deviations.std() == pytest.approx(1, abs=0.15)
    assert accounts.rate.min() >= RATES[0]
    assert accounts.rate.max() <= RATES[1]
    low, middle, high = np.quantile(accounts.rate, [0.05, 0.5, 0.95])
    assert low < 0.5 < 1.0 < middle < 1.8 < 3.5 < high


def test_levels_are_habits(normals):
    """Accounts differ by far more than one account's payments in two halves of the time."""
    payments, accounts = normals.payments, normals.world.accounts
    half = np.arange(len(normals)) < len(normals) / 2
    sums = [
        np.bincount(payments.account[h], np.log(payments.amount[h]), len(accounts)) for h in (half, ~half)
    ]
    counts = [np.bincount(payments.account[h], minlength=len(accounts)) for h in (half, ~half)]
    often = np.minimum(*counts) >= 30
    first, second = (s[often] / c[often] for s, c in zip(sums, counts, strict=True))
    assert np.corrcoef(first, second)[0, 1] > 0.9
    assert first.std() > 4 * (first - second).std() / np.sqrt(2) > 0


def test_hours_are_habits(normals):
    hour = (normals.elapsed // 3600 % 24).astype(int)
    rhythm = normals.world.accounts.rhythm[normals.payments.account]
    for row in range(len(RHYTHMS)):
        share = np.bincount(hour[rhythm == row], minlength=24) / (rhythm == row).sum()
        np.testing.assert_allclose(share, RHYTHMS[row], atol=0.02)
    np.testing.assert_allclose(RHYTHMS.sum(axis=1), 1)
    night = (hour >= NIGHT[0]) & (hour < NIGHT[1])
    assert night[KEEPS_NIGHTS[rhythm]].mean() < 0.002
    assert night[~KEEPS_NIGHTS[rhythm]].mean() > 0.2


def test_payments_stay_in_the_categories_of_the_account(normals):
    payments, world = normals.payments, normals.world
    category = world.merchants.category[payments.merchant]
    at_home = world.merchants.country[payments.merchant] == world.accounts.home[payments.account]
    assert world.accounts.own[payments.account, category][at_home].mean() > 0.995
    assert (world.accounts.own.sum(axis=1) == OWN_CATEGORIES).all()


def test_favourites_get_most_payments(normals):
    payments, world = normals.payments, normals.world
    favourites = world.accounts.favourites[payments.account]
    assert favourites.shape[1] == FAVOURITES
    at_favourite = (favourites == payments.merchant[:, None]).any(axis=1)
    assert 0.75 < at_favourite.mean() < 0.95


def test_channels_fit_merchants(normals):
    payments = normals.payments
    paid = PAID[normals.world.merchants.category[payments.merchant]]
    np.testing.assert_array_equal(paid == ONLINE, payments.channel == ONLINE_CHANNEL)
    np.testing.assert_array_equal(paid == CASH, payments.channel == ATM)
    assert payments.amount[payments.channel == CONTACTLESS].max() < CONTACTLESS_LIMIT
    np.testing.assert_array_equal(payments.amount[paid == CASH] % 10, 0)


def test_habits_are_fixed_by_the_seed():
    first, second = (CardGenerator(seed=8, accounts=300, merchants=200).world for _ in range(2))
    other = CardGenerator(seed=9, accounts=300, merchants=200).world
    for name in ("numbers", "rate", "level", "home", "rhythm", "favourites", "own", "contactless"):
        left, right = getattr(first.accounts, name), getattr(second.accounts, name)
        np.testing.assert_array_equal(left, right)
        assert not np.array_equal(left, getattr(other.accounts, name)), name
    np.testing.assert_array_equal(first.merchants.names, second.merchants.names)


def test_no_account_is_in_two_countries_within_hours(normals):
    """Before and after a journey an account pays online alone, so that it never seems to be in two places."""
    payments, world = normals.payments, normals.world
    here = np.flatnonzero(PAID[world.merchants.category[payments.merchant]] != ONLINE)
    order = here[np.lexsort((payments.time[here], payments.account[here]))]
    country = world.merchants.country[payments.merchant[order]]
    same = np.diff(payments.account[order]) == 0
    moved = same & (np.diff(country) != 0)
    assert moved.sum() > 50, "there are journeys"
    assert np.diff(payments.time[order])[moved].min() > 7 * 3600


def test_journeys():
    account, time = np.repeat(np.arange(20_000), 60), np.tile(np.arange(60) * DAY / 2, 20_000)
    home = np.zeros(len(account), np.int64)
    country, on_the_way = journeys(1, account, home, time)
    away = (country >= 0).reshape(20_000, 60)
    assert away.any(axis=1).mean() == pytest.approx(JOURNEY_CHANCE, abs=0.01)
    assert not (country[country >= 0] == 0).any()
    days = away.sum(axis=1)[away.any(axis=1)] / 2
    assert days.min() >= 2.5
    assert days.max() <= 10.5
    assert not (on_the_way & (country >= 0)).any()


def test_destinations_are_never_home():
    rng = np.random.default_rng(0)
    home = rng.integers(0, len(COUNTRIES), 50_000)
    found = destinations(home, rng.random(50_000))
    assert not (found == home).any()
    assert set(found.tolist()) == set(range(len(COUNTRIES)))
    assert (destinations(np.array([0, 3, 15]), np.array([1 - 2**-53] * 3)) < len(COUNTRIES)).all()


def test_every_category_is_at_home_and_cash_is_everywhere():
    merchants = Merchants.create(2, MIN_MERCHANTS)
    assert (merchants.size > 0).all()
    for country in range(len(COUNTRIES)):
        for code, category in enumerate(CATEGORIES):
            cell = merchants.members[merchants.first[country, code] :][: merchants.size[country, code]]
            if category.paid != ONLINE:
                assert (merchants.country[cell] == country).all()
            if HOME_SHARES[country] or category.paid != TILL:
                assert (merchants.category[cell] == code).all()
    assert len(set(merchants.names)) == MIN_MERCHANTS
    assert not all(name.isascii() for name in merchants.names)


def test_a_pool_of_one():
    merchants = Merchants.create(0, MIN_MERCHANTS)
    assert len(Accounts.create(0, 1, merchants)) == 1

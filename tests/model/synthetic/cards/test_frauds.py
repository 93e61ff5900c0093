"""Each kind of planted fraud is what its description says, and a simple rule over the account's own history
finds it: recall on the frauds of that kind, and the share of normal payments that the rule takes for one."""

import numpy as np
import pytest

from model.synthetic.cards import frauds
from model.synthetic.cards.generator import CardGenerator
from model.synthetic.cards.places import CASH, MIN_MERCHANTS, ONLINE, PAID
from tests.model.synthetic.cards.conftest import History

HOUR = 3600.0
KNOWN = 30
"""A rule judges accounts with so many earlier payments."""


@pytest.fixture(scope="module")
def history(stream):
    return History(stream)


def judged(history, kind, rule):
    """Shares of the frauds of a kind, and of normal payments, that a rule over (row, earlier rows) takes."""
    kinds = np.array(history.batch.planted_kinds, dtype=object)
    planted = np.flatnonzero(kinds == kind)
    normal = np.flatnonzero(kinds == None)[-8_000:]  # noqa: E711  element by element
    shares = []
    for rows in (planted, normal):
        before = [(row, history.before(row)) for row in rows.tolist()]
        found = [bool(rule(row, earlier)) for row, earlier in before if len(earlier) >= KNOWN]
        assert len(found) > 50
        shares.append(np.mean(found))
    return shares


def test_amount_spike(history):
    amount = history.batch.payments.amount
    recall, alarms = judged(
        history, "amount_spike", lambda row, before: amount[row] > 8 * np.median(amount[before])
    )
    assert recall > 0.97
    assert alarms < 0.01


def test_card_testing(history):
    payments = history.batch.payments

    def rule(row, before):
        recent = before[payments.time[before] > payments.time[row] - 600]
        small = payments.amount[recent] <= 3.0
        return payments.amount[row] <= 3.0 and small.sum() >= 2

    recall, alarms = judged(history, "card_testing", rule)
    assert recall > 0.75  # all but the first two of a burst
    assert alarms < 0.001


def test_new_country(history):
    batch = history.batch
    country = batch.world.merchants.country[batch.payments.merchant]
    is_here = PAID[batch.world.merchants.category[batch.payments.merchant]] != ONLINE

    def rule(row, before):
        recent = before[(batch.elapsed[before] > batch.elapsed[row] - 6 * HOUR) & is_here[before]]
        return is_here[row] and (country[recent] != country[row]).any()

    recall, alarms = judged(history, "new_country", rule)
    assert recall > 0.97
    # The account itself goes on paying at home.
    assert alarms < 0.01


def test_night_use(history):
    hour = history.batch.elapsed / HOUR % 24

    def rule(row, before):
        return 1 <= hour[row] < 5 and ((hour[before] >= 1) & (hour[before] < 5)).mean() < 0.1

    recall, alarms = judged(history, "night_use", rule)
    assert recall > 0.9
    assert alarms < 0.005


def test_new_category(history):
    batch = history.batch
    category = batch.world.merchants.category[batch.payments.merchant]
    recall, alarms = judged(
        history, "new_category", lambda row, before: (category[before] == category[row]).sum() <= 1
    )
    assert recall > 0.93
    assert alarms < 0.02


def test_merchant_compromise(history):
    """Amounts are 3 to 8 times as high, online, within two days of a visit to the compromised merchant."""
    batch = history.batch
    payments = batch.payments
    is_online = PAID[batch.world.merchants.category[payments.merchant]] == ONLINE

    def rule(row, before):
        return is_online[row] and payments.amount[row] > 2.5 * np.median(payments.amount[before])

    recall, alarms = judged(history, "merchant_compromise", rule)
    assert recall > 0.9
    assert alarms < 0.06
    # The common point of purchase: among the merchants visited before, one stands out by far.
    kinds = np.array(batch.planted_kinds, dtype=object)
    victims = np.flatnonzero(kinds == "merchant_compromise")
    epoch = payments.time[victims] // frauds.COMPROMISED_SECONDS
    for number in np.unique(epoch):
        rows = victims[epoch == number]
        visited = [
            set(payments.merchant[before[payments.time[before] > payments.time[row] - 48 * HOUR]].tolist())
            for row in rows.tolist()
            for before in [history.before(row)]
        ]
        counts = np.bincount([merchant for visits in visited for merchant in visits])
        top = np.sort(counts)[::-1]
        assert top[0] >= 0.2 * len(rows)


def test_all_cards_of_a_merchant_are_copied():
    """A merchant whose visits fit into the share: each of its cards is used."""
    generator = CardGenerator(seed=2, accounts=300, merchants=MIN_MERCHANTS, fraud_share=0)
    normals = generator.transactions(4_000).payments
    planter = frauds.Planter(generator.world, (frauds.KINDS["merchant_compromise"],), 0.02)
    rng = np.random.default_rng(0)
    planted = planter.plant(normals, rng)
    cards = set(planted.account.tolist())
    assert len(cards) >= frauds.LEAST_COMPROMISED
    # Some merchant, some stretch of its visits: every card in it is among the victims.
    longest = 0
    for merchant in np.unique(normals.merchant):
        visits = np.isin(normals.account[normals.merchant == merchant], list(cards))
        ends = np.flatnonzero(np.diff(np.concatenate([[0], visits.astype(int), [0]])))
        longest = max(longest, int((ends[1::2] - ends[::2]).max(initial=0)))
    assert longest >= 10


def test_every_fraud_follows_a_payment_of_its_account(stream):
    history = History(stream)
    kinds = np.array(stream.planted_kinds, dtype=object)
    for row in np.flatnonzero(kinds != None).tolist():  # noqa: E711  element by element
        earlier = history.before(row)
        assert len(earlier), kinds[row]
        delay = stream.elapsed[row] - stream.elapsed[earlier].max()
        assert 0 <= delay < 40 * HOUR


def test_descriptions_are_one_line():
    assert all(kind.description and "\n" not in kind.description for kind in frauds.KINDS.values())
    assert len(frauds.KINDS) == 6


def test_values_are_those_of_a_payment(stream):
    payments = stream.payments
    assert payments.amount.max() <= frauds.MAX_AMOUNT
    np.testing.assert_array_equal(payments.amount, np.round(payments.amount, 2))
    is_cash = PAID[stream.world.merchants.category[payments.merchant]] == CASH
    np.testing.assert_array_equal(payments.amount[is_cash] % 10, 0)

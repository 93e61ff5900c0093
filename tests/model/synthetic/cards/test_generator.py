"""The stream of card payments: reproducible, in order, with the shares and kinds of its arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.synthetic.cards import frauds
from model.synthetic.cards.generator import MAX_FRAUD_SHARE, CardGenerator
from model.synthetic.cards.places import MIN_MERCHANTS
from model.synthetic.generator import TransactionGenerator


def make(**arguments):
    return CardGenerator(**{"seed": 3, "accounts": 50, "merchants": 150, "fraud_share": 0.05, **arguments})


def columns(batch):
    return (
        batch.index.tolist(),
        batch.transaction_ids,
        batch.account_ids,
        batch.elapsed.tolist(),
        batch.payments.amount.tolist(),
        batch.payments.merchant.tolist(),
        batch.channels,
        batch.countries,
        batch.categories,
        batch.planted_kinds,
    )


def test_the_same_seed_gives_the_same_payments():
    assert columns(make().transactions(10_000)) == columns(make().transactions(10_000))


def test_another_seed_gives_others():
    first, second = (make(seed=seed).transactions(500) for seed in (1, 2))
    assert not set(first.transaction_ids) & set(second.transaction_ids)
    assert not set(first.account_ids) & set(second.account_ids)
    assert not set(first.elapsed) & set(second.elapsed)


def test_ids_are_not_those_of_the_other_kind_of_data():
    ulb = TransactionGenerator(seed=3).transactions(1_000)
    cards = make().transactions(1_000)
    assert len({*ulb.transaction_ids, *cards.transaction_ids}) == 2_000


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9_000), min_size=1, max_size=6))
def test_portions_do_not_matter(sizes):
    whole = make().transactions(sum(sizes))
    generator = make()
    parts = [columns(generator.transactions(size)) for size in sizes]
    assert columns(whole) == tuple([value for part in parts for value in part[i]] for i in range(10))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3_000),
    st.integers(MIN_MERCHANTS, 600),
    st.floats(0, MAX_FRAUD_SHARE),
    st.lists(st.sampled_from(sorted(frauds.KINDS)), min_size=1),
    st.floats(0, 86_399),
)
def test_any_arguments_make_a_stream_in_order(seed, accounts, merchants, share, kinds, midnight):
    batch = CardGenerator(seed, share, kinds, accounts, merchants, midnight).transactions(3_000)
    assert len(batch) == 3_000
    assert (np.diff(batch.elapsed) >= 0).all()
    assert batch.elapsed[0] >= 0
    assert set(batch.planted_kinds) <= {None, *kinds}
    amounts = batch.payments.amount
    assert amounts.min() >= 0.01
    assert amounts.max() <= frauds.MAX_AMOUNT
    np.testing.assert_array_equal(amounts, np.round(amounts, 2))


@pytest.mark.parametrize("share", [0.002, 0.05, MAX_FRAUD_SHARE])
def test_share_of_frauds(share):
    n = 100_000
    batch = make(accounts=1_000, merchants=500, fraud_share=share).transactions(n)
    # A run that is not due yet is missing at the end, and what happens after it; a few of each kind.
    assert batch.labels.sum() == pytest.approx(share * n, abs=0.05 * share * n + 4 * len(frauds.KINDS))


def test_every_kind_has_its_share():
    n = 100_000
    batch = make(accounts=1_000, merchants=500, fraud_share=0.012).transactions(n)
    counts = np.bincount(batch.kind_codes)[1:]
    assert batch.kind_names == tuple(frauds.KINDS)
    np.testing.assert_allclose(counts, 0.002 * n, rtol=0.12)


def test_no_frauds():
    assert set(make(fraud_share=0).transactions(5_000).planted_kinds) == {None}


def test_frauds_leave_the_normal_payments_alone():
    """A planted fraud comes on top: what an account pays itself does not depend on it."""
    with_frauds, without = make().transactions(6_000), make(fraud_share=0).transactions(5_000)
    own = with_frauds.payments.take(with_frauds.labels == 0)
    np.testing.assert_array_equal(own.time[:5_000], without.elapsed)
    np.testing.assert_array_equal(own.amount[:5_000], without.payments.amount)


def test_days_follow_the_rates():
    generator = make(accounts=500)
    days = generator.transactions(40_000).elapsed[-1] / 86_400
    assert days == pytest.approx(40_000 / generator.per_day, rel=0.03)


def test_habits_keep_to_the_clock():
    """A stream that starts at noon has the same hours of the day as one that starts at midnight."""
    hours = []
    for midnight in (0.0, 43_200.0):
        elapsed = make(fraud_share=0, midnight=midnight).transactions(20_000).elapsed
        hours.append(np.bincount(((elapsed + midnight) // 3600 % 24).astype(int), minlength=24) / 20_000)
    np.testing.assert_allclose(hours[0], hours[1], atol=0.012)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"fraud_kinds": ["new_country", "theft"]}, "fraud_kinds: no kind theft; there are amount_spike"),
        ({"fraud_kinds": []}, "fraud_kinds: name at least one"),
        ({"fraud_share": 0.6}, "fraud_share: 0.6 is not between 0 and 0.5"),
        ({"accounts": 0}, "accounts: 0 is less than 1"),
        ({"merchants": 3}, f"merchants: 3 is less than {MIN_MERCHANTS}"),
        ({"seed": -1}, "seed: -1 is less than 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        make(**arguments)

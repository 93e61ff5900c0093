"""The stream of transactions: reproducible, in order, with the shares and kinds of its arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ulb import AMOUNT_INDEX, N_FEATURES, TIME_INDEX
from model.synthetic import frauds
from model.synthetic.generator import BLOCK, FRAUD_SHARE, TransactionGenerator
from model.synthetic.ids import transaction_ids

CYCLE = 172_800


def columns(batch):
    return (
        batch.index.tolist(),
        batch.transaction_ids,
        batch.account_ids,
        batch.merchants,
        batch.elapsed.tolist(),
        batch.features.tolist(),
        batch.planted_kinds,
    )


def test_the_same_seed_gives_the_same_transactions():
    first, second = (TransactionGenerator(seed=11, fraud_share=0.05) for _ in range(2))
    assert columns(first.transactions(3_000)) == columns(second.transactions(3_000))


def test_another_seed_gives_others():
    first, second = (TransactionGenerator(seed=seed).transactions(200) for seed in (1, 2))
    assert not set(first.transaction_ids) & set(second.transaction_ids)
    assert not np.array_equal(first.features, second.features)
    assert first.account_ids != second.account_ids


@settings(max_examples=20)
@given(st.lists(st.integers(0, BLOCK + 10), min_size=1, max_size=6))
def test_portions_do_not_matter(sizes):
    total = sum(sizes)
    whole = TransactionGenerator(seed=3, fraud_share=0.02, cycle=20_000).transactions(total)
    generator = TransactionGenerator(seed=3, fraud_share=0.02, cycle=20_000)
    parts = [columns(generator.transactions(size)) for size in sizes]
    joined = tuple([value for part in parts for value in part[i]] for i in range(7))
    assert columns(whole) == joined


def test_time_runs_forward_and_over_two_days():
    batch = TransactionGenerator(fraud_share=0.05, cycle=10_000).transactions(25_000)
    assert (np.diff(batch.elapsed) >= 0).all()
    assert batch.elapsed[0] < 60
    # Two cycles and a half: the middle of a cycle is at the median time of day of normals.
    assert 2 * CYCLE < batch.elapsed[-1] < 3 * CYCLE
    np.testing.assert_array_equal(batch.features[:, TIME_INDEX], np.floor(batch.elapsed % CYCLE))


def test_day_and_night():
    hours = TransactionGenerator(cycle=48_000).transactions(48_000).elapsed // 3600 % 24
    counts = np.bincount(hours.astype(int), minlength=24)
    assert counts[2:6].max() < 0.4 * counts[9:22].min()


def test_values_are_those_of_a_payment():
    features = TransactionGenerator(fraud_share=0.1).transactions(20_000).features
    assert features.shape == (20_000, N_FEATURES)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()
    amounts = features[:, AMOUNT_INDEX]
    assert amounts.min() >= 0
    np.testing.assert_array_equal(amounts, np.round(amounts, 2))
    # Heavy-tailed: the mean is several times the median.
    assert amounts.mean() > 3 * np.median(amounts)


@pytest.mark.parametrize("share", [FRAUD_SHARE, 0.02, 0.5, 0.9])
def test_share_of_frauds(share):
    n = 100_000
    batch = TransactionGenerator(seed=4, fraud_share=share, cycle=n).transactions(n)
    # Bursts make the count vary more than independent draws would.
    assert batch.labels.mean() == pytest.approx(share, abs=5 * np.sqrt(3 * share * (1 - share) / n))


def test_every_kind_has_its_share():
    n = 200_000
    batch = TransactionGenerator(seed=5, fraud_share=0.05, cycle=n).transactions(n)
    counts = np.bincount(batch.kind_codes)[1:]
    assert batch.kind_names == tuple(frauds.KINDS)
    np.testing.assert_allclose(counts, 0.01 * n, rtol=0.15)


def test_no_frauds():
    batch = TransactionGenerator(fraud_share=0).transactions(10_000)
    assert batch.labels.sum() == 0
    assert set(batch.planted_kinds) == {None}


def test_only_the_kinds_asked_for():
    batch = TransactionGenerator(fraud_share=0.1, fraud_kinds=["amount_spike"]).transactions(5_000)
    assert set(batch.planted_kinds) == {None, "amount_spike"}


def test_a_burst_is_on_one_account_within_seconds():
    batch = TransactionGenerator(fraud_share=0.02, fraud_kinds=["card_testing"], cycle=30_000).transactions(
        30_000
    )
    in_burst = np.flatnonzero(batch.kind_codes)
    runs = np.split(in_burst, np.flatnonzero(np.diff(in_burst) > 1) + 1)
    accounts = [{batch.account_ids[i] for i in run} for run in runs]
    # Two bursts can meet; most stand alone.
    alone = [run for run, names in zip(runs, accounts, strict=True) if len(names) == 1]
    assert len(alone) > 0.8 * len(runs) > 30
    least, greatest = frauds.BURST_SIZES
    whole = [run for run in alone if run[-1] % BLOCK != BLOCK - 1]
    assert all(least <= len(run) <= greatest for run in whole)
    spans = [batch.elapsed[run[-1]] - batch.elapsed[run[0]] for run in alone]
    assert max(spans) <= greatest * frauds.BURST_GAP_SECONDS
    assert batch.features[in_burst, AMOUNT_INDEX].max() <= 2.0


def test_merchant_compromise_is_at_few_merchants():
    batch = TransactionGenerator(fraud_share=0.1, fraud_kinds=["merchant_compromise"]).transactions(5_000)
    names = {batch.merchants[i] for i in np.flatnonzero(batch.kind_codes)}
    assert len(names) == frauds.COMPROMISED_MERCHANTS


def test_features_for_training():
    generator = TransactionGenerator(seed=9, fraud_share=0.02)
    features, labels = generator.features(10_000)
    again, _ = generator.features(10_000)
    same, same_labels = TransactionGenerator(seed=9, fraud_share=0.02).features(10_000)
    assert features.shape == (10_000, N_FEATURES)
    assert features.dtype == np.float64
    assert labels.dtype == np.int8
    np.testing.assert_array_equal(features, same)
    np.testing.assert_array_equal(labels, same_labels)
    assert not (again[:, 1:-1] == features[:, 1:-1]).any()
    # Spread over the two days, whatever n is.
    assert features[:, TIME_INDEX].min() < 600
    assert features[:, TIME_INDEX].max() > CYCLE - 600
    assert 100 < labels.sum() < 320


def test_features_leave_the_stream_alone():
    generator = TransactionGenerator(seed=9)
    generator.features(100)
    assert generator.transactions(10).index.tolist() == list(range(10))


def test_ids_are_distinct_and_fixed():
    ids = transaction_ids(0, np.arange(200_000))
    assert len(set(ids)) == 200_000
    assert {len(name) for name in ids} == {32}
    # Written down: ids must not change from one release to the next.
    assert transaction_ids(7, np.array([0, 1])) == EXPECTED_IDS


EXPECTED_IDS = ["c4ce962956a6166046565263f83984aa", "e6fa3e005b8b4832b874b30109088406"]


def test_pools():
    batch = TransactionGenerator(accounts=50, merchants=20).transactions(20_000)
    accounts, uses = np.unique(batch.account_ids, return_counts=True)
    assert len(accounts) == 50
    assert uses.max() > 3 * np.median(uses)
    assert len(set(batch.merchants)) == 20


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"fraud_kinds": ["stolen_card", "theft"]}, "fraud_kinds: no kind theft; there are stolen_card"),
        ({"fraud_kinds": []}, "fraud_kinds: name at least one"),
        ({"fraud_share": 0.95}, "fraud_share: 0.95 is not between 0 and 0.9"),
        ({"fraud_share": float("nan")}, "fraud_share: nan"),
        ({"accounts": 0}, "accounts: 0 is less than 1"),
        ({"merchants": 2}, "merchants: 2 is less than 3"),
        ({"cycle": 0}, "cycle: 0 is less than 1"),
        ({"seed": -1}, "seed: -1 is less than 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        TransactionGenerator(**arguments)

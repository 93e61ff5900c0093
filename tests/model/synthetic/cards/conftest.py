"""One stream of card payments, long enough for histories: 120 days of 400 accounts."""

import numpy as np
import pytest

from model.synthetic.cards.generator import CardGenerator

DAYS = 120


@pytest.fixture(scope="session")
def normals():
    """Payments without planted frauds."""
    generator = CardGenerator(seed=3, fraud_share=0, accounts=400, merchants=500)
    return generator.transactions(int(generator.per_day * DAYS))


@pytest.fixture(scope="session")
def stream():
    """Payments with frauds of every kind."""
    generator = CardGenerator(seed=4, fraud_share=0.01, accounts=400, merchants=500)
    return generator.transactions(int(generator.per_day * DAYS))


class History:
    """The earlier payments of the account of each payment, in plain numpy."""

    def __init__(self, batch):
        self.batch = batch
        self.rows = np.arange(len(batch))
        order = np.lexsort((self.rows, batch.payments.account))
        starts = np.flatnonzero(np.diff(batch.payments.account[order])) + 1
        parts = np.split(order, starts)
        self.of = {int(batch.payments.account[part[0]]): part for part in parts}

    def before(self, row):
        """Rows of the same account before `row`."""
        rows = self.of[int(self.batch.payments.account[row])]
        return rows[: np.searchsorted(rows, row)]

"""The 30 numeric features of a card transaction, in the one order that every part of the project uses.

The layout is that of the ULB "Credit Card Fraud Detection" dataset, which BigQuery publishes as
`bigquery-public-data.ml_datasets.ulb_fraud_detection`: seconds since the first transaction, 28 principal
components, and the amount. This module is the only place where the names are written.
"""

from __future__ import annotations

from typing import Final

TIME: Final = "Time"
AMOUNT: Final = "Amount"
COMPONENTS: Final[tuple[str, ...]] = tuple(f"V{i}" for i in range(1, 29))

FEATURES: Final[tuple[str, ...]] = (TIME, *COMPONENTS, AMOUNT)
N_FEATURES: Final = len(FEATURES)
TIME_INDEX: Final = FEATURES.index(TIME)
AMOUNT_INDEX: Final = FEATURES.index(AMOUNT)

LABEL: Final = "Class"
"""The label column of the ULB layout: 1 is a fraud. It is for evaluation; no model input carries it."""

"""The form of the ULB table: 30 numbers a transaction."""

from __future__ import annotations

from typing import Final

import numpy as np
import orjson
import pyarrow as pa

from features.ulb import FEATURES, LABEL, N_FEATURES
from model.synthetic.generator import Transactions
from publisher import malformed
from publisher.forms import EVENT_TIME, TIME_TYPE, Form

_MERCHANT: Final = pa.field("merchant", pa.string())
_TABLE: Final = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("account_id", pa.string()),
        _MERCHANT,
        pa.field(EVENT_TIME, TIME_TYPE, nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in FEATURES),
    ]
)


def _arrays(batch: Transactions) -> list[pa.Array]:
    features = pa.FixedSizeListArray.from_arrays(pa.array(batch.features.ravel()), N_FEATURES)
    return [pa.array(batch.merchants, pa.string()), features]


def _columns(about: pa.RecordBatch) -> list[pa.Array]:
    matrix = about.column("features").flatten().to_numpy().reshape(-1, N_FEATURES)
    features = [pa.array(np.ascontiguousarray(column)) for column in matrix.T]
    return [*about.select(_TABLE.names[:-N_FEATURES]).columns, *features]


def _payloads(batch: Transactions, event_times: list[str]) -> list[bytes]:
    dumps = orjson.dumps
    columns = zip(
        batch.transaction_ids,
        batch.account_ids,
        batch.merchants,
        event_times,
        batch.features.tolist(),
        strict=True,
    )
    return [
        dumps(
            {
                "transaction_id": transaction,
                "account_id": account,
                "merchant": merchant,
                "event_time": time,
                "features": features,
            }
        )
        for transaction, account, merchant, time, features in columns
    ]


ULB: Final = Form(
    name="ulb",
    table=_TABLE,
    label=LABEL,
    own=(_MERCHANT, pa.field("features", pa.list_(pa.float64(), N_FEATURES), nullable=False)),
    arrays=_arrays,
    payloads=_payloads,
    columns=_columns,
    malformed=malformed.fitting("ulb"),
)
"""A row is one of `ulb_fraud_detection`, with keys and time."""

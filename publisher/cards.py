"""The form of raw card payments: a nested message, and a flat table of ten columns."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import orjson
import pyarrow as pa

from model.synthetic.cards.generator import CURRENCY, CardPayments
from model.synthetic.cards.places import CATEGORIES, Merchants
from publisher import malformed
from publisher.forms import EVENT_TIME, TIME_TYPE, Form

_OWN: Final = tuple(
    pa.field(name, pa.float64() if name == "amount" else pa.string(), nullable=False)
    for name in (
        "amount",
        "currency",
        "channel",
        "country",
        "merchant.id",
        "merchant.name",
        "merchant.category",
    )
)
_TABLE: Final = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("account_id", pa.string(), nullable=False),
        pa.field(EVENT_TIME, TIME_TYPE, nullable=False),
        *_OWN,
    ]
)


def _arrays(batch: CardPayments) -> list[pa.Array]:
    merchants, chosen = batch.world.merchants, batch.payments.merchant
    return [
        pa.array(batch.payments.amount),
        pa.array([CURRENCY] * len(batch), pa.string()),
        pa.array(batch.channels, pa.string()),
        pa.array(batch.countries, pa.string()),
        pa.array(merchants.ids[chosen], pa.string()),
        pa.array(merchants.names[chosen], pa.string()),
        pa.array(batch.categories, pa.string()),
    ]


def _columns(about: pa.RecordBatch) -> list[pa.Array]:
    return list(about.select(_TABLE.names).columns)


@lru_cache(maxsize=1)
def _merchants(merchants: Merchants) -> list[orjson.Fragment]:
    """Encodes the merchants, each once."""
    names = [CATEGORIES[code].name for code in merchants.category.tolist()]
    columns = zip(merchants.ids.tolist(), merchants.names.tolist(), names, strict=True)
    return [
        orjson.Fragment(orjson.dumps({"id": identifier, "name": name, "category": category}))
        for identifier, name, category in columns
    ]


def _payloads(batch: CardPayments, event_times: list[str]) -> list[bytes]:
    dumps, merchants = orjson.dumps, _merchants(batch.world.merchants)
    columns = zip(
        batch.transaction_ids,
        batch.account_ids,
        event_times,
        batch.payments.amount.tolist(),
        batch.channels,
        batch.countries,
        batch.payments.merchant.tolist(),
        strict=True,
    )
    return [
        dumps(
            {
                "transaction_id": transaction,
                "account_id": account,
                "event_time": time,
                "amount": amount,
                "currency": CURRENCY,
                "channel": channel,
                "country": country,
                "merchant": merchants[merchant],
            }
        )
        for transaction, account, time, amount, channel, country, merchant in columns
    ]


CARD: Final = Form(
    name="card",
    table=_TABLE,
    label="is_fraud",
    own=_OWN,
    arrays=_arrays,
    payloads=_payloads,
    columns=_columns,
    malformed=malformed.fitting("card"),
)
"""The columns of a table have the dotted paths of the message's fields as names."""
